"""Benchmark targets: a run, a bundle or a lone ONNX file, and its cases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from edgetl.core.artifacts.bench import BenchedModel
from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.config.bench import ALL_RUNTIMES, BenchConfig, BenchScope
from edgetl.core.config.export import InputKind
from edgetl.core.config.session_modes import (
    ALL_MODES,
    DEFAULT_MODE,
    find_mode_obstacle,
    list_session_modes,
    mode_options,
    variant_name,
)
from edgetl.core.config.torch_modes import TORCH_MODES
from edgetl.core.errors import BenchError, BundleError
from edgetl.core.files import sha256_file
from edgetl.core.formatting import pluralize
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.registry import convert_import_error
from edgetl.core.runtimes import (
    ONNXRUNTIME,
    RUNTIMES,
    check_runtime,
    installed_runtimes,
    is_installed,
)
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.inputs import InputSpec
from edgetl.device.hardware.info import cpu_flags, installed_version
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.providers import CUDA_PROVIDERS

NO_GOLDEN_REASON = "a lone ONNX file has no golden images: its logits were not checked"


@dataclass(frozen=True)
class BenchCase:
    """One runtime with one model in one configuration, opened in one process."""

    runtime: str
    variant: str
    source: ModelSource
    file_sha256: str
    file_bytes: int
    scopes: tuple[BenchScope, ...]
    record: VariantRecord | None = None
    """Variant of the bundle; None for PyTorch and for a lone ONNX file."""
    relative_tolerance: float = 0.0
    """Allowed |logit difference| as a share of the largest |logit|, beside absolute ones."""

    @property
    def input_spec(self) -> InputSpec:
        """Input kind and fixed image size of the model."""
        return self.source.input, self.source.size

    @property
    def name(self) -> str:
        """Human-readable name of the configuration."""
        source = self.source
        provider = "" if source.provider == "cpu" else f" {source.provider}"
        batch = "" if source.batch == 1 else f" batch {source.batch}"
        threads = pluralize(source.threads, "thread")
        return f"{self.runtime} {self.variant}{provider}{batch} {threads}"


@dataclass(frozen=True)
class BenchTarget:
    """The cases to measure, with the model they come from."""

    cases: tuple[BenchCase, ...]
    """Cases, PyTorch baselines first."""
    bundle: Bundle | None
    """None for a lone ONNX file."""
    model: BenchedModel
    results_folder: Path
    """Default folder of results."""
    notes: tuple[str, ...] = ()
    """Notes on what is not measured."""

    @property
    def input_specs(self) -> set[InputSpec]:
        """Input kinds and sizes of all cases."""
        return {case.input_spec for case in self.cases}


def torch_device(provider: str) -> str:
    """Return the PyTorch device that is compared with an execution provider."""
    return "cuda" if provider in CUDA_PROVIDERS else "cpu"


def find_target(config: BenchConfig, threads: Sequence[int]) -> BenchTarget:
    """Return the cases that `config` selects, for all combinations of threads, providers, batches.

    Raises:
        BundleError: a bundle, variant or file is not found, or a hash does not match.
        BenchError: the run's bundle was exported from other weights, or options do not fit the
            target.
    """
    if Path(config.target).suffix == ".onnx":
        return _find_onnx_file(config, threads)
    if config.inputs is not None:
        raise BenchError(
            "{inputs} needs a lone ONNX file: a bundle brings its own golden images. "
            "Leave out {inputs}.",
            BenchConfig,
        )
    _check_torch_modes(config)
    bundle = open_bundle(config.target)
    pairs, runtime_notes = _select_variants(bundle, config)
    fixed_size_names = [variant.name for _, variant in pairs if variant.size is not None]
    if fixed_size_names and "model" not in config.scopes:
        pairs = [(runtime, variant) for runtime, variant in pairs if variant.size is None]
        if not pairs:
            raise BenchError(
                f"{', '.join(fixed_size_names)} takes images of one size only, "
                "which needs scope model. Add model to {scopes}.",
                BenchConfig,
            )
    onnx_cases: list[BenchCase] = []
    for runtime, variant in pairs:
        case = _variant_case(bundle, variant, runtime, config.scopes)
        onnx_cases += _expand_session_modes(case, config, threads)
    run, weights_sha256, missing_torch_note = _find_run(Path(config.target), bundle)
    precisions = [variant.precision for runtime, variant in pairs if runtime == ONNXRUNTIME]
    notes = [
        *runtime_notes,
        *_describe_skipped_scopes(config, fixed_size_names),
        *_describe_skipped_modes(precisions, config, threads),
    ]
    if missing_torch_note and config.torch_modes:
        notes.append(missing_torch_note)
    torch_cases: list[BenchCase] = []
    if run is not None and not missing_torch_note:
        torch_cases = _list_torch_cases(
            run, weights_sha256, bundle.preprocessing, pairs[0][1].input, config, threads
        )
    return BenchTarget(
        cases=(*torch_cases, *onnx_cases),
        bundle=bundle,
        model=BenchedModel(bundle.model, bundle.run_id, bundle.manifest.max_accuracy_drop),
        results_folder=Path("bench") if run is None else run.bench,
        notes=tuple(notes),
    )


def _select_variants(
    bundle: Bundle, config: BenchConfig
) -> tuple[list[tuple[str, VariantRecord]], list[str]]:
    """Return the variants to measure, each with a runtime, and notes on what is left out.

    Raises:
        BundleError: there is no such variant, or a runtime has none.
        BenchError: a runtime is unknown, or none of the variants can be run here.
    """
    selected = [bundle.select_variant(name) for name in dict.fromkeys(config.variants)]
    runtimes = list(dict.fromkeys(config.runtimes))
    if ALL_RUNTIMES in runtimes:
        runtimes = installed_runtimes()
    for runtime in runtimes:
        check_runtime(runtime)
    notes: list[str] = []
    pairs: list[tuple[str, VariantRecord]] = []
    if not runtimes:
        pairs = [(variant.runtime, variant) for variant in selected or bundle.variants]
    for runtime in runtimes:
        try:
            variants = selected or bundle.variants_for(runtime)
            pairs += [(runtime, variant) for variant in variants if variant.runs_on(runtime)]
        except BundleError as cause:
            if config.runtimes != (ALL_RUNTIMES,):
                raise
            notes.append(f"{RUNTIMES[runtime].title} is not measured: {cause}")
    missing = list(dict.fromkeys(name for name, _ in pairs if not is_installed(name)))
    for runtime in missing:
        error = convert_import_error(ModuleNotFoundError(name=RUNTIMES[runtime].module))
        # Without a choice of runtimes, what runs here is measured.
        if runtime in runtimes or missing == list(dict.fromkeys(name for name, _ in pairs)):
            raise error
        notes.append(f"{RUNTIMES[runtime].title} is not measured: {error}")
    pairs = [(runtime, variant) for runtime, variant in pairs if runtime not in missing]
    if not pairs:
        names = ", ".join(variant.name for variant in selected)
        raise BenchError(
            f"{{runtimes}} {', '.join(runtimes)} runs none of the variants {names}. "
            "Leave out {variants} or {runtimes}.",
            BenchConfig,
        )
    pairs, npu_notes = _leave_out_npu_variants(pairs, config)
    return pairs, notes + npu_notes


def _leave_out_npu_variants(
    pairs: list[tuple[str, VariantRecord]], config: BenchConfig
) -> tuple[list[tuple[str, VariantRecord]], list[str]]:
    """Leave out variants for NPUs on the CPU, unless they were chosen by name."""
    names = ",".join(variant.name for _, variant in pairs if variant.split is not None)
    if not names or config.variants or set(config.providers) != {"cpu"}:
        return pairs, []
    note = (
        f"{names} is not measured: it is made for NPUs. Measure it with --provider, or on the CPU "
        f"with --variant {names}."
    )
    return [pair for pair in pairs if pair[1].split is None], [note]


def _variant_case(
    bundle: Bundle, variant: VariantRecord, runtime: str, scopes: tuple[BenchScope, ...]
) -> BenchCase:
    file, *extra_files = (path.resolve() for path in bundle.variant_paths(variant))
    source = ModelSource(
        file,
        1,
        input=variant.input,
        size=variant.size,
        preprocessing=bundle.preprocessing,
        precision=variant.precision,
        runtime=runtime,
        extra_files=tuple(extra_files),
    )
    # Golden images differ in size, so variants of a fixed size are only comparable in scope model.
    if variant.size is not None:
        scopes = ("model",)
    return BenchCase(
        runtime,
        variant.name,
        source,
        variant.sha256,
        variant.total_bytes,
        scopes,
        variant,
    )


def _list_torch_cases(
    run: RunDirectory,
    weights_sha256: str,
    preprocessing: Preprocessing,
    input_kind: InputKind,
    config: BenchConfig,
    threads: Sequence[int],
) -> list[BenchCase]:
    """Return the PyTorch baselines, in every mode and on every device."""
    cases: list[BenchCase] = []
    devices = tuple(dict.fromkeys(map(torch_device, config.providers)))
    size = run.weights.stat().st_size
    for name in dict.fromkeys(config.torch_modes):
        mode = TORCH_MODES[name]
        source = ModelSource(
            run.path.resolve(),
            1,
            input=input_kind,
            preprocessing=preprocessing,
            settings={"mode": name},
        )
        case = BenchCase("pytorch", mode.variant, source, weights_sha256, size, config.scopes)
        for device in devices:
            if mode.gpu_only and device == "cpu":
                continue
            device_case = replace(case, relative_tolerance=mode.relative_tolerance(device))
            cases += _expand_combinations(device_case, config, threads, (device,))
    return cases


def _describe_skipped_scopes(config: BenchConfig, fixed_size_names: Sequence[str]) -> list[str]:
    photo_scopes = [scope for scope in dict.fromkeys(config.scopes) if scope != "model"]
    notes = []
    if photo_scopes and 1 not in config.batches:
        notes.append(
            f"Scope {', '.join(photo_scopes)} takes one image per call. "
            "Add 1 to --batch to measure it."
        )
    if photo_scopes and fixed_size_names:
        notes.append(
            f"Scope {', '.join(photo_scopes)} is not measured for {', '.join(fixed_size_names)}: "
            "the golden images have other sizes."
        )
    return notes


def _expand_session_modes(
    case: BenchCase, config: BenchConfig, threads: Sequence[int]
) -> Iterator[BenchCase]:
    """Yield a case in every session mode, on the providers that support it."""
    if case.runtime != ONNXRUNTIME:
        yield from _expand_combinations(case, config, threads, ["cpu"])
        return
    flags = cpu_flags()
    for mode in list_session_modes(config.session_modes, config.providers):
        settings = {} if mode == DEFAULT_MODE else {"session_mode": mode}
        mode_case = replace(
            case,
            variant=variant_name(case.variant, mode),
            source=replace(case.source, settings=settings),
        )
        for expanded in _expand_combinations(mode_case, config, threads, config.providers):
            source = expanded.source
            provider, precision = source.provider, source.precision
            if find_mode_obstacle(provider, mode, source.threads, precision, flags) is None:
                tolerance = mode_options(provider, mode).relative_tolerance
                yield replace(expanded, relative_tolerance=tolerance)


def _describe_skipped_modes(
    precisions: Iterable[str | None], config: BenchConfig, threads: Sequence[int]
) -> list[str]:
    """Return notes on the requested session modes that are not measured.

    Args:
        precisions: precisions of the variants for ONNX Runtime.
        config: the options.
        threads: numbers of intra-op threads.

    Raises:
        BenchError: none of the modes can be measured.
    """
    flags = cpu_flags()
    modes = list_session_modes(config.session_modes, config.providers)
    obstacles = [
        (mode, find_mode_obstacle(provider, mode, count, precision, flags))
        for mode, provider, count, precision in product(
            modes, config.providers, threads, precisions
        )
    ]
    notes = [
        f"Session mode {mode} is not measured {obstacle}."
        for mode, obstacle in obstacles
        if obstacle
    ]
    if obstacles and all(obstacle for _, obstacle in obstacles):
        text = " ".join(dict.fromkeys(notes))
        raise BenchError(f"{text} Add default to {{session_modes}}.", BenchConfig)
    return [] if ALL_MODES in config.session_modes else list(dict.fromkeys(notes))


def _check_torch_modes(config: BenchConfig) -> None:
    if "cuda" in map(torch_device, config.providers):
        return
    gpu_modes = [name for name in dict.fromkeys(config.torch_modes) if TORCH_MODES[name].gpu_only]
    if gpu_modes:
        text = ",".join(gpu_modes)
        raise BenchError(
            f"{{torch_modes}} {text} needs a GPU provider. "
            f"Add {{providers}} cuda, or leave out {{torch_modes}} {text}.",
            BenchConfig,
        )


def _expand_combinations(
    case: BenchCase, config: BenchConfig, threads: Sequence[int], providers: Sequence[str]
) -> Iterator[BenchCase]:
    for provider, count, batch in product(
        dict.fromkeys(providers), dict.fromkeys(threads), dict.fromkeys(config.batches)
    ):
        # Photos are decoded one by one; only tensors come in batches.
        scopes = case.scopes if batch == 1 else ("model",)
        source = replace(case.source, provider=provider, threads=count, batch=batch)
        yield replace(case, source=source, scopes=scopes)


def _find_run(path: Path, bundle: Bundle) -> tuple[RunDirectory | None, str, str]:
    """Find the run that a bundle came from.

    Args:
        path: the bundle or its run directory.
        bundle: the bundle.

    Returns:
        The run, the SHA-256 of its weights, and why PyTorch cannot be measured, if so.
    """
    is_run = path != bundle.directory.path
    folder = path if is_run else bundle.directory.path.resolve().parent
    run = RunDirectory(folder)
    if not is_run and not (run.config.is_file() and run.weights.is_file()):
        note = (
            "PyTorch is not measured: the bundle is not in its run directory. "
            "Pass the run directory for a speed-up."
        )
        return None, "", note
    run = RunDirectory.open(folder)
    digest = sha256_file(run.weights)
    if digest[:12] != bundle.run_id:
        if is_run:
            raise BenchError(
                f"The bundle in {path} was exported from other weights (run {bundle.run_id}). "
                f"`edgetl export {path} --force` renews it."
            )
        note = (
            f"PyTorch is not measured: the bundle was exported from run {bundle.run_id}, "
            "not from the run directory around it."
        )
        return None, "", note
    packages = ("torch", "torchvision", "safetensors")
    missing = [package for package in packages if installed_version(package) is None]
    note = ""
    if missing:
        note = (
            f"PyTorch is not measured: {', '.join(missing)} not installed. "
            '`pip install "edgetl[train]"` adds the baseline.'
        )
    return run, digest, note


def _find_onnx_file(config: BenchConfig, threads: Sequence[int]) -> BenchTarget:
    path = Path(config.target)
    _check_onnx_file_options(config)
    photo_scopes = [scope for scope in dict.fromkeys(config.scopes) if scope != "model"]
    notes = []
    if photo_scopes:
        notes.append(
            f"Scope {', '.join(photo_scopes)} is not measured: a lone ONNX file has no images."
        )
    if config.torch_modes not in ((), ("eager",)):
        notes.append("PyTorch is not measured: it needs the run directory of the model.")
    input_file = None if config.inputs is None else config.inputs.resolve()
    source = ModelSource(path.resolve(), 1, input_file=input_file)
    notes += _describe_skipped_modes([None], config, threads)
    case = BenchCase(
        "onnxruntime", path.stem, source, sha256_file(path), path.stat().st_size, ("model",)
    )
    return BenchTarget(
        cases=tuple(_expand_session_modes(case, config, threads)),
        bundle=None,
        model=BenchedModel(path.name, None),
        results_folder=Path("bench"),
        notes=tuple(notes),
    )


def _check_onnx_file_options(config: BenchConfig) -> None:
    if not Path(config.target).is_file():
        raise BundleError(
            f"ONNX file not found: {config.target}. Pass a run directory, a bundle or an ONNX file."
        )
    if any(name not in (ONNXRUNTIME, ALL_RUNTIMES) for name in config.runtimes):
        raise BenchError(
            "{runtimes} other than onnxruntime needs a bundle, which has the check of their outputs. "
            "Leave out {runtimes}.",
            BenchConfig,
        )
    if config.variants:
        raise BenchError(
            "{variants} needs a bundle: a lone ONNX file has no variants. Leave out {variants}.",
            BenchConfig,
        )
    if "model" not in config.scopes:
        raise BenchError(
            "Scopes image and file need the golden images of a bundle. "
            "Use {scopes} model for a lone ONNX file.",
            BenchConfig,
        )
    if config.save_recommendation:
        raise BenchError(
            "{save_recommendation} needs a bundle, in which the recommendation is saved. "
            "Leave it out, or give a bundle.",
            BenchConfig,
        )
    if config.inputs is not None and config.batches != (1,):
        raise BenchError(
            "{batches} cannot be used with {inputs}, which determines the batch. Leave out {batches}.",
            BenchConfig,
        )
    if config.inputs is not None and not config.inputs.is_file():
        raise BenchError(
            f"Input file not found: {config.inputs}. "
            "{inputs} takes a .npy file, or a .npz file with one array per input.",
            BenchConfig,
        )
