"""Automatic choices of a run: reused from config.json if recorded there, else made and recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from edgetl.core.artifacts.measured_choices import AutoChoices
from edgetl.core.errors import ConfigError


class RunChoices:
    """Automatic choices recorded by an earlier run or process and made by this one."""

    def __init__(self, recorded: AutoChoices | None = None, fixed: bool = False) -> None:
        """Start from recorded choices.

        Args:
            recorded: choices to reuse.
            fixed: make the other choices by fixed rules (`--deterministic`), without measurements.
        """
        self.recorded = recorded or AutoChoices()
        self.current = self.recorded
        self.uses_fixed_rules = fixed
        self.on_change: Callable[[AutoChoices], None] = lambda choices: None
        """Callback for each new choice."""

    def record(self, **choices: Any) -> None:
        """Record choices by field name."""
        updated = replace(self.current, **choices)
        if updated != self.current:
            self.current = updated
            self.on_change(updated)

    def record_entry(self, name: str, key: str, value: Any) -> None:
        """Record an entry of a field that is a mapping."""
        self.record(**{name: {**getattr(self.current, name), key: value}})


@contextmanager
def use_recorded_threads(choices: AutoChoices | None) -> Iterator[None]:
    """Use the recorded number of PyTorch threads inside the block.

    Sums that are split among another number of threads differ in their last bits.
    """
    previous = torch.get_num_threads()
    if choices is not None and choices.threads is not None:
        torch.set_num_threads(choices.threads)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def choice_unavailable_error(choice: str, reason: str) -> ConfigError:
    """Return the error for a recorded choice that is not available on this machine."""
    return ConfigError(
        f"The run was computed with {choice}, which is not available here: {reason.rstrip('.')}. "
        "Another choice would change the weights: resume where it is available, "
        "or start a new run without the recorded choices."
    )
