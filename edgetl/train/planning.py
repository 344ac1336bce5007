"""Epochs and views that fit into a time, from the times of real steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 3.0
"""Times the recipe's epochs: with more time than that is needed, more epochs would only fit the training images closer."""
FINAL_S = 3.0
"""Kept for what follows the last epoch: final evaluation, plots and metrics."""
_RESERVE = 0.85
"""Of the time left is planned for: other programs may slow a machine down after the steps were timed."""


@dataclass(frozen=True)
class Costs:
    """Seconds, from measured steps."""

    view: float
    """All training images once through the frozen blocks, decoding included; 0 where nothing is cached."""
    fixed: float
    """Validation images through the frozen blocks, and the final evaluation."""
    epochs: tuple[float, ...]
    """One epoch of each phase, validation included."""


@dataclass(frozen=True)
class Plan:
    """What fits."""

    views: int
    epochs: tuple[int, ...]
    fits: bool
    """False where even one epoch of each phase is expected to take longer; that is then what is planned."""

    def seconds(self, costs: Costs) -> float:
        """What it is expected to take."""
        return (
            costs.fixed
            + self.views * costs.view
            + sum(count * cost for count, cost in zip(self.epochs, costs.epochs, strict=True))
        )


def plan(left_s: float, costs: Costs, epochs: Sequence[int], views: int) -> Plan:
    """Scale the recipe's epochs, together, to the time that is left; views are given up first, down to two.

    Args:
        left_s: seconds until the run has to be finished.
        epochs: the recipe's, of each phase.
        views: the recipe's.
    """
    planned = left_s * _RESERVE
    wanted = sum(count * cost for count, cost in zip(epochs, costs.epochs, strict=True))
    for kept in range(views, 0, -1):
        scale = (planned - costs.fixed - kept * costs.view) / max(wanted, 1e-9)
        if scale >= 1 or kept <= min(2, views):
            break
    if kept == 2 and scale * min(epochs) < 1:
        # One epoch of each phase on one view is better than a run that is not finished.
        kept = 1
        scale = (planned - costs.fixed - costs.view) / max(wanted, 1e-9)
    counts = tuple(max(1, int(count * min(scale, LONGEST))) for count in epochs)
    found = Plan(min(kept, sum(counts)), counts, True)
    return Plan(found.views, found.epochs, found.seconds(costs) <= left_s)
