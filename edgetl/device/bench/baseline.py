"""Comparison with an earlier result: refused where it would compare unlike things, labelled where it crosses devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetl.core.artifacts.bench import MIN_ROUNDS, BenchResult
from edgetl.core.artifacts.bench_json import read_bench_result
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.comparison import EarlierRow
from edgetl.core.errors import BenchError

_DEVICE_KEYS = ("host", "board", "cpu", "cores", "memory_bytes")


def read_baseline(path: Path, scopes: Sequence[str]) -> BenchResult:
    """An earlier result that measured at least one of `scopes`.

    Raises:
        BenchError: unreadable, or nothing in it can be compared.
    """
    result = read_bench_result(path)
    if any(row.rounds and row.scope in scopes for row in result.rows):
        return result
    measured = sorted({row.scope for row in result.rows if row.rounds})
    raise BenchError(
        f"{path} measured scope {', '.join(measured) or 'none'}, asked for is {', '.join(scopes)}. "
        "Choose --scope to match, or another --baseline."
    )


def match_rows(
    earlier: BenchResult,
    rows: Sequence[BenchRow],
    model: Mapping[str, Any],
    device: Mapping[str, Any],
    any_model: bool = False,
) -> list[tuple[str, str, EarlierRow]]:
    """Pairs of an earlier row and one of `rows` (of ONNX Runtime): the same scope, input and network.

    A row that was measured in the same configuration then is compared with that one alone; others with all that there are.

    Args:
        earlier: what was measured then.
        rows: what is measured now.
        model: of the rows measured now.
        device: facts of this one.
        any_model: compare different networks too, labelled so.

    Raises:
        BenchError: there is no such pair.
    """
    before = [row for row in earlier.rows if len(row.rounds) >= MIN_ROUNDS]
    pairs = []
    for after in (row for row in rows if row.runtime != "pytorch" and not row.has_failed_gate):
        fitting = [
            one for one in before if not _explain_mismatch(earlier, one, after, model, any_model)
        ]
        exact = [one for one in fitting if one.id == after.id]
        pairs += [
            (
                one.id,
                after.id,
                _to_baseline_row(
                    earlier,
                    one,
                    device,
                    one.id == after.id,
                    _is_same_model(earlier, one, after, model),
                ),
            )
            for one in exact or fitting
        ]
    if not pairs:
        reasons = [
            _explain_mismatch(earlier, one, after, model, any_model)
            for one in before
            for after in rows
            if one.scope == after.scope
        ]
        told = "; ".join(dict.fromkeys(filter(None, reasons))) or "no scope in common"
        raise BenchError(
            f"{earlier.path} cannot be compared with: {told}. Measure alike, or leave --baseline out."
        )
    return pairs


def _explain_mismatch(
    earlier: BenchResult,
    before: BenchRow,
    after: BenchRow,
    model: Mapping[str, Any],
    any_model: bool,
) -> str:
    """Why two rows are not comparable; empty: they are."""
    if before.scope != after.scope or before.rate != after.rate:
        return f"scope and rate: then {before.scope} {before.rate or ''}, now {after.scope} {after.rate or ''}"
    if (before.input, before.batch) != (after.input, after.batch):
        return f"scope {after.scope}: then {before.input} (batch {before.batch}), now {after.input} (batch {after.batch})"
    if not any_model and not _is_same_model(earlier, before, after, model):
        return "another model was measured then (--any-model compares all the same)"
    return ""


def _is_same_model(
    earlier: BenchResult, before: BenchRow, after: BenchRow, model: Mapping[str, Any]
) -> bool:
    same_run = model.get("run_id") is not None and model.get("run_id") == earlier.model.get(
        "run_id"
    )
    return same_run or before.file_sha256 == after.file_sha256


def _to_baseline_row(
    result: BenchResult,
    row: BenchRow,
    device: Mapping[str, Any],
    same_configuration: bool,
    same_model: bool,
) -> EarlierRow:
    return EarlierRow(
        path=str(result.path),
        created=result.created,
        cross_device=any(result.device.get(name) != device.get(name) for name in _DEVICE_KEYS),
        same_model=same_model,
        same_configuration=same_configuration,
        threads=row.threads,
        noisy=result.noise.is_noisy,
        p50_ms=row.percentile_ms(50) or 0.0,
        round_medians_ns=tuple(row.round_medians_ns),
    )
