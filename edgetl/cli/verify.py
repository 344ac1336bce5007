"""`edgetl verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import err, out, print_json
from edgetl.core.files import SCHEMA

if TYPE_CHECKING:
    from edgetl.device.verify import VerifyResult


def verify(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a run directory with one.")
    ],
    variant: Annotated[
        list[str] | None,
        typer.Option(help="A variant of the bundle; several may be named.", show_default="all"),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="Execution provider: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...; several may be named.",
            show_default="cpu",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Intra-op threads.", show_default="the cores available"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prove that a bundle answers on this device as it was proven to.

    Its reference images go through this device's own onnxruntime, provider and CPU; files that are not those that were proven are
    refused. Torch is not needed. Exit status 1 where a variant fails.
    """
    from edgetl.device.hardware.cpu import is_emulated
    from edgetl.device.hardware.info import collect_device_info
    from edgetl.device.runtime.bundle import open_bundle
    from edgetl.device.verify import verify as verify_bundle

    opened = open_bundle(bundle)
    with open_verify_progress() as tell:
        found = verify_bundle(opened, variant or (), provider or ("cpu",), threads, tell)
    if as_json:
        device = collect_device_info()
        content = {
            "schema": SCHEMA,
            "kind": "verification",
            "bundle": {"model": opened.model, "run_id": opened.run_id},
            "device": device,
        }
        print_json({**content, "variants": [one.to_json() for one in found]}, indent=2)
    else:
        print_verify_results(found)
        if is_emulated():
            out.print(
                "\nThis processor is emulated: what is right here is yet to be verified on the device.",
                soft_wrap=True,
            )
    if not all(one.passed for one in found):
        raise typer.Exit(1)


@contextmanager
def open_verify_progress() -> Iterator[Callable[[str], None]]:
    """What is called with each variant that is begun; shown where somebody looks at it."""
    if not err.is_terminal:
        yield lambda text: None
        return
    with err.status("Verifying") as status:
        yield lambda text: status.update(f"Verifying {text}")


def print_verify_results(found: Sequence[VerifyResult]) -> None:
    """A table, a row for each variant, and what to do about those that failed."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("variant", "provider", "answers"):
        table.add_column(name)
    for name in ("images", "top-1", "largest difference", "allowed"):
        table.add_column(name, justify="right")
    for one in found:
        gate = one.gate
        difference, agreement = gate.get("max_logit_difference"), gate.get("top1_agreement")
        table.add_row(
            one.variant,
            one.provider,
            Text("right", style="green")
            if one.passed
            else Text("WRONG" if gate["checked"] else "not run", style="bold red"),
            str(gate.get("images", "")),
            "" if agreement is None else f"{agreement} of {gate['images']}",
            "" if difference is None else f"{difference:.3g}",
            f"{gate['tolerance']:.3g}" if "tolerance" in gate else "",
        )
    out.print(table)
    for one in found:
        if not one.passed:
            told = (
                f"\n{one.variant} on {one.provider}: {one.gate['reason'].rstrip('.')}. {one.advice}"
            )
            out.print(told.rstrip(), markup=False, soft_wrap=True)
