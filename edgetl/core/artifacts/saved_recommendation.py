"""recommendation.json of a bundle: the configuration that a benchmark recommends for one device."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.recommendation import RecommendedConfig, RecommendedOptions
from edgetl.core.errors import BundleError
from edgetl.core.files import ReadPolicy, read_json_as, write_json
from edgetl.core.formatting import pluralize
from edgetl.core.paths import BundleDirectory
from edgetl.core.typed_json import to_json

_KIND = "recommendation"


@dataclass(frozen=True)
class MeasuredDevice:
    """Device on which a recommendation was measured."""

    description: str
    cpu: str | None
    machine: str | None
    """The processor's architecture."""


@dataclass(frozen=True)
class SavedRecommendation:
    """Recommended configuration with the device, versions and reasons that it depends on."""

    created: str
    """Start of the measurement."""
    edgetl: str
    device: MeasuredDevice
    runtime_version: str | None
    """Version of the runtime's package."""
    file_sha256: str
    """Hash of the variant's first file."""
    options: RecommendedOptions
    provider: str
    """edgetl's name of the execution provider."""
    p50_ms: float
    p50_ci95_ms: tuple[float, float] | None
    reasons: tuple[str, ...]
    kind: str = _KIND

    @property
    def summary(self) -> str:
        """Runtime, variant and options in a few words."""
        options = self.options
        parts = [
            f"{options.runtime} {options.variant}",
            pluralize(options.intra_op_num_threads, "thread"),
            *([] if options.session_mode is None else [options.session_mode]),
            *([] if self.provider == "cpu" else [self.provider]),
        ]
        return ", ".join(parts)


def make_saved_recommendation(
    result: BenchResult, runtime_version: str | None
) -> SavedRecommendation | None:
    """Return the recommendation of a result for one image at a time.

    Args:
        result: a benchmark of a bundle.
        runtime_version: version of the recommended runtime's package.

    Returns:
        None if nothing is recommended.
    """
    if result.recommendation is None:
        return None
    choice = result.recommendation.latency
    row = result.get_row(choice.row)
    device = result.device
    return SavedRecommendation(
        created=result.created,
        edgetl=result.edgetl,
        device=MeasuredDevice(device.description, device.cpu, device.machine),
        runtime_version=runtime_version,
        file_sha256=row.file_sha256,
        options=choice.options,
        provider=row.provider,
        p50_ms=choice.p50_ms,
        p50_ci95_ms=row.p50_interval_ms,
        reasons=tuple(_list_reasons(result, choice)),
    )


def _list_reasons(result: BenchResult, choice: RecommendedConfig) -> list[str]:
    measured = [row for row in result.rows if row.rounds and row.runtime != "pytorch"]
    row = result.get_row(choice.row)
    reasons = [
        f"{choice.row} passed its check on the golden images and was not shown to be slower than "
        f"any other of {len(measured)} measured rows in {len(row.rounds)} rounds."
    ]
    if choice.as_fast:
        rows = ", ".join(choice.as_fast)
        reasons.append(
            f"As fast, but with more threads, a larger file or needless options: {rows}."
        )
    if row.session.session_mode is not None and row.cold is not None:
        reasons.append(
            f"Session mode {row.session.session_mode}: the model is ready and the first image "
            f"classified after {row.cold.session_ms + row.cold.first_inference_ms:.0f} ms."
        )
    if result.noise.is_noisy:
        reasons.append(f"The measurement was noisy: {'; '.join(result.noise.reasons[:3])}.")
    return reasons


def write_saved_recommendation(
    directory: BundleDirectory, recommendation: SavedRecommendation
) -> None:
    """Write recommendation.json atomically; an earlier one is replaced.

    Raises:
        OSError: it cannot be written.
    """
    write_json(directory.recommendation, to_json(recommendation))


def read_saved_recommendation(directory: BundleDirectory) -> SavedRecommendation | None:
    """Read recommendation.json; None if the bundle has none.

    Raises:
        BundleError: it is broken or of another kind.
    """
    if not directory.recommendation.is_file():
        return None
    policy = ReadPolicy(BundleError, "`edgetl bench BUNDLE --save-recommendation` writes it again.")
    recommendation = read_json_as(
        SavedRecommendation, directory.recommendation, "The saved recommendation", policy
    )
    if recommendation.kind != _KIND:
        raise BundleError(
            f"{directory.recommendation} is broken: kind must be {_KIND}, got "
            f"{recommendation.kind!r}. {policy.advice}"
        )
    return recommendation
