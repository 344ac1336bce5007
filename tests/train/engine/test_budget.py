"""Parts of a run are timed by themselves, whatever a GPU was given before."""

from __future__ import annotations

import torch

from edgetl.train.common.precision import ComputeConfig
from edgetl.train.engine.budget import _time_call


class RecordingComputing(ComputeConfig):
    """Records when the program waits for the device."""

    def synchronize(self) -> None:
        """Record it."""
        events.append("wait")


events: list[str] = []


def test_the_device_is_idle_before_and_after_a_timing() -> None:
    events.clear()
    _time_call(lambda: events.append("call"), RecordingComputing(torch.device("cpu"), "fp32"))
    assert events == ["wait", "call", "wait"]
