"""What there is to measure at a path: a run, a bundle, or a lone ONNX file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from edgetl.core.config.bench import BenchConfig, BenchScope
from edgetl.core.config.torch_modes import TORCH_MODES
from edgetl.core.errors import BenchError, BundleError
from edgetl.core.files import sha256_file
from edgetl.core.formatting import pluralize
from edgetl.core.paths import RunDirectory
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.inputs import InputSpec
from edgetl.device.hardware.info import installed_version
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.providers import CUDA_PROVIDERS
from edgetl.device.runtime.session_modes import (
    DEFAULT_MODE,
    has_session_mode,
    providers_with_mode,
    variant_name,
)

NO_GOLDEN_REASON = "a lone ONNX file brings no reference images: its answers were not checked"


@dataclass(frozen=True)
class BenchCase:
    """One runtime with one model in one configuration: what a process opens."""

    runtime: str
    variant: str
    source: ModelSource
    file_sha256: str
    file_bytes: int
    scopes: tuple[BenchScope, ...]
    tolerance: float | None = None
    """Largest |logit difference| to the reference images' logits; None takes the bundle's."""
    relative_tolerance: float = 0.0
    """The same as a share of the largest |logit|; the larger of both holds."""

    @property
    def input_spec(self) -> InputSpec:
        """The kind and size of what it takes."""
        return self.source.input, self.source.size

    @property
    def name(self) -> str:
        """As people read it."""
        source = self.source
        provider = "" if source.provider == "cpu" else f" {source.provider}"
        batch = "" if source.batch == 1 else f" batch {source.batch}"
        return (
            f"{self.runtime} {self.variant}{provider}{batch} {pluralize(source.threads, 'thread')}"
        )


@dataclass(frozen=True)
class BenchTarget:
    """Everything at the path that is to be measured."""

    cases: tuple[BenchCase, ...]
    """The baselines, if any, first."""
    bundle: Bundle | None
    """None for a lone ONNX file."""
    model: Mapping[str, Any]
    results_folder: Path
    """The folder where results are kept."""
    notes: tuple[str, ...] = ()
    """What a reader must know about the choice."""


def torch_device(provider: str) -> str:
    """Where PyTorch runs beside an execution provider."""
    return "cuda" if provider in CUDA_PROVIDERS else "cpu"


def find_target(config: BenchConfig, threads: Sequence[int]) -> BenchTarget:
    """What `config` asks to measure, in every combination of threads, providers and batches.

    Raises:
        BundleError: no complete bundle, no such variant, a wrong hash, no such file.
        BenchError: the bundle of a run was exported from other weights, or options do not fit a lone file.
    """
    if config.target.suffix == ".onnx":
        return _find_onnx_file(config, threads)
    if config.inputs is not None:
        raise BenchError(
            "--inputs feeds a lone ONNX file; a bundle brings its own reference images. Leave it out."
        )
    _check_torch_modes(config)
    _check_session_modes(config)
    bundle = open_bundle(config.target)
    variants = [
        bundle.select_variant(name) for name in dict.fromkeys(config.variants)
    ] or bundle.variants
    contenders: list[BenchCase] = []
    fixed = [variant.name for variant in variants if variant.size is not None]
    if fixed and "model" not in config.scopes:
        variants = [variant for variant in variants if variant.size is None]
        if not variants:
            raise BenchError(
                f"{', '.join(fixed)} takes images of one size only and is measured in scope model: add it to --scope."
            )
    for variant in variants:
        source = ModelSource(
            bundle.variant_path(variant).resolve(),
            1,
            input=variant.input,
            size=variant.size,
            preprocessing=bundle.preprocessing,
            precision=variant.precision,
        )
        # The reference images have sizes of their own: only tensors of the fixed size are the same work.
        scopes: tuple[BenchScope, ...] = config.scopes if variant.size is None else ("model",)
        one = BenchCase(
            "onnxruntime",
            variant.name,
            source,
            variant.sha256,
            variant.bytes,
            scopes,
            variant.tolerance,
        )
        contenders += _expand_session_modes(one, config, threads)
    model = {"name": bundle.model, "run_id": bundle.run_id}
    photos = [scope for scope in dict.fromkeys(config.scopes) if scope != "model"]
    single = (
        [f"BenchScope {', '.join(photos)} takes one image a call: add 1 to --batch to measure it."]
        if photos and 1 not in config.batches
        else []
    )
    run, note = _find_run(config.target, bundle)
    left = (
        [
            f"BenchScope {', '.join(photos)} is left out for {', '.join(fixed)}: the reference images have other sizes."
        ]
        if photos and fixed
        else []
    )
    notes = (
        *single,
        *left,
        *_describe_skipped_modes(config),
        *([note] if note and config.torch_modes else []),
    )
    if run is None or note or not config.torch_modes:
        return BenchTarget(
            tuple(contenders), bundle, model, Path("bench") if run is None else run.bench, notes
        )
    baselines: list[BenchCase] = []
    devices = tuple(dict.fromkeys(map(torch_device, config.providers)))
    digest, size = sha256_file(run.weights), run.weights.stat().st_size
    for name in dict.fromkeys(config.torch_modes):
        mode = TORCH_MODES[name]
        source = ModelSource(
            run.path.resolve(),
            1,
            input=variants[0].input,
            preprocessing=bundle.preprocessing,
            settings={"mode": name},
        )
        one = BenchCase("pytorch", mode.variant, source, digest, size, config.scopes)
        for device in devices:
            if mode.gpu_only and device == "cpu":
                continue
            tolerant = replace(one, relative_tolerance=mode.relative_tolerance(device))
            baselines += _expand_combinations(tolerant, config, threads, (device,))
    return BenchTarget((*baselines, *contenders), bundle, model, run.bench, notes)


def _expand_session_modes(
    one: BenchCase, config: BenchConfig, threads: Sequence[int]
) -> Iterator[BenchCase]:
    """Yield an ONNX file in every session mode, on the providers that have it."""
    for mode in dict.fromkeys(config.session_modes):
        providers = [provider for provider in config.providers if has_session_mode(provider, mode)]
        settings = {} if mode == DEFAULT_MODE else {"session_mode": mode}
        yield from _expand_combinations(
            replace(
                one,
                variant=variant_name(one.variant, mode),
                source=replace(one.source, settings=settings),
            ),
            config,
            threads,
            providers,
        )


def _check_session_modes(config: BenchConfig) -> None:
    for mode in config.session_modes:
        if not any(has_session_mode(provider, mode) for provider in config.providers):
            raise BenchError(
                f"--session {mode} is an option of {', '.join(providers_with_mode(mode))} and not of {', '.join(config.providers)}: "
                f"add --provider {providers_with_mode(mode)[0]}, or leave it out."
            )


def _describe_skipped_modes(config: BenchConfig) -> list[str]:
    pairs = [
        (mode, provider)
        for mode in dict.fromkeys(config.session_modes)
        for provider in dict.fromkeys(config.providers)
    ]
    return [
        f"Session mode {mode} is left out on {provider}, which has no such option."
        for mode, provider in pairs
        if not has_session_mode(provider, mode)
    ]


def _check_torch_modes(config: BenchConfig) -> None:
    if "cuda" in map(torch_device, config.providers):
        return
    refused = [name for name in dict.fromkeys(config.torch_modes) if TORCH_MODES[name].gpu_only]
    if refused:
        raise BenchError(
            f"--pytorch {','.join(refused)} runs on a GPU only, and --provider names none: add --provider cuda, or leave it out."
        )


def _expand_combinations(
    one: BenchCase, config: BenchConfig, threads: Sequence[int], providers: Sequence[str]
) -> Iterator[BenchCase]:
    for provider, count, batch in product(
        dict.fromkeys(providers), dict.fromkeys(threads), dict.fromkeys(config.batches)
    ):
        # A photo is decoded and answered by itself; only tensors come in batches.
        scopes = one.scopes if batch == 1 else ("model",)
        yield replace(
            one,
            source=replace(one.source, provider=provider, threads=count, batch=batch),
            scopes=scopes,
        )


def _find_run(path: Path, bundle: Bundle) -> tuple[RunDirectory | None, str]:
    """The run that the bundle came from, and why PyTorch cannot be measured (empty: it can)."""
    asked_for_run = RunDirectory.exists_at(path)
    folder = path if asked_for_run else bundle.directory.path.resolve().parent
    run = RunDirectory(folder)
    if not asked_for_run and not (run.config.is_file() and run.weights.is_file()):
        return (
            None,
            "PyTorch is not measured: the bundle lies without the run it came from. Give the run directory for a speed-up.",
        )
    run = RunDirectory.open(folder)
    if sha256_file(run.weights)[:12] != bundle.run_id:
        if asked_for_run:
            raise BenchError(
                f"The bundle in {path} was exported from other weights (run {bundle.run_id}). `edgetl export {path} --force` renews it."
            )
        return (
            None,
            f"PyTorch is not measured: the bundle comes from run {bundle.run_id}, not from the run directory around it.",
        )
    missing = [
        package
        for package in ("torch", "torchvision", "safetensors")
        if installed_version(package) is None
    ]
    if missing:
        return (
            run,
            f'PyTorch is not measured: {", ".join(missing)} not installed. `pip install "edgetl[train]"` adds the baseline.',
        )
    return run, ""


def _find_onnx_file(config: BenchConfig, threads: Sequence[int]) -> BenchTarget:
    path = config.target
    if not path.is_file():
        raise BundleError(
            f"No ONNX file at {path}. Give a run directory, a bundle, or an ONNX file."
        )
    if config.variants:
        raise BenchError(
            "--variant chooses within a bundle; a lone ONNX file has no variants. Leave it out."
        )
    if "model" not in config.scopes:
        raise BenchError(
            "Scopes image and file need a bundle's reference images; a lone ONNX file is measured in scope model."
        )
    if config.inputs is not None and config.batches != (1,):
        raise BenchError("--inputs says itself how many images a call takes; leave --batch out.")
    if config.inputs is not None and not config.inputs.is_file():
        raise BenchError(
            f"No file at {config.inputs}. --inputs takes a .npy file, or an .npz file with one array for each input."
        )
    _check_session_modes(config)
    left = [scope for scope in dict.fromkeys(config.scopes) if scope != "model"]
    notes = (
        [f"BenchScope {', '.join(left)} is left out: a lone ONNX file brings no images."]
        if left
        else []
    )
    notes += _describe_skipped_modes(config)
    if config.torch_modes not in ((), ("eager",)):
        notes.append("PyTorch is not measured: it needs the run directory that the file came from.")
    given = None if config.inputs is None else config.inputs.resolve()
    source = ModelSource(path.resolve(), 1, given=given)
    one = BenchCase(
        "onnxruntime", path.stem, source, sha256_file(path), path.stat().st_size, ("model",)
    )
    candidates = tuple(_expand_session_modes(one, config, threads))
    return BenchTarget(
        candidates, None, {"name": path.name, "run_id": None}, Path("bench"), tuple(notes)
    )
