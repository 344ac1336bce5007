"""Fine-tune an image classifier, export it to a verified ONNX bundle, and benchmark it on a device.

The commands are thin wrappers over these functions:

    check(data)                      folder of images -> DatasetReport           extra `train`
    finetune(config), resume(run)    FinetuneConfig -> RunDirectory              extra `train`
    export_run(run)                  run -> Bundle                               extra `train`
    export_architecture(name)        torchvision architecture -> Bundle          extra `train`
    compare(config, recipe)          CompareConfig -> Experiment                 extra `train`
    time_candidates(config)          CandidatesConfig -> CandidatesResult        extra `train`
    predict(bundle, images)          bundle -> Prediction of each image          onnxruntime
    verify(bundle)                   bundle -> VerifyResult of each variant      onnxruntime
    evaluate(config)                 EvaluateConfig -> EvaluationResult          onnxruntime
    bench(config)                    BenchConfig -> BenchResult                  onnxruntime
    loadgen(config)                  LoadgenConfig -> LoadgenResult              extra `loadgen`
    write_report(subjects)           run, bundle, experiment, results -> Report  extra `report`

`open_bundle`, `open_classifier`, `load_image` and `read_result` give access to single pieces. `bench`
needs PyTorch as well for its PyTorch rows.

Paths are `str` or `os.PathLike[str]`. RunDirectory, Bundle and Experiment are accepted wherever
their paths are. Errors that the user can fix are subclasses of EdgetlError.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult as BenchResult
    from edgetl.core.artifacts.bench_json import read_result as read_result
    from edgetl.core.artifacts.candidates import CandidatesResult as CandidatesResult
    from edgetl.core.artifacts.evaluation import EvaluationResult as EvaluationResult
    from edgetl.core.artifacts.evaluation import read_evaluation as read_evaluation
    from edgetl.core.artifacts.experiment import Experiment as Experiment
    from edgetl.core.artifacts.loadgen import LoadgenResult as LoadgenResult
    from edgetl.core.config.bench import BenchConfig as BenchConfig
    from edgetl.core.config.bench import Limits as Limits
    from edgetl.core.config.candidates import CandidatesConfig as CandidatesConfig
    from edgetl.core.config.compare import CompareConfig as CompareConfig
    from edgetl.core.config.evaluate import EvaluateConfig as EvaluateConfig
    from edgetl.core.config.evaluate import EvaluationLimits as EvaluationLimits
    from edgetl.core.config.evaluate import RecallLimit as RecallLimit
    from edgetl.core.config.export import ExportConfig as ExportConfig
    from edgetl.core.config.finetune import FinetuneConfig as FinetuneConfig
    from edgetl.core.config.loadgen import LoadgenConfig as LoadgenConfig
    from edgetl.core.errors import ArchitectureError as ArchitectureError
    from edgetl.core.errors import BenchError as BenchError
    from edgetl.core.errors import BundleError as BundleError
    from edgetl.core.errors import ConfigError as ConfigError
    from edgetl.core.errors import DataError as DataError
    from edgetl.core.errors import DecodeError as DecodeError
    from edgetl.core.errors import EdgetlError as EdgetlError
    from edgetl.core.errors import ExportError as ExportError
    from edgetl.core.errors import MissingPackageError as MissingPackageError
    from edgetl.core.errors import ParityError as ParityError
    from edgetl.core.errors import ProviderError as ProviderError
    from edgetl.core.errors import RunError as RunError
    from edgetl.core.errors import WeightsError as WeightsError
    from edgetl.core.paths import RunDirectory as RunDirectory
    from edgetl.core.progress import TrainingProgress as TrainingProgress
    from edgetl.device.bench.runner import bench as bench
    from edgetl.device.evaluation.evaluate import evaluate as evaluate
    from edgetl.device.loadgen.loadgen import loadgen as loadgen
    from edgetl.device.predict import Prediction as Prediction
    from edgetl.device.predict import predict as predict
    from edgetl.device.runtime.bundle import Bundle as Bundle
    from edgetl.device.runtime.bundle import open_bundle as open_bundle
    from edgetl.device.runtime.classifier import Classifier as Classifier
    from edgetl.device.runtime.classifier import open_classifier as open_classifier
    from edgetl.device.runtime.explanation import Explanation as Explanation
    from edgetl.device.runtime.images import load_image as load_image
    from edgetl.device.verify import VerifyResult as VerifyResult
    from edgetl.device.verify import verify as verify
    from edgetl.experiment.compare import compare as compare
    from edgetl.experiment.progress import ExperimentProgress as ExperimentProgress
    from edgetl.export.candidates import time_candidates as time_candidates
    from edgetl.export.exporter import export_architecture as export_architecture
    from edgetl.export.exporter import export_run as export_run
    from edgetl.report.report import Report as Report
    from edgetl.report.report import write_report as write_report
    from edgetl.train.check.dataset_check import DatasetReport as DatasetReport
    from edgetl.train.check.dataset_check import check as check
    from edgetl.train.finetune import finetune as finetune
    from edgetl.train.finetune import resume as resume

__version__ = "0.1.0"

__all__ = [
    "ArchitectureError",
    "BenchConfig",
    "BenchError",
    "BenchResult",
    "Bundle",
    "BundleError",
    "CandidatesConfig",
    "CandidatesResult",
    "Classifier",
    "CompareConfig",
    "ConfigError",
    "DataError",
    "DatasetReport",
    "DecodeError",
    "EdgetlError",
    "EvaluateConfig",
    "EvaluationLimits",
    "EvaluationResult",
    "Experiment",
    "ExperimentProgress",
    "Explanation",
    "ExportConfig",
    "ExportError",
    "FinetuneConfig",
    "Limits",
    "LoadgenConfig",
    "LoadgenResult",
    "MissingPackageError",
    "ParityError",
    "Prediction",
    "ProviderError",
    "RecallLimit",
    "Report",
    "RunDirectory",
    "RunError",
    "TrainingProgress",
    "VerifyResult",
    "WeightsError",
    "bench",
    "check",
    "compare",
    "evaluate",
    "export_architecture",
    "export_run",
    "finetune",
    "load_image",
    "loadgen",
    "open_bundle",
    "open_classifier",
    "predict",
    "read_evaluation",
    "read_result",
    "resume",
    "time_candidates",
    "verify",
    "write_report",
]

_ERRORS = "edgetl.core.errors"
_LAZY = {
    "ArchitectureError": _ERRORS,
    "BenchConfig": "edgetl.core.config.bench",
    "BenchError": _ERRORS,
    "BenchResult": "edgetl.core.artifacts.bench",
    "Bundle": "edgetl.device.runtime.bundle",
    "BundleError": _ERRORS,
    "CandidatesConfig": "edgetl.core.config.candidates",
    "CandidatesResult": "edgetl.core.artifacts.candidates",
    "Classifier": "edgetl.device.runtime.classifier",
    "CompareConfig": "edgetl.core.config.compare",
    "ConfigError": _ERRORS,
    "DataError": _ERRORS,
    "DatasetReport": "edgetl.train.check.dataset_check",
    "DecodeError": _ERRORS,
    "EdgetlError": _ERRORS,
    "EvaluateConfig": "edgetl.core.config.evaluate",
    "EvaluationLimits": "edgetl.core.config.evaluate",
    "EvaluationResult": "edgetl.core.artifacts.evaluation",
    "Experiment": "edgetl.core.artifacts.experiment",
    "ExperimentProgress": "edgetl.experiment.progress",
    "Explanation": "edgetl.device.runtime.explanation",
    "ExportConfig": "edgetl.core.config.export",
    "ExportError": _ERRORS,
    "FinetuneConfig": "edgetl.core.config.finetune",
    "Limits": "edgetl.core.config.bench",
    "LoadgenConfig": "edgetl.core.config.loadgen",
    "LoadgenResult": "edgetl.core.artifacts.loadgen",
    "MissingPackageError": _ERRORS,
    "ParityError": _ERRORS,
    "Prediction": "edgetl.device.predict",
    "ProviderError": _ERRORS,
    "RecallLimit": "edgetl.core.config.evaluate",
    "Report": "edgetl.report.report",
    "RunDirectory": "edgetl.core.paths",
    "RunError": _ERRORS,
    "TrainingProgress": "edgetl.core.progress",
    "VerifyResult": "edgetl.device.verify",
    "WeightsError": _ERRORS,
    "bench": "edgetl.device.bench.runner",
    "check": "edgetl.train.check.dataset_check",
    "compare": "edgetl.experiment.compare",
    "evaluate": "edgetl.device.evaluation.evaluate",
    "export_architecture": "edgetl.export.exporter",
    "export_run": "edgetl.export.exporter",
    "finetune": "edgetl.train.finetune",
    "load_image": "edgetl.device.runtime.images",
    "loadgen": "edgetl.device.loadgen.loadgen",
    "open_bundle": "edgetl.device.runtime.bundle",
    "open_classifier": "edgetl.device.runtime.classifier",
    "predict": "edgetl.device.predict",
    "read_evaluation": "edgetl.core.artifacts.evaluation",
    "read_result": "edgetl.core.artifacts.bench_json",
    "resume": "edgetl.train.finetune",
    "time_candidates": "edgetl.export.candidates",
    "verify": "edgetl.device.verify",
    "write_report": "edgetl.report.report",
}
"""Module of each public name."""

# onnxruntime 1.29 and newer sends telemetry unless this variable is set when it is imported. It is
# set here because any module may be the first to import onnxruntime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    # Names are imported on first use, so that `import edgetl` needs only the standard library.
    if name not in _LAZY:
        raise AttributeError(f"module 'edgetl' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
