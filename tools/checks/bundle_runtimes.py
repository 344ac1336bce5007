"""List the runtimes that a bundle has variants for: python -m tools.checks.bundle_runtimes BUNDLE.

Each line has the runtime, the extra of edgetl that installs it, and its float32 variant.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.artifacts.bundle import BundleRecord
from edgetl.core.registry import EXTRAS
from edgetl.core.runtimes import RUNTIMES
from edgetl.device.runtime.bundle import open_bundle


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


if __name__ == "__main__":
    for runtime in list_bundle_runtimes(open_bundle(Path(sys.argv[1]))):
        print(runtime.name, runtime.extra, runtime.fp32_variant)
