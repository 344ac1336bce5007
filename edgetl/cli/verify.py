"""`edgetl verify`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import err, out, print_json
from edgetl.cli.exit_codes import ExitCode
from edgetl.core.files import SCHEMA
from edgetl.core.progress import ProgressCallback
from edgetl.core.typed_json import to_json

if TYPE_CHECKING:
    from rich.text import Text

    from edgetl.device.runtime.bundle import Bundle
    from edgetl.device.verify import VerifyResult


def verify(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Bundle, or run directory with a bundle.")
    ],
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Variant of the bundle; repeat it for several.",
            show_default="all",
        ),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="Execution provider: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...; repeat it for "
            "several.",
            show_default="cpu",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Intra-op threads.", show_default="available cores"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Verify a bundle on this device.

    Runs the golden images of the bundle with this device's ONNX Runtime, provider and CPU, and
    compares the logits with PyTorch's. Files whose checksums do not match the bundle are rejected.
    Does not require PyTorch. Exit code 4 if a variant fails.
    """
    from edgetl.device.hardware.cpu import is_emulated
    from edgetl.device.hardware.info import collect_device_info
    from edgetl.device.runtime.bundle import open_bundle
    from edgetl.device.verify import verify as verify_bundle

    opened = open_bundle(bundle)
    with open_verify_progress() as progress:
        results = verify_bundle(bundle, variant or (), provider or ("cpu",), threads, progress)
    if as_json:
        content = {
            "schema": SCHEMA,
            "kind": "verification",
            "bundle": {"model": opened.model, "run_id": opened.run_id},
            "device": to_json(collect_device_info()),
            "variants": [to_json(result) for result in results],
        }
        print_json(content, indent=2)
    else:
        print_verify_results(results)
        _print_unverified(opened, results, variant or ())
        if is_emulated():
            out.print(
                "\nThis CPU is emulated. Verify the bundle on the target device as well.",
                soft_wrap=True,
            )
    if not all(result.passed for result in results):
        raise typer.Exit(ExitCode.FAILED_CHECK)


def _print_unverified(
    bundle: Bundle, results: Sequence[VerifyResult], selected: Sequence[str]
) -> None:
    from edgetl.core.runtimes import RUNTIMES

    verified = {result.variant for result in results}
    for variant in bundle.variants:
        if variant.name not in verified and not selected:
            out.print(
                f"{variant.name} not verified: {RUNTIMES[variant.runtime].title} is not installed "
                "here.",
                style="dim",
                markup=False,
                soft_wrap=True,
            )


@contextmanager
def open_verify_progress() -> Iterator[ProgressCallback]:
    """Yield a callback for each variant; it prints nothing outside a terminal."""
    if not err.is_terminal:
        yield lambda step, done, total: None
        return
    with err.status("Verifying") as status:
        yield lambda step, done, total: status.update(f"Verifying {step}")


def print_verify_results(results: Sequence[VerifyResult]) -> None:
    """Print a table with one row per variant, and the next step for each failure."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("variant", "provider", "result"):
        table.add_column(heading)
    for heading in ("images", "top-1", "max |Δlogit|", "tolerance"):
        table.add_column(heading, justify="right")
    for result in results:
        gate = result.gate
        table.add_row(
            result.variant,
            result.provider,
            _status_text(result),
            "" if gate.images is None else str(gate.images),
            "" if gate.top1_agreement is None else f"{gate.top1_agreement} of {gate.images}",
            "" if gate.max_logit_difference is None else f"{gate.max_logit_difference:.3g}",
            "" if gate.tolerance is None else f"{gate.tolerance:.3g}",
        )
    out.print(table)
    for result in results:
        if not result.passed:
            reason = (result.gate.reason or "").rstrip(".")
            message = f"\n{result.variant} on {result.provider}: {reason}. {result.advice}"
            out.print(message.rstrip(), markup=False, soft_wrap=True)


def _status_text(result: VerifyResult) -> Text:
    from rich.text import Text

    if result.passed:
        return Text("passed", style="green")
    return Text("FAILED" if result.gate.checked else "not run", style="bold red")
