"""Choices by timing or free memory: recorded and reused, or fixed by `--deterministic`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgetl.core.artifacts.measured_choices import (
    AutoChoices,
    BatchSizeResult,
    FrozenBlockRuntimes,
    find_changed_choice_inputs,
)
from edgetl.core.artifacts.run_config import read_recorded_run, read_run_configuration
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError, MissingPackageError
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import TrainingProgress
from edgetl.core.typed_json import FieldError
from edgetl.train import setup
from edgetl.train.common import precision
from edgetl.train.common.run_choices import RunChoices
from edgetl.train.engine import phase_loop, split_model, step_precision, trainer
from edgetl.train.engine.cuda_graphs import CUDA_GRAPH, EAGER, autotune_forward
from edgetl.train.engine.trainer import Trainer
from edgetl.train.features import extractor
from edgetl.train.features.extractor import ExtractorChoice
from edgetl.train.finetune import finetune, resume
from tests.conftest import ARCHITECTURE

TORCH = ExtractorChoice("pytorch-fp32", "pytorch-fp32", {})
ONNX_RUNTIME = ExtractorChoice("onnxruntime-fp32", "onnxruntime-fp32", {})
CachedMeasurement = Callable[[Any, Any, Callable[[], Any]], Any]


class CachingProgress(TrainingProgress):
    def __init__(self) -> None:
        self.passes = 0

    def on_progress(self, step: str, done: int, total: int) -> None:
        self.passes += step == "running frozen blocks" and done == total


@pytest.fixture
def config(
    make_images: Callable[..., Path],
    random_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> FinetuneConfig:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    return FinetuneConfig(
        make_images("data", ["a", "b", "c"], count=8),
        tmp_path / "run",
        ARCHITECTURE,
        str(random_weights),
        32,
        device="cpu",
        epochs=2,
        finetune_epochs=1,
        batch_size=6,
        workers=0,
    )


def make_cached_measurement(
    frozen_blocks: ExtractorChoice, head: str, blocks: str
) -> CachedMeasurement:
    """Return a replacement of `cached_measurement` that prefers these choices."""

    def cached_measurement(kind: Any, facts: Any, _measure: object) -> Any:
        if "choice of" in facts:
            return frozen_blocks
        return kind(head if facts["training"] == "head" else blocks, {})

    return cached_measurement


def refuse(*_: object) -> Any:
    pytest.fail("a measurement was made")


def replace_measurements(monkeypatch: pytest.MonkeyPatch, measurement: CachedMeasurement) -> None:
    for module in (split_model, step_precision):
        monkeypatch.setattr(module, "cached_measurement", measurement)


def recorded_choices(run: RunDirectory) -> AutoChoices:
    return read_run_configuration(run).choices


def test_precision_of_every_phase_is_recorded(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # metrics.json has only the last phase's precision: runs that differ in the head's look equal.
    replace_measurements(monkeypatch, make_cached_measurement(TORCH, "bf16", "fp32"))
    run = finetune(config)
    choices = recorded_choices(run)
    assert json.loads(run.metrics.read_text())["precision"] == "fp32"
    assert choices.precision == {"1": "bf16", "2": "fp32"}
    assert choices.steps == {"1": "eager", "2": "eager"}
    assert (choices.device, choices.threads, choices.cached, choices.views) == ("cpu", 1, True, 3)
    assert list(choices.frozen_blocks.values()) == [
        FrozenBlockRuntimes("pytorch-fp32", "pytorch-fp32")
    ]


def test_finetune_reuses_recorded_choices(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_measurements(monkeypatch, make_cached_measurement(ONNX_RUNTIME, "bf16", "bf16"))
    first = finetune(config)
    replace_measurements(monkeypatch, make_cached_measurement(TORCH, "fp32", "fp32"))
    monkeypatch.setattr(setup, "free_memory_bytes", lambda: 4_000_000)
    assert (
        finetune(replace(config, output=tmp_path / "measured")).weights.read_bytes()
        != first.weights.read_bytes()
    )

    replace_measurements(monkeypatch, refuse)
    again = read_recorded_run(first.config)
    run = finetune(replace(again.config, output=tmp_path / "again"), choices=again.choices)
    assert run.weights.read_bytes() == first.weights.read_bytes()
    assert recorded_choices(run) == recorded_choices(first)


def test_resume_reuses_recorded_choices(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_measurements(monkeypatch, make_cached_measurement(ONNX_RUNTIME, "bf16", "fp32"))
    monkeypatch.setattr(setup, "free_memory_bytes", lambda: 2**34)
    uninterrupted = finetune(replace(config, output=tmp_path / "uninterrupted"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_INTERVAL_S", 0.0)
        patch.setattr(Trainer, "load_best", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    replace_measurements(monkeypatch, make_cached_measurement(TORCH, "fp32", "bf16"))
    run = resume(RunDirectory(tmp_path / "run"))
    assert run.weights.read_bytes() == uninterrupted.weights.read_bytes()
    assert recorded_choices(run) == recorded_choices(uninterrupted)


def test_deterministic_measures_nothing(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_measurements(monkeypatch, refuse)
    (tmp_path / "cache").write_text("a file where the folder would be")
    weights = []
    for number, free in enumerate((2**34, 4_000_000)):
        monkeypatch.setattr(setup, "free_memory_bytes", lambda free=free: free)
        run = finetune(replace(config, output=tmp_path / str(number), deterministic=True))
        weights.append(run.weights.read_bytes())
        assert recorded_choices(run).precision == {"1": "fp32", "2": "fp32"}
        assert recorded_choices(run).views == 3
        assert {blocks.fast for blocks in recorded_choices(run).frozen_blocks.values()} == {
            "pytorch-fp32"
        }
    assert weights[0] == weights[1]


def test_free_memory_is_recorded_as_cache_budget(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_measurements(monkeypatch, make_cached_measurement(TORCH, "fp32", "fp32"))
    monkeypatch.setattr(setup, "free_memory_bytes", lambda: 10_000)
    first = finetune(config)
    assert recorded_choices(first).cached is False
    monkeypatch.setattr(setup, "free_memory_bytes", lambda: 2**34)
    again = read_recorded_run(first.config)
    run = finetune(replace(again.config, output=tmp_path / "again"), choices=again.choices)
    assert recorded_choices(run).cached is False
    assert run.weights.read_bytes() == first.weights.read_bytes()


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_features_of_another_thread_count_are_not_used(
    config: FinetuneConfig, tmp_path: Path, two_threads: None
) -> None:
    config = replace(config, precision="fp32", deterministic=True)
    first = finetune(config)
    assert recorded_choices(first).threads == 2
    torch.set_num_threads(1)
    progress = CachingProgress()
    finetune(replace(config, output=tmp_path / "one"), progress)
    assert progress.passes == 1
    again = read_recorded_run(first.config)
    progress = CachingProgress()
    run = finetune(replace(again.config, output=tmp_path / "again"), progress, again.choices)
    assert progress.passes == 0
    assert run.weights.read_bytes() == first.weights.read_bytes()
    assert torch.get_num_threads() == 1, "restored after the run"


class AnyCut(dict[str, FrozenBlockRuntimes]):
    """The same runtimes for every cut."""

    def get(self, key: str, default: Any = None) -> Any:
        return self["any"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (AutoChoices(precision={"1": "bf16"}), "bf16 in phase 1"),
        (
            AutoChoices(
                frozen_blocks=AnyCut(
                    any=FrozenBlockRuntimes("onnxruntime-fp32", "onnxruntime-fp32")
                )
            ),
            "onnxruntime is not installed",
        ),
        (
            AutoChoices(
                frozen_blocks=AnyCut(any=FrozenBlockRuntimes("pytorch-bf16", "pytorch-fp32"))
            ),
            "pytorch-bf16 for its frozen blocks",
        ),
        (AutoChoices(cached=True, views=3, cache_budget=1000), "3 cached views"),
        (AutoChoices(steps={"1": "cuda-graph"}), "CUDA graphs in phase 1"),
        (AutoChoices(epochs=(1,)), "The recorded epochs are for 1 phases"),
    ],
)
def test_finetune_rejects_unavailable_recorded_choices(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, choices: AutoChoices, message: str
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)

    def make_available_extractor(name: str, *arguments: Any) -> Any:
        if name.startswith("onnxruntime") and choices.frozen_blocks:
            raise MissingPackageError("onnxruntime is not installed.")
        return extractor.make_extractor(name, *arguments)

    monkeypatch.setattr(split_model, "make_extractor", make_available_extractor)
    with pytest.raises(ConfigError, match=message):
        finetune(config, choices=choices)
    assert config.output is not None
    assert not config.output.exists()


def test_autotune_forward_does_not_time_recorded_runner() -> None:
    network = torch.nn.Linear(2, 2)
    batch = ((torch.zeros(4, 2),), torch.zeros(4, dtype=torch.int64))
    plain = SimpleNamespace()
    forward, report = autotune_forward(
        network, network, network, batch, plain, {}, refuse, recorded=EAGER
    )  # type: ignore[arg-type]
    assert (forward, report.runner) == (network, EAGER)
    _, report = autotune_forward(
        network, network, network, batch, plain, {}, lambda *_: network, recorded=CUDA_GRAPH
    )  # type: ignore[arg-type]
    assert (report.runner, report.milliseconds) == (CUDA_GRAPH, {})


def test_early_end_of_budget_is_recorded_and_reused(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_measurements(monkeypatch, make_cached_measurement(TORCH, "fp32", "fp32"))
    original = phase_loop.PhaseLoop.finish_epoch

    def slow(self: phase_loop.PhaseLoop, is_best: bool, seconds: float) -> None:
        original(self, is_best, 1e6)  # no further epoch fits

    with monkeypatch.context() as patch:
        patch.setattr(phase_loop.PhaseLoop, "finish_epoch", slow)
        first = finetune(replace(config, budget_s=60.0))
    choices = recorded_choices(first)
    assert choices.ended_after == {"1": 1, "2": 1}
    assert choices.epochs is not None
    again = read_recorded_run(first.config)
    run = finetune(replace(again.config, output=tmp_path / "again"), choices=again.choices)
    assert run.weights.read_bytes() == first.weights.read_bytes()
    assert len(run.history.read_text().splitlines()) == 2


def test_batch_size_is_fixed_or_reused(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "autotune_batch_size", refuse)
    config = replace(config, batch_size="auto", precision="fp32", epochs=1, finetune_epochs=0)
    fixed = finetune(replace(config, deterministic=True))
    assert recorded_choices(fixed).batch == BatchSizeResult(16, 16)
    again = finetune(
        replace(config, output=tmp_path / "again"),
        choices=AutoChoices(batch=BatchSizeResult(8, 16)),
    )
    assert json.loads(again.config.read_text())["config"]["batch_size"] == 8


def test_new_choices_are_written_once() -> None:
    written: list[AutoChoices] = []
    run_choices = RunChoices(AutoChoices(threads=2))
    run_choices.on_change = written.append
    run_choices.record(threads=2)
    run_choices.record_entry("steps", "1", "eager")
    run_choices.record_entry("steps", "2", "eager")
    assert [choices.steps for choices in written] == [{"1": "eager"}, {"1": "eager", "2": "eager"}]
    assert run_choices.recorded == AutoChoices(threads=2)


def test_find_changed_choice_inputs_lists_fields() -> None:
    config = FinetuneConfig(Path("data"))
    assert (
        find_changed_choice_inputs(config, replace(config, seed=3, lr=0.1, output=Path("other")))
        == []
    )
    assert find_changed_choice_inputs(config, replace(config, precision="fp32", views=5)) == [
        "views",
        "precision",
    ]


@pytest.mark.parametrize(
    "section",
    [
        {"threads": "two"},
        {"precision": {"1": "fp8"}},
        {"unheard": 1},
        [1],
        {"views": 10**9},
        {"epochs": [3, -1]},
        {"threads": 0},
        {"batch": {"batch_size": 0, "usual": 16}},
    ],
)
def test_damaged_choices_are_rejected(section: Any) -> None:
    with pytest.raises(FieldError, match="choices"):
        AutoChoices.from_json(section)


def test_config_rejects_budget_with_deterministic() -> None:
    with pytest.raises(ConfigError, match="deterministic=True excludes"):
        FinetuneConfig(Path("data"), budget_s=60.0, deterministic=True)
