"""`edgetl evaluate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.config_options import config_options
from edgetl.cli.exit_codes import ExitCode
from edgetl.cli.progress import measure_and_show, open_step_progress
from edgetl.core.config.evaluate import EvaluateConfig
from edgetl.core.formatting import pluralize

if TYPE_CHECKING:
    from edgetl.core.artifacts.evaluation import EvaluationResult


@config_options(EvaluateConfig)
def evaluate(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="Bundle, run directory with a bundle, or an ONNX file written by edgetl.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder of images per class; data folder with test/, val/ or "
            "train/; run directory, whose split.csv names the images; or CSV file with the columns "
            "path and label.",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Evaluate a bundle on labeled images on this device. Does not require PyTorch.

    Each variant is checked on the bundle's golden images first. Shows accuracy, figures of each
    class, calibration, unknown images and differences between the variants, with 95% intervals,
    and writes a result that `edgetl report` renders as a page.

    Exit code: 0 on success; 1, images could not be read or a variant failed its check; 4, a limit
    is exceeded; 5, the interval of a figure contains its limit.
    """
    from edgetl.cli.evaluation_tables import show_evaluation
    from edgetl.core.config.options import build_config
    from edgetl.core.errors import BundleError, DataError
    from edgetl.device.evaluation.evaluate import evaluate as evaluate_bundle

    config = build_config(EvaluateConfig, bundle=bundle, data=data, **options)
    result = measure_and_show(
        partial(evaluate_bundle, config), show_evaluation, as_json, open_step_progress
    )
    if result.failed_variants:
        reasons = "; ".join(
            f"{variant.name}: {variant.gate.reason}" for variant in result.failed_variants
        )
        raise BundleError(
            f"The check on the golden images failed on this device: {reasons}. "
            f"`edgetl verify {bundle}` shows details."
        )
    if unscored := result.unscored_count:
        raise DataError(
            f"Cannot read {pluralize(unscored, 'image')}; the others are evaluated above. Replace "
            "or remove the files."
        )
    _exit_by_limits(result)


def _exit_by_limits(result: EvaluationResult) -> None:
    outcomes = {check.outcome for check in result.limit_checks}
    if "broken" in outcomes:
        raise typer.Exit(ExitCode.FAILED_CHECK)
    if "undecided" in outcomes:
        raise typer.Exit(ExitCode.UNDECIDED)
