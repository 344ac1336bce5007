"""Timing of calls on a device that may be busy."""

from __future__ import annotations

import torch

from edgetl.train.common.precision import ComputeConfig
from edgetl.train.engine.budget import _time_call


class RecordingComputeConfig(ComputeConfig):
    """Compute configuration that records synchronizations."""

    def synchronize(self) -> None:
        """Record the call."""
        events.append("wait")


events: list[str] = []


def test_time_call_synchronizes_before_and_after() -> None:
    events.clear()
    _time_call(lambda: events.append("call"), RecordingComputeConfig(torch.device("cpu"), "fp32"))
    assert events == ["wait", "call", "wait"]
