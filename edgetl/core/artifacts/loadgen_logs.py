"""Parsers for the log files of MLPerf LoadGen."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.errors import BenchError
from edgetl.core.typed_json import parse_as

SUMMARY_FILE, DETAIL_FILE, ACCURACY_FILE, TRACE_FILE = (
    "mlperf_log_summary.txt",
    "mlperf_log_detail.txt",
    "mlperf_log_accuracy.json",
    "mlperf_log_trace.json",
)
_PARAMETERS_HEADING = "Test Parameters Used"
_EARLY_STOPPING_HEADING = "Early Stopping Result"
_FIGURE_LINE = re.compile(r"\s*(\S.*?)\s*:\s*(\S.*?)\s*")


@dataclass(frozen=True)
class LoadgenSummary:
    """Content of mlperf_log_summary.txt, in LoadGen's terms."""

    result: str | None
    """VALID or INVALID; None in accuracy mode."""
    figures: Mapping[str, float | str]
    """Values of all lines `name : value` outside the section of parameters."""
    parameters: Mapping[str, float | str]
    """Effective settings of the test."""
    remarks: tuple[str, ...]
    """Recommendations and the result of early stopping, verbatim."""
    messages: tuple[str, ...]
    """Lines with the numbers of warnings and errors."""

    def get_figure(self, name: str) -> float:
        """Return the number with this name.

        Raises:
            BenchError: There is no such number.
        """
        value = self.figures.get(name)
        if not isinstance(value, int | float):
            raise BenchError(
                f"{name!r} not found in LoadGen's summary. "
                "Install the version of mlcommons-loadgen that edgetl was tested with."
            )
        return value


@dataclass(frozen=True)
class _LoggedSample:
    """Fields of an entry of the accuracy log that are read."""

    qsl_idx: int
    """Index of the sample."""
    data: str
    """Response, hexadecimal."""


def parse_summary(text: str) -> LoadgenSummary:
    """Parse the summary; unrelated text results in an empty one."""
    figures: dict[str, float | str] = {}
    parameters: dict[str, float | str] = {}
    remarks: list[str] = []
    messages: list[str] = []
    lines = text.splitlines()
    section = ""
    in_early_stopping = False
    for index, line in enumerate(lines):
        neighbors = (*lines[max(0, index - 1) : index], *lines[index + 1 : index + 2])
        if line.startswith("===") or not line.strip():
            in_early_stopping = False
        elif all(neighbor.startswith("===") for neighbor in neighbors):
            section = line.strip()
        elif re.search(r"(warnings?|errors?) encountered", line, re.IGNORECASE):
            messages.append(line.strip())
        elif in_early_stopping or line.lstrip().startswith("*"):
            remarks.append(line.strip())
        elif line.strip() == f"{_EARLY_STOPPING_HEADING}:":
            in_early_stopping = True
        elif match := _FIGURE_LINE.fullmatch(line):
            values = parameters if section == _PARAMETERS_HEADING else figures
            values[match[1]] = _parse_value(match[2])
    result = figures.pop("Result is", None)
    return LoadgenSummary(
        None if result is None else str(result),
        figures,
        parameters,
        tuple(remarks),
        tuple(messages),
    )


def read_summary(folder: Path) -> LoadgenSummary:
    """Read the summary from a folder of LoadGen's logs.

    Raises:
        BenchError: The file cannot be read.
    """
    return parse_summary(_read_log(folder / SUMMARY_FILE))


def read_predictions(folder: Path) -> dict[int, int]:
    """Read the predictions of an accuracy run, encoded as int64, as sample index to class.

    Samples that LoadGen repeats to fill up a query count once.

    Raises:
        BenchError: The file cannot be read or is truncated.
    """
    path = folder / ACCURACY_FILE
    try:
        entries = parse_as(
            tuple[_LoggedSample, ...], json.loads(_read_log(path)), ACCURACY_FILE, extra="ignore"
        )
        predictions: dict[int, int] = {}
        for entry in entries:
            encoded = bytes.fromhex(entry.data)
            predictions.setdefault(entry.qsl_idx, int.from_bytes(encoded, "little", signed=True))
    except ValueError as cause:
        raise BenchError(f"LoadGen's {ACCURACY_FILE} is broken: {cause}. Run it again.") from cause
    return predictions


def _read_log(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise BenchError(
            f"Cannot read LoadGen's {path.name} ({cause.strerror or cause}). Run it again."
        ) from cause


def _parse_value(text: str) -> float | str:
    for parse in (int, float):
        try:
            return parse(text)
        except ValueError:
            continue
    return text
