"""Runtimes side by side: each row against plain ONNX Runtime, and the best trade-offs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.comparison import EarlierPair, RowComparison
from edgetl.core.runtimes import ONNXRUNTIME

PLAIN_RUNTIME, PLAIN_VARIANT = ONNXRUNTIME, "fp32"
"""Runtime and variant that the others are compared with: what a user starts from."""
PLAIN_NAME = f"{PLAIN_RUNTIME} {PLAIN_VARIANT}"


def list_runtimes(rows: Iterable[BenchRow]) -> list[str]:
    """Return the runtimes of the rows in order, without PyTorch, which is no choice for a device."""
    return list(dict.fromkeys(row.runtime for row in rows if row.runtime != "pytorch"))


def is_plain(row: BenchRow) -> bool:
    """Return whether the row is plain ONNX Runtime: the float32 file with default options."""
    return (row.runtime, row.variant) == (PLAIN_RUNTIME, PLAIN_VARIANT)


def compare_with_plain(
    result: BenchResult, row: BenchRow, others: Sequence[BenchResult] = ()
) -> RowComparison | None:
    """Compare a row with plain ONNX Runtime under the same conditions on the same device.

    Args:
        result: Result of the row.
        row: A row of the result.
        others: Further results. Those of the same device and model are searched if `result` has no
            such row; the two were then measured in different rounds, which widens the interval.

    Returns:
        The comparison; None for plain ONNX Runtime itself, and if there is no such row.
    """
    if is_plain(row) or not row.rounds:
        return None
    baseline = _find_plain_row(result, row)
    if baseline is not None:
        return result.compare_rows(baseline, row)
    for other in others:
        same_model = result.model.run_id is not None and other.model.run_id == result.model.run_id
        if other is result or not same_model or not other.device.is_same_device(result.device):
            continue
        baseline = _find_plain_row(other, row)
        if baseline is not None:
            earlier = other.as_earlier_row(
                baseline, result.device, same_model=True, same_configuration=False
            )
            return result.compare_with_earlier(EarlierPair(baseline.id, row.id, earlier))
    return None


def _find_plain_row(result: BenchResult, row: BenchRow) -> BenchRow | None:
    """Return the plain row with the conditions of `row`, on its execution provider if there is one."""
    plain_rows = [
        candidate
        for candidate in result.rows
        if is_plain(candidate)
        and candidate.rounds
        and candidate.comparison_key == row.comparison_key
    ]
    return min(plain_rows, key=lambda plain: plain.provider != row.provider, default=None)


def select_pareto_rows(rows: Iterable[BenchRow]) -> list[BenchRow]:
    """Return the rows that no other row beats in both p50 and accuracy, fastest first.

    Rows without latency or accuracy are ignored. Among rows with equal figures the first counts.
    """
    measured = [
        (row.p50_ms, row.accuracy.top1, row)
        for row in rows
        if row.p50_ms is not None and row.accuracy is not None
    ]
    front: list[BenchRow] = []
    best_top1 = -1.0
    for _, top1, row in sorted(measured, key=lambda entry: (entry[0], -entry[1])):
        if top1 > best_top1:
            front.append(row)
            best_top1 = top1
    return front
