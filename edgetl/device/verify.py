"""`edgetl verify`: whether each variant of a bundle answers on this device as it was proven to, by its reference images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.core.errors import BenchError, BundleError, ProviderError
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.job import WorkerJob
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.worker_process import run_job
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.info import has_int8_dot_product
from edgetl.device.runtime.bundle import Bundle, UnreadableModelError, Variant
from edgetl.device.runtime.golden import GoldenSet, check_logits, gate_tolerance
from edgetl.device.runtime.session import check_provider


@dataclass(frozen=True)
class VerifyResult:
    """One variant through one execution provider."""

    variant: str
    precision: str
    provider: str
    gate: dict[str, Any]
    """See `edgetl.device.runtime.golden.judge_answers`; without figures where the variant could not be run."""
    advice: str = ""
    """What to do about a failure."""

    @property
    def passed(self) -> bool:
        """Whether the answers are those that were proven."""
        return bool(self.gate["passed"])

    def to_json(self) -> dict[str, Any]:
        """For `edgetl verify --json`."""
        return {
            "variant": self.variant,
            "precision": self.precision,
            "provider": self.provider,
            "gate": self.gate,
            "advice": self.advice,
        }


def verify(
    bundle: Bundle,
    variants: Sequence[str] = (),
    providers: Sequence[str] = ("cpu",),
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[VerifyResult]:
    """Put the reference images through every variant, each in a process of its own: a crash is that variant's failure.

    Args:
        variants: names; none takes all.
        threads: intra-op threads; None takes the cores available.
        progress: called with what begins.

    Raises:
        BundleError: a file is missing or altered, or there is no such variant.
        ProviderError: a provider that this onnxruntime does not have.
    """
    chosen = [bundle.select_variant(name) for name in dict.fromkeys(variants)] or bundle.variants
    for provider in providers:
        check_provider(provider)
    golden = bundle.load_golden()
    # Every file before any is run: a bundle that was copied badly is refused as a whole.
    files = {variant.name: _path_or_error(bundle, variant) for variant in chosen}
    bundle.companion_files()
    with tempfile.TemporaryDirectory(prefix="edgetl-verify-") as folder:
        return [
            _verify_variant(
                bundle,
                variant,
                files[variant.name],
                provider,
                golden,
                threads or available_cores(),
                Path(folder),
                progress,
            )
            for variant in chosen
            for provider in dict.fromkeys(providers)
        ]


def _path_or_error(bundle: Bundle, variant: Variant) -> Path | UnreadableModelError:
    try:
        return bundle.variant_path(variant)
    except UnreadableModelError as cause:
        return cause


def _verify_variant(
    bundle: Bundle,
    variant: Variant,
    file: Path | UnreadableModelError,
    provider: str,
    golden: GoldenSet,
    threads: int,
    folder: Path,
    progress: Callable[[str], None] | None,
) -> VerifyResult:
    if progress:
        progress(f"{variant.name} on {provider}")
    if isinstance(file, UnreadableModelError):
        return VerifyResult(
            variant.name,
            variant.precision,
            provider,
            {"checked": False, "passed": False, "reason": str(file)},
        )
    source = ModelSource(
        file.resolve(),
        threads,
        provider=provider,
        input=variant.input,
        preprocessing=bundle.preprocessing,
        precision=variant.precision,
        size=variant.size,
    )
    job = WorkerJob(
        "gate",
        "onnxruntime",
        source,
        (),
        BenchProtocol(),
        files=tuple(path.resolve() for path in golden.files),
    )
    try:
        logits = np.asarray(run_job(job, folder)["golden_logits"], np.float64)
    except (BenchError, BundleError, ProviderError) as cause:
        gate: dict[str, Any] = {"checked": False, "passed": False, "reason": str(cause)}
    else:
        reference = golden.logits_for(variant)
        tolerance = gate_tolerance(reference, provider, golden.tolerance, variant.tolerance)
        gate = check_logits(logits, reference, tolerance)
    advice = "" if gate["passed"] else " ".join(_failure_advice(variant, provider, gate))
    return VerifyResult(variant.name, variant.precision, provider, gate, advice)


def _failure_advice(variant: Variant, provider: str, gate: dict[str, Any]) -> Iterator[str]:
    if not gate["checked"]:
        return
    if variant.precision.startswith("int8") and provider == "cpu":
        if has_int8_dot_product():
            yield "An int8 file that is right on one CPU can be wrong on another: kernels round and saturate in ways of their own."
        else:
            yield "This CPU sums products of 8 bits in 16 (no VNNI, AMX or dot products), which saturates:"
            yield "an int8 file that is right where there are such instructions can be wrong here."
        yield "Take another variant, or export on a machine of this kind."
    else:
        yield "Take another provider or another onnxruntime; `edgetl doctor` shows what is here."
