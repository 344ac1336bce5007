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
from edgetl.train.engine.budget import MAX_EPOCH_SCALE, StepCosts, plan_budget
from edgetl.train.engine.optim import Loss, LrSchedule, MixedBatch, Mixup, ModelEma, make_optimizer
from edgetl.train.model.factory import AdaptedModel, build_adapted_model
from edgetl.train.model.freezing import resolve_unfreeze, set_trainable

CONFIG = FinetuneConfig(Path("data"), schedule="constant", warmup=0.0)


@pytest.fixture
def adapted() -> AdaptedModel:
    torch.manual_seed(0)
    return build_adapted_model("mobilenet_v2", 32, 3, 8, 0.2, None)


def test_only_matrices_decay_and_rates_fall_with_the_distance_from_the_head(
    adapted: AdaptedModel,
) -> None:
    set_trainable(adapted, 3)
    optimiser = make_optimizer(adapted, replace(CONFIG, weight_decay=0.05, lr_decay=0.5), 1e-3)
    assert isinstance(optimiser, torch.optim.AdamW)
    rate = {
        id(parameter): group["lr"]
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    named = dict(adapted.model.named_parameters())
    for name, parameter in named.items():
        if parameter.requires_grad:
            assert decay[id(parameter)] == (0.05 if parameter.dim() > 1 else 0.0), name
        else:
            assert id(parameter) not in rate
    assert rate[id(named["classifier.1.1.weight"])] == 1e-3
    assert [rate[id(named[f"features.{block}.conv.0.0.weight"])] for block in (17, 16)] == [
        0.25e-3,
        0.125e-3,
    ]
    assert rate[id(named["features.18.0.weight"])] == 0.5e-3
    assert not isinstance(make_optimizer(adapted, CONFIG, 1e-3), torch.optim.AdamW)


def rates(steps: int, **changes: object) -> list[float]:
    optimiser = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 0.5)
    schedule = LrSchedule(optimiser, replace(CONFIG, **changes), steps)  # type: ignore[arg-type]
    found = []
    for _ in range(steps):
        schedule.advance()
        found.append(optimiser.param_groups[0]["lr"])
    return found


def test_rates_rise_and_then_fall_along_a_cosine() -> None:
    assert rates(4) == [0.5] * 4
    assert rates(4, warmup=0.5) == [0.25, 0.5, 0.5, 0.5]
    found = rates(10, schedule="cosine", warmup=0.2)
    assert found[:3] == pytest.approx([0.25, 0.5, 0.5])
    assert found[6] == pytest.approx(0.25)
    assert found == sorted(found[:2]) + sorted(found[2:], reverse=True)
    assert 0 < found[-1] < 0.03


@given(st.integers(1, 200), st.floats(0, 0.99), st.sampled_from(["constant", "cosine"]))
@settings(deadline=None, max_examples=50)
def test_rates_are_never_negative_nor_above_the_phase_s(
    steps: int, warmup: float, schedule: str
) -> None:
    assert all(0 <= rate <= 0.5 + 1e-12 for rate in rates(steps, warmup=warmup, schedule=schedule))


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 2.0]])
TARGETS = torch.tensor([0, 0, 1, 2])


def whole(targets: torch.Tensor = TARGETS) -> MixedBatch:
    return MixedBatch((), targets)


def mean(loss: Loss, mixed: MixedBatch) -> float:
    total, weight = loss(LOGITS, mixed)
    return float(total / weight)


