"""Checkpoint files: what was saved comes back, whatever the order of memory; a damaged file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.errors import RunError
from edgetl.train.engine.checkpoint import read_checkpoint, write_checkpoint


def test_state_comes_back_in_any_order_of_memory(tmp_path: Path) -> None:
    def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network, torch.optim.AdamW(network.parameters(), fused=True)

    def step(network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
        network(
            torch.ones(1, 3, 5, 5).mul_(torch.arange(3).view(1, 3, 1, 1))
        ).square().sum().backward()
        optimiser.step()

    network, optimiser = parts()
    step(network, optimiser)
    write_checkpoint(
        tmp_path / "s.safetensors", {"network": network, "optimiser": optimiser}, {"step": 1}
    )
    again, its_optimiser = parts()
    state = read_checkpoint(tmp_path / "s.safetensors")
    assert state.metadata == {"step": 1}
    state.restore("network", again)
    state.restore("optimiser", its_optimiser)
    for one in ((network, optimiser), (again, its_optimiser)):
        one[1].zero_grad()
        step(*one)
    assert torch.equal(network.weight, again.weight)  # type: ignore[arg-type]
    (tmp_path / "s.safetensors").write_bytes(b"cut")
    with pytest.raises(RunError, match="Cannot resume from"):
        read_checkpoint(tmp_path / "s.safetensors")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_state_with_any_bit_flipped_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    tensors = {
        "a": torch.arange(20, dtype=torch.bfloat16),
        "b": torch.tensor(3),
        "c": torch.zeros(0, 4),
    }
    write_checkpoint(path, {"network": tensors}, {"epochs": {"done": 3}, "lr": 0.001})
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(RunError, match="Cannot resume from"):
        read_checkpoint(path)
