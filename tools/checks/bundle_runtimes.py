"""Runtimes that a bundle has variants for, with their extras."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.core.artifacts.bundle import BundleRecord
from edgetl.core.registry import EXTRAS
from edgetl.core.runtimes import RUNTIMES


@dataclass(frozen=True)
class BundleRuntime:
    """Runtime with variants of its own in a bundle."""

    name: str
    extra: str
    fp32_variant: str
    """Variant whose labels equal those of ONNX Runtime's fp32; smaller ones may flip a label."""


def list_bundle_runtimes(bundle: BundleRecord) -> list[BundleRuntime]:
    """Return the runtimes of a bundle's variants, in the order of `RUNTIMES`."""
    fp32_variants = {
        variant.runtime: variant.name
        for variant in reversed(bundle.variants)
        if variant.precision == "fp32"
    }
    return [
        BundleRuntime(name, EXTRAS[runtime.module], fp32_variants[name])
        for name, runtime in RUNTIMES.items()
        if name in fp32_variants
    ]
