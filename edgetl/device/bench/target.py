"""What there is to measure at a path: a run, a bundle, or a lone ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.core.config import BenchConfig
from edgetl.core.errors import BenchError, BundleError
from edgetl.core.files import sha256_file
from edgetl.core.layout import RunDirectory
from edgetl.device.backends import Source
from edgetl.device.bundle import Bundle, open_bundle
from edgetl.device.facts import installed_version

NO_GOLDEN = "a lone ONNX file brings no reference images: its answers were not checked"


@dataclass(frozen=True)
class Candidate:
    """One runtime with one model: what a process opens."""

    runtime: str
    variant: str
    source: Source
    file_sha256: str
    file_bytes: int
    tolerance: float | None = None
    """Largest |logit difference| to the reference images' logits; None takes the bundle's."""

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{self.runtime} {self.variant}"


@dataclass(frozen=True)
class Target:
    """Everything at the path that is to be measured."""

    candidates: tuple[Candidate, ...]
    """The baseline, if any, first."""
    bundle: Bundle | None
    """None for a lone ONNX file."""
    model: Mapping[str, Any]
    results: Path
    """The folder where results are kept."""
    notes: tuple[str, ...] = ()
    """What a reader must know about the choice."""


def find_target(config: BenchConfig, threads: int) -> Target:
    """What `config` asks to measure.

    Raises:
        BundleError: no complete bundle, no such variant, a wrong hash, no such file.
        BenchError: the bundle of a run was exported from other weights, or options do not fit a lone file.
    """
    if config.target.suffix == ".onnx":
        return _lone_file(config, threads)
    bundle = open_bundle(config.target)
    variants = [bundle.variant(name) for name in dict.fromkeys(config.variants)] or bundle.variants
    contenders = []
    for variant in variants:
        source = Source(bundle.file(variant).resolve(), threads, config.provider, variant.input, bundle.preprocessing)
        contenders.append(Candidate("onnxruntime", variant.name, source, variant.sha256, variant.bytes, variant.tolerance))
    model = {"name": bundle.model, "run_id": bundle.run_id}
    run, note = _run_of(config.target, bundle)
    if run is None:
        return Target(tuple(contenders), bundle, model, Path("bench"), (note,))
    if note:
        return Target(tuple(contenders), bundle, model, run.bench, (note,))
    source = Source(run.path.resolve(), threads, config.provider, variants[0].input, bundle.preprocessing)
    baseline = Candidate("pytorch", "fp32", source, sha256_file(run.weights), run.weights.stat().st_size)
    return Target((baseline, *contenders), bundle, model, run.bench)


def _run_of(path: Path, bundle: Bundle) -> tuple[RunDirectory | None, str]:
    """The run that the bundle came from, and why PyTorch cannot be measured (empty: it can)."""
    asked_for_run = RunDirectory.is_one(path)
    folder = path if asked_for_run else bundle.directory.path.resolve().parent
    run = RunDirectory(folder)
    if not asked_for_run and not (run.config.is_file() and run.weights.is_file()):
        return None, "PyTorch is not measured: the bundle lies without the run it came from. Give the run directory for a speed-up."
    run = RunDirectory.open(folder)
    if sha256_file(run.weights)[:12] != bundle.run_id:
        if asked_for_run:
            raise BenchError(
                f"The bundle in {path} was exported from other weights (run {bundle.run_id}). `edgetl export {path} --force` renews it."
            )
        return None, f"PyTorch is not measured: the bundle comes from run {bundle.run_id}, not from the run directory around it."
    missing = [package for package in ("torch", "torchvision", "safetensors") if installed_version(package) is None]
    if missing:
        return run, f'PyTorch is not measured: {", ".join(missing)} not installed. `pip install "edgetl[train]"` adds the baseline.'
    return run, ""


def _lone_file(config: BenchConfig, threads: int) -> Target:
    path = config.target
    if not path.is_file():
        raise BundleError(f"No ONNX file at {path}. Give a run directory, a bundle, or an ONNX file.")
    if config.variants:
        raise BenchError("--variant chooses within a bundle; a lone ONNX file has no variants. Leave it out.")
    if "model" not in config.scopes:
        raise BenchError("Scope file needs a bundle's reference images; a lone ONNX file is measured in scope model.")
    notes = [] if config.scopes == ("model",) else ["Scope file is left out: a lone ONNX file brings no images."]
    source = Source(path.resolve(), threads, config.provider)
    candidate = Candidate("onnxruntime", path.stem, source, sha256_file(path), path.stat().st_size)
    return Target((candidate,), None, {"name": path.name, "run_id": None}, Path("bench"), tuple(notes))
