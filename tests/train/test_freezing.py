from __future__ import annotations

import pytest
import torch
from torch import nn

from edgetl.core.errors import ConfigError
from edgetl.train.freezing import Freezing, set_trainable
from edgetl.train.models import AdaptedNetwork, adapt


@pytest.fixture
def adapted() -> AdaptedNetwork:
    torch.manual_seed(0)
    return adapt("mobilenet_v3_small", 32, 2, 8, 0.2, None)


def step(freezing: Freezing) -> None:
    freezing.train_mode()
    optimiser = torch.optim.SGD(freezing.trained_parameters(), 0.1)
    loss = freezing.network(torch.randn(4, 3, 32, 32)).square().sum()
    loss.backward()
    optimiser.step()


def norms(network: nn.Module, block: str) -> list[nn.Module]:
    return [module for module in network.get_submodule(block).modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("unfreeze", ["head", 0, 2, "2", 14])
def test_exactly_the_asked_blocks_and_the_head_are_trained(adapted: AdaptedNetwork, unfreeze: int | str) -> None:
    count = 0 if unfreeze == "head" else int(unfreeze)
    freezing = set_trainable(adapted, unfreeze)
    trained = {name for name, parameter in adapted.network.named_parameters() if parameter.requires_grad}
    allowed = [adapted.layer.path, *(path for block in adapted.blocks[len(adapted.blocks) - count :] for path in block.modules)]
    expected = {name for name, _ in adapted.network.named_parameters() if any(name.startswith(f"{path}.") for path in allowed)}
    assert trained == expected
    step(freezing)
    freezing.prove()


def test_all_trains_the_stem_as_well() -> None:
    torch.manual_seed(0)
    adapted = adapt("vit_b_32", 32, 2, 8, 0.2, None)
    set_trainable(adapted, len(adapted.blocks))
    assert not adapted.network.class_token.requires_grad
    assert not adapted.network.encoder.pos_embedding.requires_grad
    set_trainable(adapted, "all")
    assert all(parameter.requires_grad for parameter in adapted.network.parameters())


def test_statistics_of_frozen_blocks_stand_still_even_when_trained_ones_move(adapted: AdaptedNetwork) -> None:
    freezing = set_trainable(adapted, 3, freeze_statistics=False)
    for _ in range(2):
        step(freezing)
    assert not any(
        module.training
        for block in adapted.blocks[:-3]
        for path in block.modules
        for module in adapted.network.get_submodule(path).modules()
    )
    assert all(module.training for module in norms(adapted.network, adapted.blocks[-3].name))
    assert float(norms(adapted.network, adapted.blocks[-3].name)[0].running_mean.abs().sum()) > 0  # type: ignore[operator]
    freezing.prove()


def test_by_default_no_statistics_move(adapted: AdaptedNetwork) -> None:
    freezing = set_trainable(adapted, 3)
    step(freezing)
    assert not any(module.training for module in adapted.network.modules() if isinstance(module, nn.BatchNorm2d))
    assert "features.12.1.running_mean" in freezing.digests
    assert "features.12.1.weight" not in freezing.digests
    freezing.prove()


def test_the_proof_names_a_parameter_that_moved(adapted: AdaptedNetwork) -> None:
    freezing = set_trainable(adapted, "head")
    with torch.no_grad():
        adapted.network.features[0][0].weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(RuntimeError, match=r"features\.0\.0\.weight"):
        freezing.prove()


def test_the_proof_names_statistics_that_moved(adapted: AdaptedNetwork) -> None:
    freezing = set_trainable(adapted, "head")
    adapted.network.train()  # what train_mode() is there to avoid
    adapted.network(torch.randn(4, 3, 32, 32))
    with pytest.raises(RuntimeError, match="running_mean"):
        freezing.prove()


def test_more_blocks_than_there_are(adapted: AdaptedNetwork) -> None:
    with pytest.raises(ConfigError, match="--unfreeze 15: the backbone has 14 blocks"):
        set_trainable(adapted, 15)
