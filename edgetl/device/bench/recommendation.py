"""Save the recommendation of a benchmark in the bundle."""

from __future__ import annotations

import os

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.saved_recommendation import (
    make_saved_recommendation,
    write_saved_recommendation,
)
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError
from edgetl.core.paths import BundleDirectory
from edgetl.device.runtime.session_choice import runtime_package_version


def check_bundle_writable(directory: BundleDirectory) -> None:
    """Check that a recommendation can be saved, before minutes are spent on measuring.

    Raises:
        BenchError: the bundle's folder is not writable.
    """
    if not os.access(directory.path, os.W_OK):
        raise BenchError(
            f"Cannot save a recommendation: {directory.path} is not writable. "
            "Copy the bundle, or leave out {save_recommendation}.",
            BenchConfig,
        )


def save_recommendation(result: BenchResult, directory: BundleDirectory) -> str:
    """Save the recommendation of a result in the bundle, and return a note that says so."""
    if result.is_emulated:
        return "No recommendation is saved: the processor is emulated."
    if result.recommendation is None:
        return "No recommendation is saved: nothing was timed."
    runtime = result.recommendation.latency.options.runtime
    recommendation = make_saved_recommendation(result, runtime_package_version(runtime))
    assert recommendation is not None
    try:
        write_saved_recommendation(directory, recommendation)
    except OSError as cause:
        return f"The recommendation could not be saved ({cause.strerror or cause})."
    return (
        f"Saved for predict on this CPU, in {directory.recommendation}: {recommendation.summary}."
    )
