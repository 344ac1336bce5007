"""Comparison with an earlier result: refused where it would compare unlike things, labelled where it crosses devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetl.core.comparisons import EarlierRow
from edgetl.core.errors import BenchError
from edgetl.core.results import BenchResult, read_result
from edgetl.core.rows import Row

_DEVICE = ("host", "board", "cpu", "cores", "memory_bytes")


def read_baseline(path: Path, scopes: Sequence[str]) -> BenchResult:
    """An earlier result that measured at least one of `scopes`.

    Raises:
        BenchError: unreadable, or nothing in it can be compared.
    """
    result = read_result(path)
    if any(row.rounds and row.scope in scopes for row in result.rows):
        return result
    measured = sorted({row.scope for row in result.rows if row.rounds})
    raise BenchError(
        f"{path} measured scope {', '.join(measured) or 'none'}, asked for is {', '.join(scopes)}. "
        "Choose --scope to match, or another --baseline."
    )


def match_rows(
    earlier: BenchResult, rows: Sequence[Row], model: Mapping[str, Any], device: Mapping[str, Any]
) -> list[tuple[str, str, EarlierRow]]:
    """Every pair of an earlier row and one of `rows` (of ONNX Runtime) in the same scope, on the same input.

    Raises:
        BenchError: there is no such pair.
    """
    pairs, refused = [], []
    for before in (row for row in earlier.rows if row.rounds):
        for after in (row for row in rows if row.runtime != "pytorch" and row.scope == before.scope and not row.failed):
            if (before.input, before.batch) != (after.input, after.batch):
                refused.append(f"scope {after.scope}: then {before.input} (batch {before.batch}), now {after.input} (batch {after.batch})")
                continue
            same_run = model.get("run_id") is not None and model.get("run_id") == earlier.model.get("run_id")
            pairs.append((before.id, after.id, _earlier_row(earlier, before, device, same_run or before.file_sha256 == after.file_sha256)))
    if not pairs:
        reasons = "; ".join(dict.fromkeys(refused)) or "no scope in common"
        raise BenchError(f"{earlier.path} cannot be compared with: {reasons}. Measure the same inputs, or leave --baseline out.")
    return pairs


def _earlier_row(result: BenchResult, row: Row, device: Mapping[str, Any], same_model: bool) -> EarlierRow:
    return EarlierRow(
        path=str(result.path),
        created=result.created,
        cross_device=any(result.device.get(name) != device.get(name) for name in _DEVICE),
        same_model=same_model,
        threads=row.threads,
        noisy=result.noise.noisy,
        p50_ms=row.percentile_ms(50) or 0.0,
        round_medians_ns=tuple(row.medians_ns),
    )
