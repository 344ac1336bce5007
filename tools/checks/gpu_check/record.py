"""The record of one step: its figures and requirements, on disk as soon as they exist."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Requirement:
    """An assertion of a step with the value that decided it."""

    text: str
    passed: bool
    detail: str


@dataclass
class Record:
    """Figures and requirements of a running step.

    The file is replaced after every addition, so that a step that is killed leaves what it had measured.
    """

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    requirements: list[Requirement] = field(default_factory=list)
    limit_s: float = math.inf
    """Of the step; it is killed then."""
    started: float = field(default_factory=time.monotonic)
    left_out: list[str] = field(default_factory=list)

    def measure(self, **figures: Any) -> None:
        """Add figures: numbers, strings, or lists and dictionaries of them."""
        self.figures.update(figures)
        self._write()

    def has_time(self, seconds: float, part: str) -> bool:
        """True where so many seconds are left of the limit; a part that is left out is recorded."""
        if self.limit_s - (time.monotonic() - self.started) >= seconds:
            return True
        self.left_out.append(part)
        self.measure(left_out_for_lack_of_time=self.left_out)
        return False

    def require(self, text: str, passed: bool, detail: object = "") -> bool:
        """Add an assertion; the step goes on where it does not hold, and fails in the end."""
        self.requirements.append(Requirement(text, bool(passed), str(detail)))
        self._write()
        return bool(passed)

    @contextmanager
    def attempt(self, text: str) -> Iterator[None]:
        """Let the block fail alone: an exception becomes an assertion that does not hold."""
        try:
            yield
        except Exception as error:  # whatever a library raises on a device that nobody has tried
            traceback.print_exc()
            first = (str(error).strip().splitlines() or [""])[0]
            self.require(text, False, f"{type(error).__name__}: {first[:200]}")

    def _write(self) -> None:
        content = {
            "figures": self.figures,
            "requirements": [asdict(requirement) for requirement in self.requirements],
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.replace(self.path)
