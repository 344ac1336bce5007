"""Record of one step: its figures and requirements, written to disk as they are added."""

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
    """Requirement of a step with the measured value."""

    text: str
    passed: bool
    detail: str


@dataclass
class Record:
    """Figures and requirements of a running step.

    The file is replaced after every addition, so that measurements survive if the step is killed.
    """

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    requirements: list[Requirement] = field(default_factory=list)
    limit_s: float = math.inf
    """Time limit of the step; its process is killed then."""
    started: float = field(default_factory=time.monotonic)
    left_out: list[str] = field(default_factory=list)

    def measure(self, **figures: Any) -> None:
        """Add figures: numbers, strings, or lists and dictionaries of them."""
        self.figures.update(figures)
        self._write()

    def has_time(self, seconds: float, part: str) -> bool:
        """Return whether `seconds` are left of the limit; record `part` as left out if not."""
        if self.limit_s - (time.monotonic() - self.started) >= seconds:
            return True
        self.left_out.append(part)
        self.measure(left_out_for_lack_of_time=self.left_out)
        return False

    def require(self, text: str, passed: bool, detail: object = "") -> bool:
        """Add a requirement and return whether it passed.

        The step continues after a failed requirement and fails at the end.
        """
        self.requirements.append(Requirement(text, bool(passed), str(detail)))
        self._write()
        return bool(passed)

    @contextmanager
    def attempt(self, text: str) -> Iterator[None]:
        """Turn an exception in the block into a failed requirement, so that the step continues."""
        try:
            yield
        except Exception as error:  # libraries raise anything on an untested device
            traceback.print_exc()
            first_line = (str(error).strip().splitlines() or [""])[0]
            self.require(text, False, f"{type(error).__name__}: {first_line[:200]}")

    def _write(self) -> None:
        content = {
            "figures": self.figures,
            "requirements": [asdict(requirement) for requirement in self.requirements],
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.replace(self.path)
