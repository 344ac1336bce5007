from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.train.common.precision import (
    ComputeConfig,
    keep_slow_kernels_in_float32,
    measure_step_ms,
    preserve_model_state,
)
from edgetl.train.engine.budget import MAX_EPOCH_SCALE, BudgetPlan, StepCosts, plan_budget
from edgetl.train.engine.optim import Loss, LrSchedule, MixedBatch, Mixup, ModelEma, make_optimizer
from edgetl.train.model.factory import AdaptedModel, build_adapted_model
from edgetl.train.model.freezing import resolve_unfreeze, set_trainable

CONFIG = FinetuneConfig(Path("data"), schedule="constant", warmup=0.0)


@pytest.fixture
def adapted() -> AdaptedModel:
    torch.manual_seed(0)
    return build_adapted_model("mobilenet_v2", 32, 3, 8, 0.2, None)


def test_weight_decay_and_lr_decay_per_parameter(
    adapted: AdaptedModel,
) -> None:
    set_trainable(adapted, 3)
    optimizer = make_optimizer(adapted, replace(CONFIG, weight_decay=0.05, lr_decay=0.5), 1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)
    lr_by_id = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    decay_by_id = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    parameters = dict(adapted.model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            assert decay_by_id[id(parameter)] == (0.05 if parameter.dim() > 1 else 0.0), name
        else:
            assert id(parameter) not in lr_by_id
    assert lr_by_id[id(parameters["classifier.1.1.weight"])] == 1e-3
    assert [
        lr_by_id[id(parameters[f"features.{block}.conv.0.0.weight"])] for block in (17, 16)
    ] == [
        0.25e-3,
        0.125e-3,
    ]
    assert lr_by_id[id(parameters["features.18.0.weight"])] == 0.5e-3
    assert not isinstance(make_optimizer(adapted, CONFIG, 1e-3), torch.optim.AdamW)


def lr_sequence(steps: int, **changes: object) -> list[float]:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 0.5)
    schedule = LrSchedule(optimizer, replace(CONFIG, **changes), steps)  # type: ignore[arg-type]
    values = []
    for _ in range(steps):
        schedule.advance()
        values.append(optimizer.param_groups[0]["lr"])
    return values


def test_lr_schedule_warmup_and_cosine() -> None:
    assert lr_sequence(4) == [0.5] * 4
    assert lr_sequence(4, warmup=0.5) == [0.25, 0.5, 0.5, 0.5]
    values = lr_sequence(10, schedule="cosine", warmup=0.2)
    assert values[:3] == pytest.approx([0.25, 0.5, 0.5])
    assert values[6] == pytest.approx(0.25)
    assert values == sorted(values[:2]) + sorted(values[2:], reverse=True)
    assert 0 < values[-1] < 0.03


@given(st.integers(1, 200), st.floats(0, 0.99), st.sampled_from(["constant", "cosine"]))
@settings(deadline=None, max_examples=50)
def test_lr_is_between_zero_and_base_lr(steps: int, warmup: float, schedule: str) -> None:
    assert all(
        0 <= rate <= 0.5 + 1e-12 for rate in lr_sequence(steps, warmup=warmup, schedule=schedule)
    )


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 2.0]])
TARGETS = torch.tensor([0, 0, 1, 2])


def unmixed_batch(targets: torch.Tensor = TARGETS) -> MixedBatch:
    return MixedBatch((), targets)


def mean(loss: Loss, mixed: MixedBatch) -> float:
    total, weight = loss(LOGITS, mixed)
    return float(total / weight)


