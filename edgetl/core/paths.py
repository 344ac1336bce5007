"""The names inside a run directory and a bundle: written here once, used everywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.errors import BundleError, RunError


@dataclass(frozen=True)
class RunDirectory:
    """What `edgetl finetune` writes and `export`, `bench` and `report` read."""

    path: Path

    @property
    def config(self) -> Path:
        """Resolved configuration, classes, preprocessing, versions; written first."""
        return self.path / "config.json"

    @property
    def split(self) -> Path:
        """path,label,split of every image that was used."""
        return self.path / "split.csv"

    @property
    def rejected_files(self) -> Path:
        """path,reason of every file that was left out."""
        return self.path / "rejected.csv"

    @property
    def weights(self) -> Path:
        """The best epoch's weights."""
        return self.path / "weights.safetensors"

    @property
    def history(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "history.jsonl"

    @property
    def metrics(self) -> Path:
        """The finished run's figures; written last: present means finished."""
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        """path,label,predicted,probability,label_probability of every validation image, by the best weights."""
        return self.path / "predictions.csv"

    @property
    def checkpoint(self) -> Path:
        """All that `edgetl finetune --resume` goes on with; gone when the run has finished."""
        return self.path / "checkpoint" / "state.safetensors"

    @property
    def tensorboard(self) -> Path:
        """Event files, where they were asked for."""
        return self.path / "tensorboard"

    @property
    def mlflow(self) -> Path:
        """Which run of an MLflow store this is."""
        return self.path / "mlflow.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains."""
        return self.path / ".lock"

    @property
    def plots(self) -> Path:
        """curves.png, confusion_matrix.png, mistakes.png."""
        return self.path / "plots"

    @property
    def bundle(self) -> Path:
        """Where `edgetl export RUN` writes by default."""
        return self.path / "bundle"

    @property
    def bench(self) -> Path:
        """Where `edgetl bench RUN` keeps its results."""
        return self.path / "bench"

    @property
    def report(self) -> Path:
        """Where `edgetl report RUN` writes its page by default."""
        return self.path / "report.html"

    @staticmethod
    def exists_at(path: Path) -> bool:
        """Whether `path` is a run directory."""
        return (path / "config.json").is_file()

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run with weights in it.

        Raises:
            RunError: `path` is no run directory, or training ended before its first epoch.
        """
        run = cls(path)
        if not path.is_dir():
            raise RunError(
                f"No run directory at {path}. `edgetl finetune DATA -o {path}` makes one."
            )
        if not run.config.is_file():
            raise RunError(
                f"{path} is not a run directory: it has no config.json. Give the folder that finetune wrote."
            )
        if not run.weights.is_file():
            raise RunError(
                f"{path} has no weights yet: training ended before its first epoch. Run finetune again with --force."
            )
        return run


@dataclass(frozen=True)
class BundleDirectory:
    """What `edgetl export` writes and a device reads."""

    path: Path

    @property
    def manifest(self) -> Path:
        """Labels, preprocessing, variants, hashes; written last: present means complete."""
        return self.path / "bundle.json"

    @property
    def golden(self) -> Path:
        """Reference images and the PyTorch model's logits for them (golden.npz)."""
        return self.path / "golden"

    @property
    def golden_logits(self) -> Path:
        """Files [n] and logits [n, classes]."""
        return self.golden / "golden.npz"

    @property
    def client(self) -> Path:
        """A stand-alone client: numpy, Pillow, onnxruntime."""
        return self.path / "predict.py"

    @property
    def cpp_client(self) -> Path:
        """The same in C++: ONNX Runtime and OpenCV's imgcodecs; bundles from before it lack it."""
        return self.path / "predict.cpp"

    @property
    def model_card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def web(self) -> Path:
        """The page for browsers, with all that it needs; only where it was asked for."""
        return self.path / "web"

    def variant(self, name: str) -> Path:
        """The ONNX file of the variant `name`."""
        return self.path / f"{name}.onnx"

    @staticmethod
    def exists_at(path: Path) -> bool:
        """Whether `path` is a complete bundle."""
        return (path / "bundle.json").is_file()

    @classmethod
    def find(cls, path: Path) -> BundleDirectory:
        """The bundle at `path`, or the one inside the run directory at `path`.

        Raises:
            BundleError: there is none, or it is incomplete.
        """
        if cls.exists_at(path):
            return cls(path)
        if RunDirectory.exists_at(path):
            if cls.exists_at(RunDirectory(path).bundle):
                return cls(RunDirectory(path).bundle)
            raise BundleError(
                f"The run {path} has no bundle yet. `edgetl export {path}` writes it."
            )
        if not path.exists():
            raise BundleError(
                f"Nothing at {path}. Give a bundle or a run directory; `edgetl export RUN` writes a bundle."
            )
        raise BundleError(
            f"{path} is not a complete bundle: it has no bundle.json. `edgetl export RUN` writes one."
        )


@dataclass(frozen=True)
class ExperimentDirectory:
    """What `edgetl compare` writes and `report` reads."""

    path: Path

    @property
    def plan(self) -> Path:
        """Every run with its configuration; written first."""
        return self.path / "plan.json"

    @property
    def result(self) -> Path:
        """What the runs that ended so far have found; written anew after each."""
        return self.path / "compare.json"

    @property
    def table(self) -> Path:
        """The tables as Markdown."""
        return self.path / "compare.md"

    @property
    def report(self) -> Path:
        """Everything on one page."""
        return self.path / "report.html"

    @property
    def candidates(self) -> Path:
        """The networks timed before any was trained, where there is a latency budget."""
        return self.path / "candidates.json"

    @property
    def runs(self) -> Path:
        """One run directory a run."""
        return self.path / "runs"

    @property
    def logs(self) -> Path:
        """What each process said."""
        return self.path / "logs"

    @staticmethod
    def exists_at(path: Path) -> bool:
        """Whether `path` is an experiment's folder."""
        return (path / "plan.json").is_file()


def find_free_path(parent: Path, stem: str) -> Path:
    """The first of stem, stem-2, stem-3 ... that does not exist in `parent`."""
    stem = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "run"
    candidate, number = parent / stem, 1
    while candidate.exists():
        number += 1
        candidate = parent / f"{stem}-{number}"
    return candidate
