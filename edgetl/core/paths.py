"""Paths inside run directories, bundles and experiments."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.core.errors import BundleError, RunError

StrPath = str | os.PathLike[str]
"""Path argument of a public function. RunDirectory and Bundle are accepted as well."""

if TYPE_CHECKING:
    RequiredPath = StrPath

    class OptionalPath:
        """Type of a field that takes any path and holds a Path.

        Type checkers take the type of the constructor's parameter from `__set__`. They do so only
        for fields with a default, so a required field is a StrPath to them.
        """

        def __get__(self, instance: object, owner: type | None = None) -> Path | None: ...

        def __set__(self, instance: object, value: StrPath | None) -> None: ...

else:
    RequiredPath = Path
    OptionalPath = Path | None


@dataclass(frozen=True, init=False)
class RunDirectory:
    """Run directory, written by `edgetl finetune` and read by `export`, `bench` and `report`.

    It is accepted wherever a path is.
    """

    path: Path

    def __init__(self, path: StrPath) -> None:
        object.__setattr__(self, "path", Path(path))

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """Resolved configuration, classes, preprocessing and versions; written first."""
        return self.path / "config.json"

    @property
    def split(self) -> Path:
        """Table of all images with columns path, label and split."""
        return self.path / "split.csv"

    @property
    def rejected_files(self) -> Path:
        """Table of rejected files with columns path and reason."""
        return self.path / "rejected.csv"

    @property
    def weights(self) -> Path:
        """Weights of the best epoch."""
        return self.path / "weights.safetensors"

    @property
    def history(self) -> Path:
        """Metrics of each epoch, one JSON object a line."""
        return self.path / "history.jsonl"

    @property
    def metrics(self) -> Path:
        """Metrics of the finished run; written last, so it exists only if the run has finished."""
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        """Table of the best weights' predictions on the validation images.

        Columns: path, label, predicted, probability, label_probability.
        """
        return self.path / "predictions.csv"

    @property
    def test_predictions(self) -> Path:
        """Table like `predictions`, of the test images; only if there are any."""
        return self.path / "test_predictions.csv"

    @property
    def checkpoint(self) -> Path:
        """State for `edgetl finetune --resume`; removed when the run finishes."""
        return self.path / "checkpoint" / "state.safetensors"

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard, if requested."""
        return self.path / "tensorboard"

    @property
    def mlflow(self) -> Path:
        """Reference to the run in an MLflow store."""
        return self.path / "mlflow.json"

    @property
    def lock(self) -> Path:
        """Lock file of the training process."""
        return self.path / ".lock"

    @property
    def plots(self) -> Path:
        """Folder of curves.png, confusion_matrix.png and mistakes.png."""
        return self.path / "plots"

    @property
    def bundle(self) -> Path:
        """Default output of `edgetl export RUN`."""
        return self.path / "bundle"

    @property
    def bench(self) -> Path:
        """Folder of results of `edgetl bench RUN`."""
        return self.path / "bench"

    @property
    def evaluation(self) -> Path:
        """Folder of results of `edgetl evaluate RUN`."""
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        """Default output of `edgetl report RUN`."""
        return self.path / "report.html"

    @staticmethod
    def exists_at(path: Path) -> bool:
        """Return whether `path` is a run directory."""
        return (path / "config.json").is_file()

    @classmethod
    def open(cls, path: StrPath) -> RunDirectory:
        """Open an existing run that has weights.

        Raises:
            RunError: `path` is not a run directory, or training ended before the first epoch.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise RunError(
                f"Run directory {run} not found. `edgetl finetune DATA -o {run}` creates it."
            )
        if not run.config.is_file():
            raise RunError(
                f"{run} is not a run directory: it has no config.json. "
                "Give a folder that `edgetl finetune` wrote."
            )
        if not run.weights.is_file():
            raise RunError(
                f"{run} has no weights: training ended before the first epoch. "
                "Run `edgetl finetune` again with --force."
            )
        return run


@dataclass(frozen=True)
class BundleDirectory:
    """Bundle, written by `edgetl export` and deployed to devices."""

    path: Path

    @property
    def manifest(self) -> Path:
        """Labels, preprocessing, variants and hashes.

        It is written last, so it exists only if the bundle is complete.
        """
        return self.path / "bundle.json"

    @property
    def recommendation(self) -> Path:
        """Configuration that `edgetl bench --save-recommendation` recommends for one device.

        It is not part of the export, and no hash covers it.
        """
        return self.path / "recommendation.json"

    @property
    def golden(self) -> Path:
        """Folder of golden images and the PyTorch model's logits for them (golden.npz)."""
        return self.path / "golden"

    @property
    def golden_logits(self) -> Path:
        """PyTorch's logits for the golden images: files [n] and logits [n, classes]."""
        return self.golden / "golden.npz"

    @property
    def client(self) -> Path:
        """Stand-alone Python client; it needs numpy, Pillow and onnxruntime."""
        return self.path / "predict.py"

    def runtime_client(self, runtime: str) -> Path:
        """Return the path of the stand-alone Python client of another runtime."""
        return self.path / f"predict_{runtime}.py"

    @property
    def cpp_client(self) -> Path:
        """Stand-alone C++ client; it needs ONNX Runtime and OpenCV's imgcodecs.

        Bundles of older versions lack it.
        """
        return self.path / "predict.cpp"

    @property
    def model_card(self) -> Path:
        """Model card."""
        return self.path / "README.md"

    @property
    def web(self) -> Path:
        """Folder of the web page and its files, if requested."""
        return self.path / "web"

    def variant(self, name: str) -> Path:
        """Return the path of a variant's ONNX file."""
        return self.path / f"{name}.onnx"

    @staticmethod
    def exists_at(path: Path) -> bool:
        """Return whether `path` is a complete bundle."""
        return (path / "bundle.json").is_file()

    @classmethod
    def find(cls, path: Path) -> BundleDirectory:
        """Return the bundle at `path` or inside the run directory at `path`.

        Raises:
            BundleError: There is no bundle, or it is incomplete.
        """
        if cls.exists_at(path):
            return cls(path)
        if RunDirectory.exists_at(path):
            if cls.exists_at(RunDirectory(path).bundle):
                return cls(RunDirectory(path).bundle)
            raise BundleError(f"The run {path} has no bundle. `edgetl export {path}` creates it.")
        if not path.exists():
            raise BundleError(
                f"{path} not found. Give a bundle or a run; `edgetl export RUN` creates a bundle."
            )
        raise BundleError(
            f"{path} is not a complete bundle: it has no bundle.json. "
            "`edgetl export RUN` creates a bundle."
        )