def test_loss_equals_cross_entropy() -> None:
    cpu = torch.device("cpu")
    assert mean(Loss(CONFIG, TARGETS, 3, cpu), unmixed_batch()) == pytest.approx(
        float(F.cross_entropy(LOGITS, TARGETS))
    )
    smoothed = mean(Loss(replace(CONFIG, label_smoothing=0.1), TARGETS, 3, cpu), unmixed_batch())
    assert smoothed == pytest.approx(float(F.cross_entropy(LOGITS, TARGETS, label_smoothing=0.1)))
    weights = torch.tensor([4 / 6, 4 / 3, 4 / 3])
    balanced = mean(
        Loss(replace(CONFIG, class_weights="balanced"), TARGETS, 3, cpu), unmixed_batch()
    )
    assert balanced == pytest.approx(float(F.cross_entropy(LOGITS, TARGETS, weights)))
    partners = TARGETS.flip(0)
    mixed = mean(
        Loss(CONFIG, TARGETS, 3, cpu), MixedBatch((), TARGETS, partners, torch.full((4,), 0.7))
    )
    assert mixed == pytest.approx(
        float(0.7 * F.cross_entropy(LOGITS, TARGETS) + 0.3 * F.cross_entropy(LOGITS, partners))
    )


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_loss_equals_mixed_loss_with_share_of_1(class_weights: str) -> None:
    loss = Loss(
        replace(CONFIG, class_weights=class_weights, label_smoothing=0.1),
        TARGETS,
        3,
        torch.device("cpu"),
    )  # type: ignore[arg-type]
    gradients = []
    for mixed in (unmixed_batch(), MixedBatch((), TARGETS, TARGETS.flip(0), torch.ones(4))):
        logits = LOGITS.clone().requires_grad_()
        total, weight = loss(logits, mixed)
        (total / weight).backward()  # type: ignore[no-untyped-call]
        gradients.append((total, weight, logits.grad))
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_loss_is_finite_for_class_without_images() -> None:
    loss = Loss(
        replace(CONFIG, class_weights="balanced"), torch.tensor([0, 0]), 3, torch.device("cpu")
    )
    assert math.isfinite(mean(loss, unmixed_batch()))


def test_mixup_is_off_by_default() -> None:
    values = (torch.randn(4, 3, 8, 8),)
    state = torch.get_rng_state()
    mixed = Mixup(CONFIG, 1)(values, TARGETS)
    assert mixed.values is values
    assert mixed.target_share is None
    assert mixed.partner_targets is None
    assert torch.equal(torch.get_rng_state(), state)


def test_mixup_mixes_values_with_one_share() -> None:
    values = (torch.eye(4),)
    mixed = Mixup(replace(CONFIG, mixup=1.0), 1)(values, torch.arange(4))
    assert mixed.target_share is not None
    assert mixed.partner_targets is not None
    share = float(mixed.target_share[0])
    assert 0 < share < 1
    assert torch.allclose(
        mixed.values[0], share * torch.eye(4) + (1 - share) * torch.eye(4)[mixed.partner_targets]
    )
    again = Mixup(replace(CONFIG, mixup=1.0), 1)(values, torch.arange(4))
    assert again.partner_targets is not None
    assert torch.equal(again.partner_targets, mixed.partner_targets)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_target_share_equals_area(seed: int) -> None:
    values = (torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 10, 10).contiguous(),)
    before = values[0].clone()
    mixed = Mixup(replace(CONFIG, cutmix=1.0, seed=seed), 1)(values, torch.arange(4))
    assert torch.equal(values[0], before), "the cached values are unchanged"
    assert mixed.target_share is not None
    assert mixed.partner_targets is not None
    for row in range(4):
        share = float((mixed.values[0][row] == row).float().mean())
        is_own_partner = int(mixed.partner_targets[row]) == row
        expected = 1.0 if is_own_partner else float(mixed.target_share[row])
        assert share == pytest.approx(expected)


def test_cutmix_ignores_values_without_spatial_dimensions() -> None:
    values = (torch.eye(4),)
    assert Mixup(replace(CONFIG, cutmix=1.0), 1)(values, torch.arange(4)).values is values


def test_model_ema_averages_and_swaps_back() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    model[1].requires_grad_(False)
    model.train()
    average = ModelEma(model, decay=0.5)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        start = float(average.average[0])
        model[1].running_mean.fill_(4.0)  # type: ignore[operator,union-attr]
        average.update()
    weight = 2 / 11  # decay after the first step: (1 + 1) / (10 + 1)
    with average.swapped_in():
        assert float(model[0].weight) == pytest.approx(
            weight * start + (1 - weight) * 1.0, abs=1e-6
        )
        assert float(model[1].running_mean) == pytest.approx((1 - weight) * 4.0, abs=1e-6)  # type: ignore[arg-type]
    assert float(model[0].weight) == 1.0
    for _ in range(100):
        average.update()
    with average.swapped_in():
        assert float(model[0].weight) == pytest.approx(1.0, abs=1e-6)


def test_resolve_unfreeze_converts_shares_to_blocks(adapted: AdaptedModel) -> None:
    assert resolve_unfreeze("auto", adapted, 3) == "3"
    assert resolve_unfreeze("50%", adapted, 3) == "3"
    assert resolve_unfreeze("75%", adapted, 3) == "5"
    assert resolve_unfreeze("100%", adapted, 3) == "19"
    assert [resolve_unfreeze(value, adapted, 3) for value in ("head", "all", "7")] == [
        "head",
        "all",
        "7",
    ]


