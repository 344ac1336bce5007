"""Choice of variant, runtime and session options: the caller's, else the recommended ones."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import get_args

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.artifacts.saved_recommendation import (
    SavedRecommendation,
    read_saved_recommendation,
)
from edgetl.core.config.session_modes import (
    DEFAULT_MODE,
    SessionMode,
    find_mode_obstacle,
    mode_options,
)
from edgetl.core.errors import BundleError
from edgetl.core.runtimes import ONNXRUNTIME, RUNTIMES, is_installed
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.info import cpu_flags, cpu_name, installed_version
from edgetl.device.runtime.bundle import Bundle


@dataclass(frozen=True)
class SessionOptions:
    """The caller's choices; None where the caller did not choose."""

    variant: str | None = None
    provider: str | None = None
    threads: int | None = None
    runtime: str | None = None
    use_recommendation: bool = True
    """Whether the recommendation saved in the bundle applies if nothing else was chosen."""


@dataclass(frozen=True)
class SessionChoice:
    """A variant and how to run it."""

    variant: VariantRecord
    provider: str
    threads: int | None
    """None for all available cores."""
    runtime: str | None
    """None for the variant's."""
    session_mode: str = DEFAULT_MODE
    note: str = ""
    """The recommendation that was used, or why it was not; empty if there is none."""

    @property
    def relative_tolerance(self) -> float:
        """Tolerance of the session mode, as a share of the largest |logit|."""
        return mode_options(self.provider, self.session_mode).relative_tolerance


def runtime_package_version(runtime: str) -> str | None:
    """Return the version of a runtime's package; None if it is not installed."""
    package = RUNTIMES[runtime].module
    return installed_version(package) or installed_version(f"{package}-gpu")


def choose_session(bundle: Bundle, options: SessionOptions, explain: bool = False) -> SessionChoice:
    """Choose what to run: the recommendation saved in the bundle, if the caller chose nothing.

    A recommendation was measured as a whole, so any choice of the caller sets it aside.

    Raises:
        BundleError: there is no such variant, or the runtime cannot run it.
    """
    is_free = (options.variant, options.provider, options.threads, options.runtime) == (None,) * 4
    note = ""
    if is_free and options.use_recommendation:
        try:
            recommendation = read_saved_recommendation(bundle.directory)
        except BundleError as cause:
            recommendation, note = None, f"The saved recommendation is not used: {cause}"
        if recommendation is not None:
            obstacle = _find_obstacle(bundle, recommendation, explain)
            if obstacle is None:
                return _apply(bundle, recommendation)
            note = f"The saved recommendation is not used: {obstacle}."
    variant = bundle.select_variant(options.variant, options.runtime)
    provider = options.provider or "cpu"
    return SessionChoice(variant, provider, options.threads, options.runtime, note=note)


def _apply(bundle: Bundle, recommendation: SavedRecommendation) -> SessionChoice:
    options = recommendation.options
    return SessionChoice(
        bundle.select_variant(options.variant),
        recommendation.provider,
        options.intra_op_num_threads,
        options.runtime,
        options.session_mode or DEFAULT_MODE,
        f"Recommended by the benchmark of {recommendation.created[:10]}: {recommendation.summary}",
    )


def _find_obstacle(
    bundle: Bundle, recommendation: SavedRecommendation, explain: bool
) -> str | None:
    """Return why a recommendation does not apply here; None if it does."""
    options, measured = recommendation.options, recommendation.device
    runtime = options.runtime
    if runtime not in RUNTIMES or not is_installed(runtime):
        return f"{runtime} is not installed"
    version = runtime_package_version(runtime)
    if version != recommendation.runtime_version:
        return f"it was measured with {runtime} {recommendation.runtime_version}, not {version}"
    cpu, machine = cpu_name(), platform.machine()
    if (cpu, machine) != (measured.cpu, measured.machine):
        return f"it was measured on {measured.description}, not on {cpu or machine}"
    cores = available_cores()
    if options.intra_op_num_threads > cores:
        return f"it takes {options.intra_op_num_threads} threads, and {cores} cores are available"
    variant = next((item for item in bundle.variants if item.name == options.variant), None)
    if variant is None or variant.sha256 != recommendation.file_sha256:
        return f"{options.variant} is another file since"
    if runtime != ONNXRUNTIME:
        return "explanations need ONNX Runtime" if explain else None
    mode, provider = options.session_mode or DEFAULT_MODE, recommendation.provider
    if mode not in get_args(SessionMode):
        return f"this version of edgetl has no session mode {mode!r}"
    obstacle = find_mode_obstacle(
        provider, mode, options.intra_op_num_threads, variant.precision, cpu_flags()
    )
    return None if obstacle is None else f"session mode {mode} cannot be used {obstacle}"
