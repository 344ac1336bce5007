"""Resume of runs in processes that are killed at any moment: results are bit-identical."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.run_metrics import read_metrics
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError, DataError, RunError
from edgetl.core.paths import RunDirectory
from tests.conftest import ARCHITECTURE, IMAGE_SIZE, ROOT
from tests.helpers import forkserver
from tests.helpers.forkserver import PROCESSES

Run = Callable[..., subprocess.CompletedProcess[str]]
RECIPES: dict[str, dict[str, Any]] = {
    "cached": {"epochs": 12, "finetune_epochs": 6},
    "streamed": {
        "epochs": 8,
        "finetune_epochs": 6,
        "cache_budget": 0,
        "mixup": 0.3,
        "cutmix": 0.5,
        "ema": 0.9,
        "weight_decay": 0.01,
        "clip_gradient": 1.0,
        "sampling": "balanced",
        "unfreeze": "2",
        "test_split": 0.2,
    },
}
KILLS = 10
"""Number of kills at random moments, in addition to those at chosen ones."""


def _kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _train(config: dict[str, Any], resumed: bool, kill: tuple[str, float] | None) -> None:
    # Runs in a separate process: train, save after every batch, and kill the process at `kill`.
    from edgetl.core.progress import TrainingProgress
    from edgetl.train import finetune, results
    from edgetl.train.engine import checkpoint, trainer

    saves = 0
    kind, moment = kill or ("", 0.0)

    def save(self: trainer.Trainer, epochs: Any) -> None:
        nonlocal saves
        if kind == "timer" and saves == 0:
            threading.Timer(moment, _kill).start()
        saves += 1
        self.save_checkpoint(epochs)
        if kind == "saved" and saves == moment:
            _kill()

    def truncate_and_kill(tensors: Any, path: Path, metadata: Any = None) -> None:
        save_file(tensors, path, metadata)
        if kind == "half" and saves == moment:
            os.truncate(path, path.stat().st_size // 2)
            _kill()

    class KillingProgress(TrainingProgress):
        def on_progress(self, step: str, done: int, total: int) -> None:
            if kind == step and done >= moment:
                _kill()

    validations = 0

    def evaluate(*arguments: Any) -> Any:
        nonlocal validations
        validations += 1
        if validations == moment:
            raise KeyboardInterrupt
        return real_evaluate(*arguments)

    if kind == "validation":
        real_evaluate = trainer.evaluate
        trainer.evaluate = evaluate
    if kind == "plots":
        results.draw_plots = _kill
    save_file = checkpoint.save_file
    checkpoint.save_file = truncate_and_kill  # type: ignore[assignment]
    if kind != "validation":
        trainer.Trainer.save_if_due = save  # type: ignore[method-assign]
    settings = FinetuneConfig.from_json(config)
    try:
        if resumed:
            assert settings.output is not None
            finetune.resume(RunDirectory(settings.output), KillingProgress())
        else:
            finetune.finetune(settings, KillingProgress())
    except KeyboardInterrupt:
        _kill()


def train_process(
    config: FinetuneConfig, resumed: bool, kill: tuple[str, float] | None = None
) -> bool:
    """Train in a process until it ends or is killed; return whether it ended."""
    process = PROCESSES.Process(target=_train, args=(config.to_json(), resumed, kill))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def run_snapshot(run: RunDirectory) -> dict[str, Any]:
    """Return everything in a run directory that must be reproducible, without the timings."""
    metrics = json.loads(run.metrics.read_text())
    timing_fields = ("seconds", "elapsed", "images_per_second")
    history = [
        {name: value for name, value in json.loads(line).items() if name not in timing_fields}
        for line in run.history.read_text().splitlines()
    ]
    return {
        "weights": run.weights.read_bytes(),
        "predictions": run.predictions.read_text(),
        "history": history,
        "metrics": {
            name: metrics.get(name)
            for name in ("train", "val", "test", "best_epoch", "ended", "parameters")
        },
        "files": sorted(path.name for path in run.path.iterdir()),
    }


@pytest.fixture(params=["cached", pytest.param("streamed", marks=pytest.mark.slow)])
def config(
    request: pytest.FixtureRequest, parts: Path, random_weights: Path, tmp_path: Path
) -> FinetuneConfig:
    return FinetuneConfig(
        parts,
        tmp_path / "run",
        ARCHITECTURE,
        str(random_weights),
        IMAGE_SIZE,
        device="cpu",
        precision="fp32",
        workers=0,
        seed=3,
        **RECIPES[request.param],
    )


def test_resume_after_interrupted_validation_is_bit_identical(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    config = replace(config, epochs=4, finetune_epochs=2)
    uninterrupted = replace(config, output=tmp_path / "uninterrupted")
    assert train_process(uninterrupted, resumed=False)
    assert not train_process(config, resumed=False, kill=("validation", 3))
    run = RunDirectory(tmp_path / "run")
    assert run.checkpoint.exists()
    assert len(run.history.read_text().splitlines()) == 2
    assert train_process(config, resumed=True)
    assert run_snapshot(run) == run_snapshot(RunDirectory(tmp_path / "uninterrupted"))


@pytest.mark.slow
def test_resume_after_repeated_kills_is_bit_identical(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    uninterrupted = replace(config, output=tmp_path / "uninterrupted")
    assert train_process(uninterrupted, resumed=False)
    for folder in (Path(os.environ["EDGETL_CACHE"]) / "activations").glob("*"):
        # The first run has filled the cache; remove it, so that kills happen while it is filled.
        folder.rename(tmp_path / folder.name)
    run = RunDirectory(tmp_path / "run")
    chosen_kills: list[tuple[str, float]] = [
        ("running frozen blocks", 20),
        ("checking images", 1),
        ("half", 1),
        ("saved", 2),
        ("half", 3),
    ]
    generator = random.Random(0)
    timed_kills = [("timer", generator.uniform(0, 0.1)) for _ in range(KILLS)]
    kills = [*(chosen_kills if config.cache_budget != 0 else chosen_kills[1:]), *timed_kills]
    kill_count = 0
    for number, kill in enumerate(kills):
        if train_process(config, resumed=number > 0 and run.config.exists(), kill=kill):
            break
        kill_count += 1
        assert not run.metrics.exists()
    if not run.metrics.exists():
        assert train_process(config, resumed=True)
    assert kill_count >= len(kills) - KILLS // 2, "most processes must be killed before they end"
    assert run_snapshot(run) == run_snapshot(RunDirectory(tmp_path / "uninterrupted"))
    assert not run.checkpoint.parent.exists()


@pytest.mark.slow
def test_weights_depend_on_the_seed_only(config: FinetuneConfig, tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        assert train_process(replace(config, output=tmp_path / name, seed=seed), resumed=False)
        runs[name] = RunDirectory(tmp_path / name).weights.read_bytes()
    assert runs["one"] == runs["two"]
    assert runs["one"] != runs["three"]


@pytest.fixture
def interrupted_config(parts: Path, random_weights: Path, tmp_path: Path) -> FinetuneConfig:
    """Configuration of a run that was killed after its second checkpoint."""
    data = tmp_path / "data"
    import shutil

    shutil.copytree(parts, data)
    config = FinetuneConfig(
        data,
        tmp_path / "run",
        ARCHITECTURE,
        str(random_weights),
        IMAGE_SIZE,
        device="cpu",
        precision="fp32",
        workers=0,
        epochs=2,
        finetune_epochs=1,
    )
    assert not train_process(config, resumed=False, kill=("saved", 2))
    return config


def test_resume_draws_missing_plots(interrupted_config: FinetuneConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert not train_process(interrupted_config, resumed=True, kill=("plots", 1))
    metrics = json.loads(run.metrics.read_text())
    assert not run.plots.exists()
    assert train_process(interrupted_config, resumed=True)
    assert run.plots.is_dir()
    resumed_metrics = json.loads(run.metrics.read_text())
    assert resumed_metrics["val"] == metrics["val"]
    assert not run.checkpoint.exists()


def test_resume_keeps_the_recorded_interpolation(interrupted_config: FinetuneConfig) -> None:
    """Earlier versions knew one interpolation, and `auto` may resolve to another one today."""
    assert interrupted_config.output is not None
    run = RunDirectory(interrupted_config.output)
    content = json.loads(run.config.read_text())
    assert content["asked"].pop("interpolation") == "auto"
    content["preprocessing"]["interpolation"] = "bicubic"
    run.config.write_text(json.dumps(content))
    final = read_metrics(resume_run(interrupted_config)).final
    assert final is not None
    assert final.preprocessing.interpolation == "bicubic"


def test_resume_keeps_the_epochs_planned_for_the_budget(
    parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    config = FinetuneConfig(
        parts,
        tmp_path / "run",
        ARCHITECTURE,
        str(random_weights),
        IMAGE_SIZE,
        device="cpu",
        precision="fp32",
        workers=0,
        budget_s=60.0,
    )
    assert not train_process(config, resumed=False, kill=("saved", 3))
    planned_epochs = json.loads(RunDirectory(tmp_path / "run").config.read_text())["choices"][
        "epochs"
    ]
    run = resume_run(config)
    epochs = [json.loads(line)["phase"] for line in run.history.read_text().splitlines()]
    assert [epochs.count(phase) for phase in (1, 2)] == planned_epochs


def resume_run(config: FinetuneConfig) -> RunDirectory:
    from edgetl.train.finetune import resume

    assert config.output is not None
    return resume(RunDirectory(config.output))


def test_resume_rejects_changed_inputs(interrupted_config: FinetuneConfig, tmp_path: Path) -> None:
    photo = interrupted_config.data / "train/good/good_0000.jpg"
    content = photo.read_bytes()
    photo.unlink()
    with pytest.raises(DataError, match="have changed since the run started"):
        resume_run(interrupted_config)
    photo.write_bytes(content)
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(
        json.dumps({**config, "weights": {**config["weights"], "sha256": "0" * 64}})
    )
    with pytest.raises(ConfigError, match="have changed since the run started"):
        resume_run(interrupted_config)
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    assert resume_run(interrupted_config).metrics.exists()
    with pytest.raises(RunError, match="has finished"):
        resume_run(interrupted_config)
    with pytest.raises(RunError, match="No run to resume"):
        resume_run(replace(interrupted_config, output=tmp_path / "nothing"))


def test_resume_rejects_changed_frozen_tensors(
    interrupted_config: FinetuneConfig, tmp_path: Path
) -> None:
    from edgetl.train.engine.checkpoint import read_checkpoint, write_checkpoint

    path = RunDirectory(tmp_path / "run").checkpoint
    checkpoint = read_checkpoint(path)
    names = {key.partition("/")[0] for key in checkpoint.tensors}
    parts = {name: checkpoint.part(name) for name in names}
    parts["network"]["features.0.0.weight"] += 1e-3
    write_checkpoint(path, parts, checkpoint.facts)
    with pytest.raises(RunError, match=re.escape("frozen tensors changed (features.0.0.weight)")):
        resume_run(interrupted_config)


def test_resume_rejects_damaged_checkpoint(
    interrupted_config: FinetuneConfig, tmp_path: Path
) -> None:
    path = RunDirectory(tmp_path / "run").checkpoint
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(RunError, match="Cannot resume from"):
        resume_run(interrupted_config)


def _save_every_batch() -> None:
    from edgetl.train.engine import trainer

    trainer.CHECKPOINT_INTERVAL_S = 0.0


@contextmanager
def edgetl_process(output: Path, *arguments: object) -> Iterator[ForkServerProcess]:
    """Start edgetl in a process that ends with the block; its output is in `output`."""
    output.mkdir()
    process = forkserver.start([*map(str, arguments)], ROOT, output, _save_every_batch)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def wait_for(condition: Callable[[], bool], process: ForkServerProcess, output: Path) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert process.exitcode is None, (output / "err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_locked_run_and_resume(
    forked: Run, parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    options = (
        "--model",
        ARCHITECTURE,
        "--weights",
        random_weights,
        "--image-size",
        IMAGE_SIZE,
        "--epochs",
        5000,
        "--finetune-epochs",
        1,
    )
    first, second = tmp_path / "first", tmp_path / "second"
    with edgetl_process(first, "finetune", parts, "-o", run.path, *options) as process:
        wait_for(run.checkpoint.exists, process, first)
        for arguments in (
            ("finetune", parts, "-o", run.path, "--force", *options),
            ("finetune", "--resume", run.path),
        ):
            result = forked(*arguments)
            assert result.returncode == 1
            assert "Another process trains in" in result.stderr
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(100)
        assert process.exitcode == 130
    assert f"edgetl finetune --resume {run.path}" in (first / "err").read_text()
    epochs = len(run.history.read_text().splitlines())
    assert epochs < 5000
    with edgetl_process(second, "finetune", "--resume", run.path) as process:
        wait_for(lambda: len(run.history.read_text().splitlines()) > epochs, process, second)
    numbers = [
        json.loads(line)["epoch"]
        for line in run.history.read_text().splitlines()
        if line.endswith("}")
    ]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > epochs
    rejected = forked("finetune", "--resume", run.path, "--lr", 0.1)
    assert rejected.returncode == 1
    assert "Remove --lr." in rejected.stderr


def test_finetune_requires_data_or_resume(forked: Run) -> None:
    result = forked("finetune")
    assert result.returncode == 1
    assert "Give a folder of images, or resume a run with --resume RUN" in result.stderr