def test_strided_depthwise_uses_float32_under_autocast() -> None:
    strided, plain = (nn.Conv2d(8, 8, 3, stride, 1, groups=8) for stride in (2, 1))
    model = nn.Sequential(strided, plain)
    keep_slow_kernels_in_float32(model)
    x = torch.randn(2, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert strided(x).dtype == torch.float32
        assert model(x).dtype == torch.bfloat16
    expected = F.conv2d(
        x.bfloat16(), strided.weight.bfloat16(), strided.bias.bfloat16(), 2, 1, 1, 8
    )  # type: ignore[union-attr]
    assert torch.equal(model.bfloat16()[0](x.bfloat16()), expected), (
        "a model in bfloat16 is not converted"
    )


def test_measure_step_ms_preserves_state(adapted: AdaptedModel) -> None:
    set_trainable(adapted, "all", freeze_statistics=False).train_mode()
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    state = torch.get_rng_state()
    compute_config = ComputeConfig(torch.device("cpu"), "fp32", may_use_bf16=True)
    step_ms = measure_step_ms(adapted.model, adapted.model, (images,), labels, compute_config)
    assert step_ms.keys() == {"fp32", "bf16"}
    assert min(step_ms.values()) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(before[name], tensor) for name, tensor in adapted.model.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in adapted.model.parameters())


def test_preserve_model_state_ignores_unused_gpus(
    adapted: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        pytest.fail("a CUDA context was created on an unused GPU")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", fail)
    monkeypatch.setattr(torch.cuda, "set_rng_state", fail)
    state = torch.get_rng_state()
    with preserve_model_state(adapted.model):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_state_is_restored_when_measurement_fails(adapted: AdaptedModel) -> None:
    model = adapted.model.train()
    before = [buffer.clone() for buffer in model.buffers()]
    state = torch.get_rng_state()

    def measure() -> None:
        with preserve_model_state(model):
            model(torch.randn(2, 3, 32, 32)).sum().backward()
            raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        measure()
    assert all(map(torch.equal, model.buffers(), before))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


COSTS = StepCosts(view_s=2.0, fixed_s=1.0, epoch_s=(0.1, 3.0))


def test_plan_budget_scales_epochs_up_to_limit() -> None:
    plan = plan_budget(100, COSTS, (10, 5), 4)
    assert plan.views == 4
    assert plan.is_feasible
    assert 10 <= plan.epochs[0] <= MAX_EPOCH_SCALE * 10
    assert plan_budget(10_000, COSTS, (10, 5), 4).epochs == (30, 15)


def test_plan_budget_reduces_views_before_epochs() -> None:
    assert plan_budget(26, COSTS, (10, 5), 4).views == 2
    assert plan_budget(26, COSTS, (10, 5), 4).epochs == (10, 5)
    short = plan_budget(12, COSTS, (10, 5), 4)
    assert short.views == 2
    assert short.epochs[1] < 5
    infeasible = plan_budget(1, COSTS, (10, 5), 4)
    assert (infeasible.epochs, infeasible.views, infeasible.is_feasible) == ((1, 1), 1, False)


def test_plan_budget_gives_way_to_rounded_epoch() -> None:
    costs = StepCosts(0.0, 0.0, (3.0, 0.25))
    assert plan_budget(3.25, costs, (1, 3), 1) == BudgetPlan(1, (1, 1), True)
    assert plan_budget(3.0, costs, (1, 3), 1) == BudgetPlan(1, (1, 1), False)


@given(
    st.floats(0.1, 1000),
    st.floats(0, 50),
    st.floats(0, 10),
    st.lists(st.tuples(st.floats(0.01, 50), st.integers(1, 30)), min_size=1, max_size=2),
    st.integers(1, 10),
)
def test_budget_plan_fits_or_is_infeasible(
    left: float, view: float, fixed: float, phases: list[tuple[float, int]], views: int
) -> None:
    costs = StepCosts(view, fixed, tuple(cost for cost, _ in phases))
    plan = plan_budget(left, costs, [count for _, count in phases], views)
    assert min(plan.epochs) >= 1
    assert 1 <= plan.views <= views
    assert plan.is_feasible == (plan.estimate_seconds(costs) <= left)
    if plan.epochs != (1,) * len(phases):
        assert plan.is_feasible
