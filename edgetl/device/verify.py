"""`edgetl verify`: check each variant of a bundle on this device with the golden images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.errors import BenchError, BundleError, ProviderError
from edgetl.core.paths import StrPath
from edgetl.core.progress import ProgressCallback, log_progress
from edgetl.core.registry import check_installed
from edgetl.core.runtimes import ONNXRUNTIME, RUNTIMES, is_installed
from edgetl.core.typed_json import in_json
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.job import GateReply, WorkerJob
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.worker_process import run_job
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.info import has_int8_dot_product
from edgetl.device.runtime.bundle import Bundle, UnreadableModelError, open_bundle
from edgetl.device.runtime.golden import GoldenOutputs, GoldenSet
from edgetl.device.runtime.session import check_provider


@dataclass(frozen=True)
class VerifyResult:
    """Result of one variant with one runtime and execution provider."""

    variant: str
    precision: str
    provider: str
    gate: GateResult
    advice: str = ""
    """Next step after a failure."""
    runtime: str = field(default=ONNXRUNTIME, metadata=in_json(omit_default=True))

    def __repr__(self) -> str:
        return f"VerifyResult({self.variant!r}, {self.provider!r}, passed={self.passed})"

    @property
    def passed(self) -> bool:
        """Whether the outputs match the reference."""
        return bool(self.gate.passed)


def verify(
    bundle: StrPath,
    variants: Sequence[str] = (),
    providers: Sequence[str] = ("cpu",),
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> list[VerifyResult]:
    """Run the golden images through every variant, each in a subprocess, and compare the outputs.

    Compared are the logits, the probabilities with the softmax of the logits, and the unknown
    scores with those of the exporting machine.

    A variant that crashes fails without affecting the others.

    Args:
        bundle: the bundle, or a run with a bundle.
        variants: variant names; if empty, all whose runtime is installed.
        providers: short names of execution providers.
        threads: intra-op threads; None uses all available cores.
        progress: called with each variant and provider before it runs.

    Returns:
        One result for each variant and provider.

    Raises:
        BundleError: a file is missing or altered, or there is no such variant.
        ProviderError: the installed onnxruntime lacks a provider.
    """
    opened = open_bundle(bundle)
    selected_variants = tuple(opened.select_variant(name) for name in dict.fromkeys(variants))
    selected_variants = selected_variants or tuple(
        variant for variant in opened.variants if is_installed(variant.runtime)
    )
    _check_installed(opened, selected_variants)
    if any(variant.runtime == ONNXRUNTIME for variant in selected_variants):
        for provider in providers:
            check_provider(provider)
    golden = opened.load_golden()
    # All files are checked before any is run, so that a badly copied bundle fails as a whole.
    files = {variant.name: _paths_or_error(opened, variant) for variant in selected_variants}
    opened.companion_files()
    report = progress or log_progress
    results: list[VerifyResult] = []
    combinations = [
        (variant, provider)
        for variant, provider in product(selected_variants, dict.fromkeys(providers))
        if variant.runtime == ONNXRUNTIME or provider == "cpu"
    ]
    with tempfile.TemporaryDirectory(prefix="edgetl-verify-") as folder:
        for variant, provider in combinations:
            report(f"{variant.name} on {provider}", len(results), len(combinations))
            results.append(
                _verify_variant(
                    opened,
                    variant,
                    files[variant.name],
                    provider,
                    golden,
                    threads or available_cores(),
                    Path(folder),
                )
            )
    return results


def _check_installed(bundle: Bundle, variants: Sequence[VariantRecord]) -> None:
    """Check that the runtimes of all variants are installed.

    Raises:
        MissingPackageError: one is not, or that of no variant is.
    """
    for variant in variants or bundle.variants:
        check_installed(variant.runtime)


def _paths_or_error(
    bundle: Bundle, variant: VariantRecord
) -> tuple[Path, ...] | UnreadableModelError:
    try:
        return bundle.variant_paths(variant)
    except UnreadableModelError as cause:
        return cause


def _verify_variant(
    bundle: Bundle,
    variant: VariantRecord,
    files: tuple[Path, ...] | UnreadableModelError,
    provider: str,
    golden: GoldenSet,
    threads: int,
    folder: Path,
) -> VerifyResult:
    if isinstance(files, UnreadableModelError):
        return VerifyResult(
            variant.name,
            variant.precision,
            provider,
            GateResult.failure(str(files)),
        )
    file, *extra_files = (path.resolve() for path in files)
    source = ModelSource(
        file,
        threads,
        provider=provider,
        input=variant.input,
        preprocessing=bundle.preprocessing,
        precision=variant.precision,
        size=variant.size,
        runtime=variant.runtime,
        extra_files=tuple(extra_files),
    )
    job = WorkerJob(
        "gate",
        variant.runtime,
        source,
        (),
        BenchProtocol(),
        files=tuple(path.resolve() for path in golden.files),
    )
    try:
        reply = run_job(job, folder, GateReply)
    except (BenchError, BundleError, ProviderError) as cause:
        gate = GateResult.failure(str(cause))
    else:
        outputs = GoldenOutputs.from_numbers(
            reply.golden_logits, reply.golden_probabilities, reply.golden_unknown_scores
        )
        gate = golden.check(variant, provider, outputs)
    advice = "" if gate.passed else " ".join(_failure_advice(variant, provider, gate))
    return VerifyResult(variant.name, variant.precision, provider, gate, advice, variant.runtime)


def _failure_advice(variant: VariantRecord, provider: str, gate: GateResult) -> Iterator[str]:
    if not gate.checked:
        return
    if variant.runtime != ONNXRUNTIME:
        yield f"Use another variant or another version of {RUNTIMES[variant.runtime].title};"
        yield "`edgetl doctor` lists the versions."
    elif variant.precision.startswith("int8") and provider == "cpu":
        if has_int8_dot_product():
            yield "An int8 file that is correct on one CPU can be wrong on another:"
            yield "kernels round and saturate differently."
        else:
            yield "This CPU sums 8-bit products in 16 bits (no VNNI, AMX or dot products),"
            yield "which saturates: an int8 file that is correct on a CPU with such instructions"
            yield "can be wrong here."
        yield "Use another variant, or export on a machine of this kind."
    else:
        yield "Use another provider or another onnxruntime version; `edgetl doctor` lists both."