def test_the_loss_is_cross_entropy() -> None:
    cpu = torch.device("cpu")
    assert mean(Loss(CONFIG, TARGETS, 3, cpu), whole()) == pytest.approx(
        float(F.cross_entropy(LOGITS, TARGETS))
    )
    smoothed = mean(Loss(replace(CONFIG, label_smoothing=0.1), TARGETS, 3, cpu), whole())
    assert smoothed == pytest.approx(float(F.cross_entropy(LOGITS, TARGETS, label_smoothing=0.1)))
    weights = torch.tensor([4 / 6, 4 / 3, 4 / 3])
    balanced = mean(Loss(replace(CONFIG, class_weights="balanced"), TARGETS, 3, cpu), whole())
    assert balanced == pytest.approx(float(F.cross_entropy(LOGITS, TARGETS, weights)))
    partners = TARGETS.flip(0)
    mixed = mean(
        Loss(CONFIG, TARGETS, 3, cpu), MixedBatch((), TARGETS, partners, torch.full((4,), 0.7))
    )
    assert mixed == pytest.approx(
        float(0.7 * F.cross_entropy(LOGITS, TARGETS) + 0.3 * F.cross_entropy(LOGITS, partners))
    )


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_an_unmixed_loss_is_the_mixed_one_with_a_share_of_1(class_weights: str) -> None:
    loss = Loss(
        replace(CONFIG, class_weights=class_weights, label_smoothing=0.1),
        TARGETS,
        3,
        torch.device("cpu"),
    )  # type: ignore[arg-type]
    gradients = []
    for mixed in (whole(), MixedBatch((), TARGETS, TARGETS.flip(0), torch.ones(4))):
        logits = LOGITS.clone().requires_grad_()
        total, weight = loss(logits, mixed)
        (total / weight).backward()  # type: ignore[no-untyped-call]
        gradients.append((total, weight, logits.grad))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_a_class_without_images_does_not_break_the_weights() -> None:
    loss = Loss(
        replace(CONFIG, class_weights="balanced"), torch.tensor([0, 0]), 3, torch.device("cpu")
    )
    assert math.isfinite(mean(loss, whole()))


def test_mixing_is_off_by_default_and_touches_nothing() -> None:
    values = (torch.randn(4, 3, 8, 8),)
    state = torch.get_rng_state()
    mixed = Mixup(CONFIG, 1)(values, TARGETS)
    assert mixed.values is values
    assert mixed.target_share is None
    assert mixed.partner_targets is None
    assert torch.equal(torch.get_rng_state(), state)


def test_mixup_mixes_values_and_targets_by_one_share() -> None:
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
def test_cutmix_pastes_a_box_and_counts_its_area(seed: int) -> None:
    values = (torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 10, 10).contiguous(),)
    before = values[0].clone()
    mixed = Mixup(replace(CONFIG, cutmix=1.0, seed=seed), 1)(values, torch.arange(4))
    assert torch.equal(values[0], before), "the cached values stay as they are"
    assert mixed.target_share is not None
    assert mixed.partner_targets is not None
    for at in range(4):
        own = float((mixed.values[0][at] == at).float().mean())
        expected = 1.0 if int(mixed.partner_targets[at]) == at else float(mixed.target_share[at])
        assert own == pytest.approx(expected)


def test_cutmix_leaves_values_without_a_place_alone() -> None:
    values = (torch.eye(4),)
    assert Mixup(replace(CONFIG, cutmix=1.0), 1)(values, torch.arange(4)).values is values


def test_averaged_weights_follow_and_are_only_lent() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    network[1].requires_grad_(False)
    network.train()
    average = ModelEma(network, decay=0.5)
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        start = float(average.average[0])
        network[1].running_mean.fill_(4.0)  # type: ignore[operator,union-attr]
        average.update()
    weight = 2 / 11  # the first step counts (1 + 1) / (10 + 1): the start is not worth keeping
    with average.swapped_in():
        assert float(network[0].weight) == pytest.approx(
            weight * start + (1 - weight) * 1.0, abs=1e-6
        )
        assert float(network[1].running_mean) == pytest.approx((1 - weight) * 4.0, abs=1e-6)  # type: ignore[arg-type]
    assert float(network[0].weight) == 1.0
    for _ in range(100):
        average.update()
    with average.swapped_in():
        assert float(network[0].weight) == pytest.approx(1.0, abs=1e-6)


def test_shares_of_the_parameters_are_blocks(adapted: AdaptedModel) -> None:
    assert resolve_unfreeze("auto", adapted, 3) == "3"
    assert resolve_unfreeze("50%", adapted, 3) == "3"
    assert resolve_unfreeze("75%", adapted, 3) == "5"
    assert resolve_unfreeze("100%", adapted, 3) == "19"
    assert [resolve_unfreeze(kept, adapted, 3) for kept in ("head", "all", "7")] == [
        "head",
        "all",
        "7",
    ]


