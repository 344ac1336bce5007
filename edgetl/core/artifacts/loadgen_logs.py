"""The files that MLPerf LoadGen leaves behind, read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.errors import BenchError

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
    """mlperf_log_summary.txt; names and words are LoadGen's own."""

    result: str | None
    """VALID or INVALID; None in accuracy mode."""
    figures: Mapping[str, float | str]
    """Every line `name : value` but the parameters."""
    parameters: Mapping[str, float | str]
    """The settings in force."""
    remarks: tuple[str, ...]
    """Recommendations and the result of early stopping, as they stand there."""
    messages: tuple[str, ...]
    """How many warnings and errors there were."""

    def get_figure(self, name: str) -> float:
        """The figure of that name.

        Raises:
            BenchError: there is none.
        """
        value = self.figures.get(name)
        if not isinstance(value, int | float):
            raise BenchError(
                f"LoadGen's summary has no figure {name!r}. Install the version of mlcommons-loadgen that edgetl was tested with."
            )
        return value


def parse_summary(text: str) -> LoadgenSummary:
    """What the summary says; a text of other lines gives an empty one."""
    figures: dict[str, float | str] = {}
    parameters: dict[str, float | str] = {}
    remarks: list[str] = []
    messages: list[str] = []
    lines, section, speaking = text.splitlines(), "", False
    for number, line in enumerate(lines):
        if line.startswith("===") or not line.strip():
            speaking = False
        elif all(
            around.startswith("===")
            for around in (*lines[max(0, number - 1) : number], *lines[number + 1 : number + 2])
        ):
            section = line.strip()
        elif re.search(r"(warnings?|errors?) encountered", line, re.IGNORECASE):
            messages.append(line.strip())
        elif speaking or line.lstrip().startswith("*"):
            remarks.append(line.strip())
        elif line.strip() == f"{_EARLY_STOPPING_HEADING}:":
            speaking = True
        elif found := _FIGURE_LINE.fullmatch(line):
            (parameters if section == _PARAMETERS_HEADING else figures)[found[1]] = _parse_value(
                found[2]
            )
    result = figures.pop("Result is", None)
    return LoadgenSummary(
        None if result is None else str(result),
        figures,
        parameters,
        tuple(remarks),
        tuple(messages),
    )


def read_summary(folder: Path) -> LoadgenSummary:
    """The summary that LoadGen wrote into a folder.

    Raises:
        BenchError: there is none.
    """
    return parse_summary(_read_log(folder / SUMMARY_FILE))


def read_predictions(folder: Path) -> dict[int, int]:
    """Sample to class, of an accuracy run whose system answered with int64; a sample that filled up a query counts once.

    Raises:
        BenchError: there is no such file, or it is cut short.
    """
    path = folder / ACCURACY_FILE
    try:
        entries = json.loads(_read_log(path))
        answers: dict[int, int] = {}
        for entry in entries:
            answers.setdefault(
                int(entry["qsl_idx"]),
                int.from_bytes(bytes.fromhex(entry["data"]), "little", signed=True),
            )
    except (ValueError, KeyError, TypeError) as cause:
        raise BenchError(
            f"LoadGen's {ACCURACY_FILE} is broken: {cause!r}. Run it again."
        ) from cause
    return answers


def _read_log(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise BenchError(
            f"LoadGen left no {path.name} ({cause.strerror or cause}). Run it again."
        ) from cause


def _parse_value(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
