"""Checkpoint files: what was saved comes back, whatever the order of memory; a damaged file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgetl.core.errors import RunError
from edgetl.train.checkpoint import read_state, write_state


def test_state_comes_back_in_any_order_of_memory(tmp_path: Path) -> None:
    def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network, torch.optim.AdamW(network.parameters(), fused=True)

    def step(network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
        network(torch.ones(1, 3, 5, 5).mul_(torch.arange(3).view(1, 3, 1, 1))).square().sum().backward()
        optimiser.step()

    network, optimiser = parts()
    step(network, optimiser)
    write_state(tmp_path / "s.safetensors", {"network": network, "optimiser": optimiser}, {"step": 1})
    again, its_optimiser = parts()
    state = read_state(tmp_path / "s.safetensors")
    assert state.facts == {"step": 1}
    state.restore("network", again)
    state.restore("optimiser", its_optimiser)
    for one in ((network, optimiser), (again, its_optimiser)):
        one[1].zero_grad()
        step(*one)
    assert torch.equal(network.weight, again.weight)  # type: ignore[arg-type]
    (tmp_path / "s.safetensors").write_bytes(b"cut")
    with pytest.raises(RunError, match="cannot be gone on with"):
        read_state(tmp_path / "s.safetensors")
