"""Comparison with an earlier result, rejected if inputs or models differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetl.core.artifacts.bench import MIN_ROUNDS, BenchedModel, BenchResult
from edgetl.core.artifacts.bench_json import read_result
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.comparison import EarlierPair
from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError


def read_baseline(path: Path, scopes: Sequence[str]) -> BenchResult:
    """Read an earlier result that measured at least one of `scopes`.

    Raises:
        BenchError: the file cannot be read, or it measured none of the scopes.
    """
    result = read_result(path)
    if any(row.rounds and row.scope in scopes for row in result.rows):
        return result
    measured = sorted({row.scope for row in result.rows if row.rounds})
    raise BenchError(
        f"{path} measured scope {', '.join(measured) or 'none'}, "
        f"but {{scopes}} is {', '.join(scopes)}. Choose a matching {{scopes}} or another {{baseline}}.",
        BenchConfig,
    )


def match_rows(
    baseline: BenchResult,
    rows: Sequence[BenchRow],
    model: BenchedModel,
    device: DeviceInfo,
    any_model: bool = False,
) -> list[EarlierPair]:
    """Match ONNX Runtime rows with baseline rows of the same scope, input and network.

    A row is compared with the baseline row of the same configuration if there is one, and with all
    comparable baseline rows otherwise.

    Args:
        baseline: the earlier result.
        rows: the rows measured now.
        model: the model measured now.
        device: facts about this device.
        any_model: also compare different networks, labeled as such.

    Raises:
        BenchError: no rows are comparable.
    """
    baseline_rows = [row for row in baseline.rows if len(row.rounds) >= MIN_ROUNDS]
    pairs = []
    for row in rows:
        if row.runtime == "pytorch" or row.has_failed_gate:
            continue
        comparable = [
            baseline_row
            for baseline_row in baseline_rows
            if not _explain_mismatch(baseline, baseline_row, row, model, any_model)
        ]
        exact = [baseline_row for baseline_row in comparable if baseline_row.id == row.id]
        for baseline_row in exact or comparable:
            earlier_row = baseline.as_earlier_row(
                baseline_row,
                device,
                same_model=_is_same_model(baseline, baseline_row, row, model),
                same_configuration=baseline_row.id == row.id,
            )
            pairs.append(EarlierPair(baseline_row.id, row.id, earlier_row))
    if not pairs:
        mismatches = [
            _explain_mismatch(baseline, baseline_row, row, model, any_model)
            for baseline_row in baseline_rows
            for row in rows
            if baseline_row.scope == row.scope
        ]
        reasons = "; ".join(dict.fromkeys(filter(None, mismatches))) or "no scope in common"
        raise BenchError(
            f"Cannot compare with {baseline.path}: {reasons}. "
            "Measure with the same options, or leave out {baseline}.",
            BenchConfig,
        )
    return pairs


def _explain_mismatch(
    baseline: BenchResult,
    baseline_row: BenchRow,
    row: BenchRow,
    model: BenchedModel,
    any_model: bool,
) -> str:
    """Return why two rows are not comparable, or an empty string."""
    if baseline_row.scope != row.scope or baseline_row.rate != row.rate:
        return (
            f"scope and rate: baseline {baseline_row.scope} {baseline_row.rate or ''}, "
            f"now {row.scope} {row.rate or ''}"
        )
    if (baseline_row.input, baseline_row.batch) != (row.input, row.batch):
        return (
            f"scope {row.scope}: baseline {baseline_row.input} (batch {baseline_row.batch}), "
            f"now {row.input} (batch {row.batch})"
        )
    if not any_model and not _is_same_model(baseline, baseline_row, row, model):
        return "the baseline measured another model (--any-model compares anyway)"
    return ""


def _is_same_model(
    baseline: BenchResult, baseline_row: BenchRow, row: BenchRow, model: BenchedModel
) -> bool:
    is_same_run = model.run_id is not None and model.run_id == baseline.model.run_id
    return is_same_run or baseline_row.file_sha256 == row.file_sha256
