"""Checkpoint files: round trip in any memory format, and damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.errors import RunError
from edgetl.train.engine.checkpoint import (
    load_optimizer_tensors,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)


def test_state_round_trip_in_any_memory_format(tmp_path: Path) -> None:
    def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, torch.optim.AdamW(model.parameters(), fused=True)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(
            torch.ones(1, 3, 5, 5).mul_(torch.arange(3).view(1, 3, 1, 1))
        ).square().sum().backward()
        optimizer.step()

    model, optimizer = parts()
    step(model, optimizer)
    tensors = {"network": model.state_dict(), "optimiser": optimizer_tensors(optimizer)}
    write_checkpoint(tmp_path / "s.safetensors", tensors, {"step": 1})
    restored_model, restored_optimizer = parts()
    checkpoint = read_checkpoint(tmp_path / "s.safetensors")
    assert checkpoint.facts == {"step": 1}
    restored_model.load_state_dict(checkpoint.part("network"))
    load_optimizer_tensors(restored_optimizer, checkpoint.part("optimiser"))
    for pair in ((model, optimizer), (restored_model, restored_optimizer)):
        pair[1].zero_grad()
        step(*pair)
    assert torch.equal(model.weight, restored_model.weight)  # type: ignore[arg-type]
    (tmp_path / "s.safetensors").write_bytes(b"cut")
    with pytest.raises(RunError, match="Cannot resume from"):
        read_checkpoint(tmp_path / "s.safetensors")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_checkpoint_with_flipped_bit_is_rejected(
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
