"""What is trained and what is not; frozen means frozen, and that is proven."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from edgetl.core.errors import ConfigError
from edgetl.train.model.blocks import count_last_blocks
from edgetl.train.model.factory import AdaptedModel

NORM_LAYERS = (nn.modules.batchnorm._NormBase,)
"""Layers whose statistics move in training mode."""
_INPUT_SAVING_ACTIVATIONS = (nn.Hardtanh, nn.Hardswish, nn.SiLU, nn.Mish)
"""Activations (ReLU6 is a Hardtanh) whose derivative needs the input: in place, autograd first copies it. ReLU's needs the output."""


@dataclass(frozen=True)
class FrozenState:
    """A network whose parameters are split into trained and frozen ones."""

    model: nn.Module
    frozen_blocks: tuple[nn.Module, ...]
    """Kept in evaluation mode: a frozen block is a fixed function, without moving statistics or stochastic depth."""
    freeze_statistics: bool
    """Keep the BatchNorm statistics of trained blocks, too."""
    digests: Mapping[str, str]
    """SHA-256 of every frozen parameter and buffer."""

    def train_mode(self) -> None:
        """`.train()` for what is trained; call it instead of `network.train()`."""
        self.model.train()
        for block in self.frozen_blocks:
            block.eval()
        if self.freeze_statistics:
            for module in self.model.modules():
                if isinstance(module, NORM_LAYERS):
                    module.eval()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimiser gets."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def verify_unchanged(self) -> None:
        """Raise RuntimeError, naming them, if frozen tensors changed: that would be a bug, and the run's claims would be false."""
        now = dict(_named_tensors(self.model))
        changed = [
            name for name, digest in self.digests.items() if tensor_digest(now[name]) != digest
        ]
        if changed:
            raise RuntimeError(
                f"frozen tensors changed during training: {', '.join(changed[:5])} ({len(changed)} in all)"
            )


def set_trainable(
    adapted: AdaptedModel, unfreeze: int | str, freeze_statistics: bool = True
) -> FrozenState:
    """Split the network into frozen and trained parts; the head is always trained.

    Args:
        unfreeze: that many last blocks, `head` for none of them, `all` for everything, the stem included.
        freeze_statistics: BatchNorm in evaluation mode everywhere, not only in frozen blocks.

    Raises:
        ConfigError: there are not that many blocks.
    """
    network, blocks = adapted.model, adapted.blocks
    count = count_unfrozen_blocks(unfreeze, len(blocks))
    frozen, trained = blocks[: len(blocks) - count], blocks[len(blocks) - count :]
    network.requires_grad_(unfreeze == "all")
    for path in chain([adapted.classifier_layer.path], *(block.module_paths for block in trained)):
        network.get_submodule(path).requires_grad_(True)
    frozen_modules = tuple(
        network.get_submodule(path) for block in frozen for path in block.module_paths
    )
    use_out_of_place_activations(network, frozen_modules)
    still = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    still |= _frozen_buffers(network, frozen_modules, freeze_statistics)
    digests = {
        name: tensor_digest(tensor)
        for name, tensor in _named_tensors(network).items()
        if name in still
    }
    return FrozenState(network, frozen_modules, freeze_statistics, digests)


def use_out_of_place_activations(network: nn.Module, frozen: Sequence[nn.Module] = ()) -> None:
    """Let activations outside `frozen` write a new tensor where autograd would copy their input before overwriting it.

    Values and gradients stay the same, bit by bit, and memory too: the copy took as much as the new tensor.
    """
    inside = {id(inner) for module in frozen for inner in module.modules()}
    for module in network.modules():
        if isinstance(module, _INPUT_SAVING_ACTIVATIONS) and id(module) not in inside:
            module.inplace = False


def resolve_unfreeze(unfreeze: str, adapted: AdaptedModel, usual: int) -> str:
    """`auto` and shares of the parameters as the number of blocks that they mean; `head` and `all` stay.

    Raises:
        ConfigError: more blocks than there are.
    """
    if unfreeze == "auto":
        return str(usual)
    if unfreeze.endswith("%"):
        return str(count_last_blocks(adapted.model, adapted.blocks, float(unfreeze[:-1]) / 100))
    count_unfrozen_blocks(unfreeze, len(adapted.blocks))
    return unfreeze


def count_unfrozen_blocks(unfreeze: int | str, blocks: int) -> int:
    """How many last blocks of `blocks` are trained.

    Raises:
        ConfigError: there are not that many.
    """
    count = blocks if unfreeze == "all" else 0 if unfreeze == "head" else int(unfreeze)
    if count > blocks:
        raise ConfigError(
            f"--unfreeze {count}: the backbone has {blocks} blocks. Give at most that many, or `all`."
        )
    return count


def _frozen_buffers(
    network: nn.Module, frozen: tuple[nn.Module, ...], freeze_statistics: bool
) -> set[str]:
    inside = {id(inner) for module in frozen for inner in module.modules()}
    return {
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        for name, _ in module.named_buffers(recurse=False)
        if id(module) in inside or (freeze_statistics and isinstance(module, NORM_LAYERS))
    }


def _named_tensors(network: nn.Module) -> dict[str, Tensor]:
    return dict(chain(network.named_parameters(), network.named_buffers()))


def tensor_digest(tensor: Tensor) -> str:
    """Return the hexadecimal SHA-256 of a tensor's type, shape and values, row by row."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
