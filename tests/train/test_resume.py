"""A run that is killed goes on as if it had not been: real processes, killed for good, in the middle of everything."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError, DataError, RunError
from edgetl.core.paths import RunDirectory
from tests.conftest import ARCHITECTURE, IMAGE_SIZE, ROOT
from tests.helpers.forking import PROCESSES

Run = Callable[..., subprocess.CompletedProcess[str]]
RECIPES: dict[str, dict[str, Any]] = {
    "cached": {"epochs": 12, "finetune_epochs": 6},
    "streamed": {
        "epochs": 8, "finetune_epochs": 6, "cache_budget": 0, "mixup": 0.3, "cutmix": 0.5, "ema": 0.9, "weight_decay": 0.01,
        "clip_gradient": 1.0, "sampling": "balanced", "unfreeze": "2",
    },
}  # fmt: skip
KILLS = 10
"""At random moments, beside those at chosen ones."""


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _work(config: dict[str, Any], again: bool, death: tuple[str, float] | None) -> None:
    # In a process of its own: train, and save after every batch; die as it was told to.
    from edgetl.train import finetune, results
    from edgetl.train.common import progress
    from edgetl.train.engine import checkpoint, trainer

    saves = 0
    kind, when = death or ("", 0.0)

    def save(self: trainer.Trainer, epochs: Any) -> None:
        nonlocal saves
        if kind == "timer" and saves == 0:
            threading.Timer(when, _die).start()
        saves += 1
        self.save(epochs)
        if kind == "saved" and saves == when:
            _die()

    def half(tensors: Any, path: Path, metadata: Any = None) -> None:
        real(tensors, path, metadata)
        if kind == "half" and saves == when:
            os.truncate(path, path.stat().st_size // 2)
            _die()

    class Watching(progress.NullProgress):
        def on_features_computed(self, done: int, total: int) -> None:
            if kind == "prepared" and done >= when:
                _die()

        def on_files_checked(self, done: int, total: int) -> None:
            if kind == "files" and done >= when:
                _die()

    validations = 0

    def evaluate(*given: Any) -> Any:
        nonlocal validations
        validations += 1
        if validations == when:
            raise KeyboardInterrupt
        return real_evaluate(*given)

    if kind == "validation":
        real_evaluate, trainer.evaluate = trainer.evaluate, evaluate
    if kind == "plots":
        results.draw_plots = _die
    real, checkpoint.save_file = checkpoint.save_file, half  # type: ignore[assignment]
    if kind != "validation":
        trainer.Trainer.save_if_due = save  # type: ignore[method-assign]
    settings = FinetuneConfig.from_json(config)
    try:
        if again:
            assert settings.output is not None
            finetune.resume(RunDirectory(settings.output), Watching())
        else:
            finetune.finetune(settings, Watching())
    except KeyboardInterrupt:
        _die()


def leg(config: FinetuneConfig, again: bool, death: tuple[str, float] | None = None) -> bool:
    """Run until the end or the death; whether it came to the end."""
    process = PROCESSES.Process(target=_work, args=(config.to_json(), again, death))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def left(run: RunDirectory) -> dict[str, Any]:
    """What a run must leave, whichever way it came there; times are its own."""
    metrics = json.loads(run.metrics.read_text())
    timed = ("seconds", "elapsed", "images_per_second")
    history = [
        {name: value for name, value in json.loads(line).items() if name not in timed}
        for line in run.history.read_text().splitlines()
    ]
    return {
        "weights": run.weights.read_bytes(),
        "predictions": run.predictions.read_text(),
        "history": history,
        "metrics": {
            name: metrics[name] for name in ("train", "val", "best_epoch", "ended", "parameters")
        },
        "files": sorted(path.name for path in run.path.iterdir()),
    }


@pytest.fixture(params=RECIPES)
def config(
    request: pytest.FixtureRequest, parts: Path, random_weights: Path, tmp_path: Path
) -> FinetuneConfig:
    return FinetuneConfig(
        parts, tmp_path / "run", ARCHITECTURE, str(random_weights), IMAGE_SIZE, device="cpu", precision="fp32", workers=0, seed=3,
        **RECIPES[request.param],
    )  # fmt: skip


def test_interrupted_in_validation_it_ends_in_the_same_bytes(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    whole = replace(config, output=tmp_path / "whole")
    assert leg(whole, again=False)
    assert not leg(config, again=False, death=("validation", 3))
    run = RunDirectory(tmp_path / "run")
    assert run.checkpoint.exists()
    assert len(run.history.read_text().splitlines()) == 2
    assert leg(config, again=True)
    assert left(run) == left(RunDirectory(tmp_path / "whole"))


def test_killed_again_and_again_it_ends_in_the_same_bytes(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    whole = replace(config, output=tmp_path / "whole")
    assert leg(whole, again=False)
    for folder in (Path(os.environ["EDGETL_CACHE"]) / "activations").glob("*"):
        # The reference has filled it; killed while it is filled is what is wanted.
        folder.rename(tmp_path / folder.name)
    run = RunDirectory(tmp_path / "run")
    chosen: list[tuple[str, float]] = [
        ("prepared", 20),
        ("files", 1),
        ("half", 1),
        ("saved", 2),
        ("half", 3),
    ]
    generator = random.Random(0)
    moments = [("timer", generator.uniform(0, 0.1)) for _ in range(KILLS)]
    deaths = [*(chosen if config.cache_budget != 0 else chosen[1:]), *moments]
    killed = 0
    for number, death in enumerate(deaths):
        if leg(config, again=number > 0 and run.config.exists(), death=death):
            break
        killed += 1
        assert not run.metrics.exists()
    if not run.metrics.exists():
        assert leg(config, again=True)
    assert killed >= len(deaths) - KILLS // 2, "most of the legs were to be killed"
    assert left(run) == left(RunDirectory(tmp_path / "whole"))
    assert not run.checkpoint.parent.exists()


def test_same_seed_same_weights_another_seed_others(config: FinetuneConfig, tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        assert leg(replace(config, output=tmp_path / name, seed=seed), again=False)
        runs[name] = RunDirectory(tmp_path / name).weights.read_bytes()
    assert runs["one"] == runs["two"]
    assert runs["one"] != runs["three"]


@pytest.fixture
def begun(parts: Path, random_weights: Path, tmp_path: Path) -> FinetuneConfig:
    """A run that was killed after its second checkpoint."""
    data = tmp_path / "data"
    import shutil

    shutil.copytree(parts, data)
    config = FinetuneConfig(
        data, tmp_path / "run", ARCHITECTURE, str(random_weights), IMAGE_SIZE, device="cpu", precision="fp32", workers=0, epochs=2,
        finetune_epochs=1,
    )  # fmt: skip
    assert not leg(config, again=False, death=("saved", 2))
    return config


def test_killed_before_its_pictures_it_draws_them(begun: FinetuneConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert not leg(begun, again=True, death=("plots", 1))
    figures = json.loads(run.metrics.read_text())
    assert not run.plots.exists()
    assert leg(begun, again=True)
    assert run.plots.is_dir()
    again = json.loads(run.metrics.read_text())
    assert again["val"] == figures["val"]
    assert not run.checkpoint.exists()


def test_what_a_budget_allowed_stays_planned(
    parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    config = FinetuneConfig(
        parts, tmp_path / "run", ARCHITECTURE, str(random_weights), IMAGE_SIZE, device="cpu", precision="fp32", workers=0, budget_s=60.0,
    )  # fmt: skip
    assert not leg(config, again=False, death=("saved", 3))
    planned = json.loads(RunDirectory(tmp_path / "run").config.read_text())["choices"]["epochs"]
    run = resumed(config)
    epochs = [json.loads(line)["phase"] for line in run.history.read_text().splitlines()]
    assert [epochs.count(phase) for phase in (1, 2)] == planned


def resumed(config: FinetuneConfig) -> RunDirectory:
    from edgetl.train.finetune import resume

    assert config.output is not None
    return resume(RunDirectory(config.output))


def test_what_changed_meanwhile_is_refused(begun: FinetuneConfig, tmp_path: Path) -> None:
    photo = begun.data / "train/good/good_0000.jpg"
    content = photo.read_bytes()
    photo.unlink()
    with pytest.raises(DataError, match="are not those that the run began with"):
        resumed(begun)
    photo.write_bytes(content)
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(
        json.dumps({**config, "weights": {**config["weights"], "sha256": "0" * 64}})
    )
    with pytest.raises(ConfigError, match="are not those that the run began with"):
        resumed(begun)
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    assert resumed(begun).metrics.exists()
    with pytest.raises(RunError, match="has finished"):
        resumed(begun)
    with pytest.raises(RunError, match="holds no run to go on with"):
        resumed(replace(begun, output=tmp_path / "nothing"))


def test_a_frozen_tensor_that_changed_is_named(begun: FinetuneConfig, tmp_path: Path) -> None:
    from edgetl.train.engine.checkpoint import read_checkpoint, write_checkpoint

    path = RunDirectory(tmp_path / "run").checkpoint
    state = read_checkpoint(path)
    name = "network/features.0.0.weight"
    state.tensors[name] = state.tensors[name] + 1e-3
    parts = {key.partition("/")[0] for key in state.tensors}
    write_checkpoint(path, {part: state.part_tensors(part) for part in parts}, state.metadata)
    with pytest.raises(
        RunError, match=re.escape("frozen tensors are not what they were (features.0.0.weight)")
    ):
        resumed(begun)


def test_a_damaged_checkpoint_is_refused(begun: FinetuneConfig, tmp_path: Path) -> None:
    path = RunDirectory(tmp_path / "run").checkpoint
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(RunError, match="cannot be gone on with"):
        resumed(begun)


@contextmanager
def process(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The program, started and not waited for."""
    code = "import edgetl.train.engine.trainer as r; r.CHECKPOINT_INTERVAL_S = 0.0; from edgetl.cli.app import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def wait_for(path: Path, started: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_a_second_process_and_going_on(
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
    with process("finetune", parts, "-o", run.path, *options) as started:
        wait_for(run.checkpoint, started)
        for second in (
            ("finetune", parts, "-o", run.path, "--force", *options),
            ("finetune", "--resume", run.path),
        ):
            done = forked(*second)
            assert done.returncode == 1
            assert "Another process trains in" in done.stderr
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=100)
    assert started.returncode == 130
    assert f"edgetl finetune --resume {run.path}" in said
    epochs = len(run.history.read_text().splitlines())
    assert epochs < 5000
    with process("finetune", "--resume", run.path) as started:
        wait_for(run.lock, started)
        time.sleep(0.1)
        deadline = time.monotonic() + 100
        while len(run.history.read_text().splitlines()) <= epochs and time.monotonic() < deadline:
            assert started.poll() is None, started.communicate()[1]
            time.sleep(0.02)
        started.kill()
    numbers = [
        json.loads(line)["epoch"]
        for line in run.history.read_text().splitlines()
        if line.endswith("}")
    ]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > epochs
    refused = forked("finetune", "--resume", run.path, "--lr", 0.1)
    assert refused.returncode == 1
    assert "leave --lr out" in refused.stderr


def test_neither_data_nor_a_run(forked: Run) -> None:
    done = forked("finetune")
    assert done.returncode == 1
    assert "Give DATA, a folder of images, or --resume RUN" in done.stderr
