"""A run's metrics.json, which exists once the run has finished, and the model it describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgetl.core.artifacts.measured_choices import BatchSizeResult, StepRunner
from edgetl.core.artifacts.run_config import (
    RUN_FILE_POLICY,
    RunConfiguration,
    WeightsInfo,
    read_run_configuration,
)
from edgetl.core.errors import RunError
from edgetl.core.files import read_json_as, sha256_file, write_json
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.statistics import ClassScore
from edgetl.core.typed_json import FieldError, in_json, to_json


@dataclass(frozen=True)
class TrainMetrics:
    """Metrics of the best weights on the training images, without augmentation."""

    images: int
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class HeldOutMetrics:
    """Metrics of the best weights on the validation or the test images."""

    images: int
    accuracy: float
    interval: tuple[float, float] = field(metadata=in_json(key="accuracy_ci95"))
    """95% interval of the accuracy."""
    top5_accuracy: float | None = None
    """None for up to five classes."""
    loss: float | None = None
    calibration_error: float | None = None
    macro_f1: float
    per_class: Mapping[str, ClassScore]


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of the model."""

    total: int
    trainable: int
    """Trainable parameters in the phase that trained the most."""


@dataclass(frozen=True)
class FinalModel:
    """The model that the metrics belong to, so that exports detect later changes."""

    weights_sha256: str
    """SHA-256 of weights.safetensors."""
    classes: tuple[str, ...]
    preprocessing: Preprocessing


@dataclass(frozen=True)
class InputDeviceReport:
    """Choice of the device that decodes and augments streamed training images."""

    device: Literal["cpu", "cuda"]
    images_per_second: Mapping[str, float] | None = field(
        default=None, metadata=in_json(omit_default=True)
    )
    """Throughput by device, if both were measured."""
    refused: str | None = field(default=None, metadata=in_json(omit_default=True))
    """Reason why the GPU cannot be used."""


@dataclass(frozen=True)
class FeatureReport:
    """Computation of the frozen blocks' outputs."""

    cache: Literal["none", "filled", "reused"] = "none"
    train_runtime: str | None = field(
        default=None, metadata=in_json(key="prefix", omit_default=True)
    )
    """Runtime for training images, such as `onnxruntime-fp32`; None without frozen blocks."""
    val_runtime: str | None = field(
        default=None, metadata=in_json(key="exact_prefix", omit_default=True)
    )
    """Runtime for validation images, in float32."""
    milliseconds: Mapping[str, float] | None = field(
        default=None, metadata=in_json(omit_default=True)
    )
    """Time per image of each timed runtime; empty if none was timed."""
    views: int | None = field(default=None, metadata=in_json(omit_default=True))
    """Cached views of each training image."""
    bytes: int | None = field(default=None, metadata=in_json(omit_default=True))
    """Size of the features that this run computed."""
    fill_seconds: float | None = field(default=None, metadata=in_json(omit_default=True))
    input: InputDeviceReport | None = field(default=None, metadata=in_json(omit_default=True))
    """None if there was nothing to choose."""


@dataclass(frozen=True)
class StepReport:
    """Execution of a phase's training steps."""

    runner: StepRunner
    milliseconds: Mapping[str, float]
    """Time of a forward and backward pass by runner; empty if nothing was timed."""
    reason: str
    """Reason why this runner was chosen."""


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """Content of metrics.json."""

    model: str
    classes: tuple[str, ...]
    train: TrainMetrics
    val: HeldOutMetrics | None
    """None without validation images."""
    test: HeldOutMetrics | None = field(default=None, metadata=in_json(omit_default=True))
    """Metrics on images that were used for nothing else; None without test images."""
    seconds: Mapping[str, float]
    """Duration `total` and its parts."""
    parameters: ParameterCounts
    device: str
    """Training device: `cpu` or the name of the GPU."""
    processes: int = 1
    precision: str
    """Precision of the last phase's training steps."""
    weights: WeightsInfo
    final: FinalModel | None = None
    """None in runs of older versions."""
    batch: BatchSizeResult | None = None
    """Result of `--batch-size auto`."""
    best_epoch: int
    stop_reason: str | None = field(default=None, metadata=in_json(key="ended"))
    frozen_blocks: FeatureReport = FeatureReport()
    steps: Mapping[str, StepReport] = field(default_factory=dict)
    """Reports by phase: `phase1`, `phase2`."""
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if "total" not in self.seconds:
            raise FieldError("seconds has no field 'total'")
        for split, metrics in (("val", self.val), ("test", self.test)):
            if metrics is not None and metrics.per_class.keys() != set(self.classes):
                raise FieldError(f"{split}.per_class does not match the classes")

    @property
    def gap(self) -> float | None:
        """Generalization gap: training minus validation accuracy."""
        return None if self.val is None else self.train.accuracy - self.val.accuracy

    def write(self, run: RunDirectory) -> None:
        """Write metrics.json."""
        write_json(run.metrics, to_json(self))


def read_metrics(run: RunDirectory) -> RunMetrics:
    """Read metrics.json of a run.

    Raises:
        RunError: The file is missing, because the run has not finished, or broken.
    """
    return read_json_as(RunMetrics, run.metrics, "The run's metrics", RUN_FILE_POLICY)


@dataclass(frozen=True)
class TrainedRun:
    """A run whose weights, classes and preprocessing are those that its metrics belong to."""

    directory: RunDirectory
    configuration: RunConfiguration
    metrics: RunMetrics | None
    """None if the run was interrupted after an epoch."""
    weights_sha256: str


def read_trained_run(run: RunDirectory) -> TrainedRun:
    """Read a run that has weights and check that its files belong together.

    Raises:
        RunError: A file is missing or broken, or was changed after the training.
    """
    metrics = read_metrics(run) if run.metrics.exists() else None
    configuration = read_run_configuration(run)
    try:
        digest = sha256_file(run.weights)
    except OSError as cause:
        raise RunError(
            f"Cannot read the weights {run.weights} ({cause.strerror}). Run finetune again."
        ) from cause
    model = FinalModel(digest, configuration.classes, configuration.preprocessing)
    final = None if metrics is None else metrics.final
    if final is not None and final != model:
        changed = f"{run.config} was changed after the training: its classes or its preprocessing"
        if final.weights_sha256 != digest:
            changed = f"{run.weights} was changed after the training: its SHA-256"
        raise RunError(
            f"{changed} does not match metrics.json. Restore the file, or run finetune again."
        )
    return TrainedRun(run, configuration, metrics, digest)
