from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from edgetl.train.engine.domain_shift import NUM_IMAGES, batch_norm_shift


def make_model() -> nn.Sequential:
    layer = nn.BatchNorm2d(3)
    nn.init.constant_(layer.running_mean, 2.0)  # type: ignore[arg-type]
    nn.init.constant_(layer.running_var, 9.0)  # type: ignore[arg-type]
    return nn.Sequential(layer)


def batches(
    mean: float, std: float, count: int = NUM_IMAGES // 16
) -> list[tuple[tuple[Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        ((mean + std * torch.randn(16, 3, 20, 20, generator=generator),), torch.zeros(16))
        for _ in range(count)
    ]


def test_shift_is_zero_for_pretraining_statistics() -> None:
    module = make_model()
    assert batch_norm_shift(module, module, batches(2, 3)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("mean", "std"), [(5.0, 3.0), (2.0, 6.0), (2.0, 0.5), (-4.0, 1.0)])
def test_shift_is_divergence_of_normal_distributions(mean: float, std: float) -> None:
    module = make_model()
    expected = math.log(3 / std) + (std**2 + (mean - 2) ** 2) / (2 * 9) - 0.5
    assert batch_norm_shift(module, module, batches(mean, std)) == pytest.approx(expected, rel=0.02)


def test_shift_is_zero_without_trainable_batch_norm() -> None:
    module = make_model().requires_grad_(False)
    assert batch_norm_shift(module, module, batches(50, 3)) == 0.0
    assert batch_norm_shift(nn.Sequential(nn.Conv2d(3, 3, 1)), module, batches(50, 3)) == 0.0


def test_shift_stops_at_num_images_and_removes_hooks() -> None:
    module = make_model().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    remaining = iter(batches(2, 3, 3 * NUM_IMAGES // 16))
    batch_norm_shift(module, module, remaining)
    assert len(list(remaining)) == 2 * NUM_IMAGES // 16
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module[0]._forward_pre_hooks
