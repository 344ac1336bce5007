from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgetl.core.errors import ConfigError
from edgetl.train.model.factory import AdaptedModel, build_adapted_model
from edgetl.train.model.freezing import FrozenState, set_trainable


@pytest.fixture
def adapted() -> AdaptedModel:
    torch.manual_seed(0)
    return build_adapted_model("mobilenet_v3_small", 32, 2, 8, 0.2, None)


def step(frozen_state: FrozenState) -> None:
    frozen_state.train_mode()
    optimizer = torch.optim.SGD(frozen_state.trainable_parameters(), 0.1)
    loss = frozen_state.model(torch.randn(4, 3, 32, 32)).square().sum()
    loss.backward()
    optimizer.step()


def batch_norms(network: nn.Module, block: str) -> list[nn.Module]:
    return [
        module
        for module in network.get_submodule(block).modules()
        if isinstance(module, nn.BatchNorm2d)
    ]


@pytest.mark.parametrize("unfreeze", ["head", 0, 2, "2", 14])
def test_set_trainable_selects_last_blocks_and_head(
    adapted: AdaptedModel, unfreeze: int | str
) -> None:
    count = 0 if unfreeze == "head" else int(unfreeze)
    frozen_state = set_trainable(adapted, unfreeze)
    trained = {
        name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad
    }
    allowed = [
        adapted.classifier_layer.path,
        *(
            path
            for block in adapted.blocks[len(adapted.blocks) - count :]
            for path in block.module_paths
        ),
    ]
    expected = {
        name
        for name, _ in adapted.model.named_parameters()
        if any(name.startswith(f"{path}.") for path in allowed)
    }
    assert trained == expected
    step(frozen_state)
    frozen_state.verify_unchanged()


def test_set_trainable_all_includes_the_stem() -> None:
    torch.manual_seed(0)
    adapted = build_adapted_model("vit_b_32", 32, 2, 8, 0.2, None)
    set_trainable(adapted, len(adapted.blocks))
    assert not adapted.model.class_token.requires_grad
    assert not adapted.model.encoder.pos_embedding.requires_grad
    set_trainable(adapted, "all")
    assert all(parameter.requires_grad for parameter in adapted.model.parameters())


def test_frozen_blocks_keep_statistics_when_trained_ones_change(
    adapted: AdaptedModel,
) -> None:
    frozen_state = set_trainable(adapted, 3, freeze_statistics=False)
    for _ in range(2):
        step(frozen_state)
    assert not any(
        module.training
        for block in adapted.blocks[:-3]
        for path in block.module_paths
        for module in adapted.model.get_submodule(path).modules()
    )
    assert all(module.training for module in batch_norms(adapted.model, adapted.blocks[-3].name))
    assert (
        float(batch_norms(adapted.model, adapted.blocks[-3].name)[0].running_mean.abs().sum()) > 0
    )  # type: ignore[operator]
    frozen_state.verify_unchanged()


def test_statistics_are_frozen_by_default(adapted: AdaptedModel) -> None:
    frozen_state = set_trainable(adapted, 3)
    step(frozen_state)
    assert not any(
        module.training for module in adapted.model.modules() if isinstance(module, nn.BatchNorm2d)
    )
    assert "features.12.1.running_mean" in frozen_state.digests
    assert "features.12.1.weight" not in frozen_state.digests
    frozen_state.verify_unchanged()


def test_verify_unchanged_names_changed_parameter(adapted: AdaptedModel) -> None:
    frozen_state = set_trainable(adapted, "head")
    with torch.no_grad():
        adapted.model.features[0][0].weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(RuntimeError, match=r"features\.0\.0\.weight"):
        frozen_state.verify_unchanged()


def test_verify_unchanged_names_changed_statistics(adapted: AdaptedModel) -> None:
    frozen_state = set_trainable(adapted, "head")
    adapted.model.train()  # instead of train_mode()
    adapted.model(torch.randn(4, 3, 32, 32))
    with pytest.raises(RuntimeError, match="running_mean"):
        frozen_state.verify_unchanged()


def test_set_trainable_rejects_too_many_blocks(adapted: AdaptedModel) -> None:
    with pytest.raises(ConfigError, match="unfreeze 15: the backbone has 14 blocks"):
        set_trainable(adapted, 15)


class CloneCounter(TorchDispatchMode):
    """Counter of the tensors that autograd copies."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operator; count it if it is a copy."""
        self.count += func is torch.ops.aten.clone.default
        return func(*args, **(kwargs or {}))


def set_in_place(network: nn.Module, in_place: bool) -> None:
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = in_place


@pytest.mark.parametrize("model", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"])
def test_out_of_place_activations_are_identical_without_copies(model: str) -> None:
    clones: list[int] = []
    results: list[list[Tensor]] = []
    for in_place in (True, False):
        torch.manual_seed(0)
        adapted = build_adapted_model(model, 32, 2, 8, 0.2, None)
        frozen_state = set_trainable(adapted, "all", freeze_statistics=False)
        if in_place:
            set_in_place(adapted.model, True)
        frozen_state.train_mode()
        with CloneCounter() as counter:
            for _ in range(2):
                step(frozen_state)
        clones.append(counter.count)
        results.append([*adapted.model.parameters(), *adapted.model.buffers()])
    assert clones[1] <= 2  # from EfficientNet's head, not from an activation
    assert clones[0] >= 30
    assert all(map(torch.equal, *results))


def test_frozen_activations_stay_in_place(adapted: AdaptedModel) -> None:
    frozen_state = set_trainable(adapted, 2)
    frozen = {id(module) for block in frozen_state.frozen_blocks for module in block.modules()}
    inplace_by_frozen = {
        id(module) in frozen: module.inplace
        for module in adapted.model.modules()
        if isinstance(module, nn.Hardswish)
    }
    assert inplace_by_frozen == {True: True, False: False}