def test_strided_depthwise_layers_compute_in_float32_under_autocast_only() -> None:
    strided, plain = (nn.Conv2d(8, 8, 3, stride, 1, groups=8) for stride in (2, 1))
    network = nn.Sequential(strided, plain)
    keep_slow_kernels_in_float32(network)
    x = torch.randn(2, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert strided(x).dtype == torch.float32
        assert network(x).dtype == torch.bfloat16
    expected = F.conv2d(
        x.bfloat16(), strided.weight.bfloat16(), strided.bias.bfloat16(), 2, 1, 1, 8
    )  # type: ignore[union-attr]
    assert torch.equal(network.bfloat16()[0](x.bfloat16()), expected), (
        "a network in bfloat16 stays one"
    )


def test_measuring_steps_leaves_no_trace(adapted: AdaptedModel) -> None:
    set_trainable(adapted, "all", freeze_statistics=False).train_mode()
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    state = torch.get_rng_state()
    computing = ComputeConfig(torch.device("cpu"), "fp32", may_use_bf16=True)
    taken = measure_step_ms(adapted.model, adapted.model, (images,), labels, computing)
    assert taken.keys() == {"fp32", "bf16"}
    assert min(taken.values()) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(before[name], tensor) for name, tensor in adapted.model.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in adapted.model.parameters())


def test_only_the_generators_in_use_are_saved(
    adapted: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def visit(*_: object) -> None:
        pytest.fail("a CUDA context is made on a GPU that does not train")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", visit)
    monkeypatch.setattr(torch.cuda, "set_rng_state", visit)
    state = torch.get_rng_state()
    with preserve_model_state(adapted.model):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_state_is_restored_when_a_measurement_fails(adapted: AdaptedModel) -> None:
    network = adapted.model.train()
    before = [buffer.clone() for buffer in network.buffers()]
    state = torch.get_rng_state()

    def measure() -> None:
        with preserve_model_state(network):
            network(torch.randn(2, 3, 32, 32)).sum().backward()
            raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        measure()
    assert all(map(torch.equal, network.buffers(), before))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())


COSTS = StepCosts(view_s=2.0, fixed_s=1.0, epoch_s=(0.1, 3.0))


def test_with_time_enough_the_recipe_is_kept_and_grows_up_to_a_limit() -> None:
    found = plan_budget(100, COSTS, (10, 5), 4)
    assert found.views == 4
    assert found.is_feasible
    assert 10 <= found.epochs[0] <= MAX_EPOCH_SCALE * 10
    assert plan_budget(10_000, COSTS, (10, 5), 4).epochs == (30, 15)


def test_views_go_before_epochs_and_epochs_before_the_time() -> None:
    assert plan_budget(26, COSTS, (10, 5), 4).views == 2
    assert plan_budget(26, COSTS, (10, 5), 4).epochs == (10, 5)
    short = plan_budget(12, COSTS, (10, 5), 4)
    assert short.views == 2
    assert short.epochs[1] < 5
    hopeless = plan_budget(1, COSTS, (10, 5), 4)
    assert (hopeless.epochs, hopeless.views, hopeless.is_feasible) == ((1, 1), 1, False)


@given(
    st.floats(0.1, 1000),
    st.floats(0, 50),
    st.floats(0, 10),
    st.lists(st.tuples(st.floats(0.01, 50), st.integers(1, 30)), min_size=1, max_size=2),
    st.integers(1, 10),
)
def test_what_is_planned_fits_or_says_that_it_does_not(
    left: float, view: float, fixed: float, phases: list[tuple[float, int]], views: int
) -> None:
    costs = StepCosts(view, fixed, tuple(cost for cost, _ in phases))
    found = plan_budget(left, costs, [count for _, count in phases], views)
    assert min(found.epochs) >= 1
    assert 1 <= found.views <= views
    assert found.is_feasible == (found.estimate_seconds(costs) <= left)
    if found.epochs != (1,) * len(phases):
        assert found.is_feasible
