"""The choices of one run: recorded ones are taken again, new ones are written into config.json as soon as they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from edgetl.core.artifacts.measured_choices import AutoChoices
from edgetl.core.errors import ConfigError


class RunChoices:
    """Holds what an earlier run or process has decided, and what this one has."""

    def __init__(self, recorded: AutoChoices | None = None, fixed: bool = False) -> None:
        """Take recorded choices, and whether the others follow fixed rules (`--deterministic`) instead of measurements."""
        self.recorded = recorded or AutoChoices()
        self.current = self.recorded
        self.uses_fixed_rules = fixed
        self.on_change: Callable[[AutoChoices], None] = lambda choices: None
        """Called after each new choice."""

    def record(self, **choices: Any) -> None:
        """Note choices by their field's name."""
        made = replace(self.current, **choices)
        if made != self.current:
            self.current = made
            self.on_change(made)

    def record_entry(self, name: str, key: str, value: Any) -> None:
        """Note an entry of a field that is a mapping."""
        self.record(**{name: {**getattr(self.current, name), key: value}})


@contextmanager
def use_recorded_threads(choices: AutoChoices | None) -> Iterator[None]:
    """Give PyTorch the recorded number of threads inside the block: sums that are split differently differ in their last bits."""
    before = torch.get_num_threads()
    if choices is not None and choices.threads is not None:
        torch.set_num_threads(choices.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choice_unavailable_error(choice: str, reason: str) -> ConfigError:
    """Return the error of a recorded choice that cannot be followed here."""
    return ConfigError(
        f"The run was computed with {choice}, which is not available here: {reason.rstrip('.')}. "
        "Other arithmetic would give other weights: continue where it is available, or train anew without the recorded choices."
    )