@dataclass(frozen=True)
class ExperimentDirectory:
    """Folder of an experiment, written by `edgetl compare` and read by `report`."""

    path: Path

    @property
    def plan(self) -> Path:
        """All planned runs with their configurations; written first."""
        return self.path / "plan.json"

    @property
    def result(self) -> Path:
        """Results of the finished runs; rewritten after each run."""
        return self.path / "compare.json"

    @property
    def table(self) -> Path:
        """Tables of the results in Markdown."""
        return self.path / "compare.md"

    @property
    def report(self) -> Path:
        """HTML page of the results."""
        return self.path / "report.html"

    @property
    def candidates(self) -> Path:
        """Latencies of the architectures before training, if there is a latency budget."""
        return self.path / "candidates.json"

    @property
    def runs(self) -> Path:
        """Folder of run directories."""
        return self.path / "runs"

    @property
    def logs(self) -> Path:
        """Folder of the output of each process."""
        return self.path / "logs"

    @staticmethod
    def exists_at(path: Path) -> bool:
        """Return whether `path` is the folder of an experiment."""
        return (path / "plan.json").is_file()


def find_free_path(parent: Path, stem: str, suffix: str = "") -> Path:
    """Return the first of stem, stem-2, stem-3 ... with `suffix` that does not exist in `parent`."""
    stem = re.sub(r"[^\w.@-]+", "-", stem).strip("-.") or "run"
    candidate = parent / f"{stem}{suffix}"
    number = 1
    while candidate.exists():
        number += 1
        candidate = parent / f"{stem}-{number}{suffix}"
    return candidate
