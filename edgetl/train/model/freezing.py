"""Freezing: select the trainable parameters and verify that the others do not change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.train.model.blocks import count_last_blocks
from edgetl.train.model.factory import AdaptedModel

NORM_LAYERS = (nn.modules.batchnorm._NormBase,)
"""Layers whose running statistics change in training mode."""
_INPUT_SAVING_ACTIVATIONS = (nn.Hardtanh, nn.Hardswish, nn.SiLU, nn.Mish)
"""Activations whose derivative needs the input, which autograd copies if they run in place.

ReLU6 is a Hardtanh. ReLU's derivative needs only the output.
"""


@dataclass(frozen=True)
class FrozenState:
    """A model with its parameters split into trainable and frozen ones."""

    model: nn.Module
    frozen_blocks: tuple[nn.Module, ...]
    """Modules kept in evaluation mode: no running statistics, no stochastic depth."""
    freeze_statistics: bool
    """Whether the BatchNorm statistics of trainable blocks are frozen too."""
    digests: Mapping[str, str]
    """SHA-256 of every frozen parameter and buffer."""

    def train_mode(self) -> None:
        """Set training mode for the trainable part; call it instead of `model.train()`."""
        self.model.train()
        for block in self.frozen_blocks:
            block.eval()
        if self.freeze_statistics:
            for module in self.model.modules():
                if isinstance(module, NORM_LAYERS):
                    module.eval()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters for the optimizer."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def verify_unchanged(self) -> None:
        """Verify that no frozen tensor has changed.

        Raises:
            RuntimeError: a frozen tensor has changed, which is a bug.
        """
        tensors = dict(_named_tensors(self.model))
        changed = [
            name for name, digest in self.digests.items() if tensor_digest(tensors[name]) != digest
        ]
        if changed:
            raise RuntimeError(
                f"{len(changed)} frozen tensors changed during training: {', '.join(changed[:5])}"
            )


def set_trainable(
    adapted: AdaptedModel, unfreeze: int | str, freeze_statistics: bool = True
) -> FrozenState:
    """Split the model into frozen and trainable parts; the head is always trainable.

    Args:
        adapted: the model.
        unfreeze: number of last blocks to train; `head` for none, `all` for everything including
            the stem.
        freeze_statistics: keep BatchNorm in evaluation mode everywhere, not only in frozen blocks.

    Raises:
        ConfigError: the backbone has fewer blocks.
    """
    model = adapted.model
    blocks = adapted.blocks
    count = count_unfrozen_blocks(unfreeze, len(blocks))
    frozen_blocks = blocks[: len(blocks) - count]
    trainable_blocks = blocks[len(blocks) - count :]
    model.requires_grad_(unfreeze == "all")
    block_paths = (block.module_paths for block in trainable_blocks)
    for path in chain([adapted.classifier_layer.path], *block_paths):
        model.get_submodule(path).requires_grad_(True)
    frozen_modules = tuple(
        model.get_submodule(path) for block in frozen_blocks for path in block.module_paths
    )
    use_out_of_place_activations(model, frozen_modules)
    frozen_names = {
        name for name, parameter in model.named_parameters() if not parameter.requires_grad
    }
    frozen_names |= _frozen_buffers(model, frozen_modules, freeze_statistics)
    digests = {
        name: tensor_digest(tensor)
        for name, tensor in _named_tensors(model).items()
        if name in frozen_names
    }
    return FrozenState(model, frozen_modules, freeze_statistics, digests)


def use_out_of_place_activations(model: nn.Module, frozen: Sequence[nn.Module] = ()) -> None:
    """Disable in-place activations outside `frozen` if autograd would copy their input.

    Values and gradients are bit-identical, and memory is the same: the copy was as large as the new
    tensor.
    """
    frozen_ids = {id(submodule) for module in frozen for submodule in module.modules()}
    for module in model.modules():
        if isinstance(module, _INPUT_SAVING_ACTIVATIONS) and id(module) not in frozen_ids:
            module.inplace = False


def resolve_unfreeze(unfreeze: str, adapted: AdaptedModel, default: int) -> str:
    """Resolve `auto` and shares of the parameters to a number of blocks; keep `head` and `all`.

    Args:
        unfreeze: value of `--unfreeze`.
        adapted: the model.
        default: number of blocks for `auto`.

    Raises:
        ConfigError: the backbone has fewer blocks.
    """
    if unfreeze == "auto":
        return str(default)
    if unfreeze.endswith("%"):
        return str(count_last_blocks(adapted.model, adapted.blocks, float(unfreeze[:-1]) / 100))
    count_unfrozen_blocks(unfreeze, len(adapted.blocks))
    return unfreeze


def count_unfrozen_blocks(unfreeze: int | str, blocks: int) -> int:
    """Return the number of last blocks to train, given the number of `blocks`.

    Raises:
        ConfigError: there are fewer blocks.
    """
    if unfreeze == "all":
        return blocks
    count = 0 if unfreeze == "head" else int(unfreeze)
    if count > blocks:
        raise ConfigError(
            f"{{unfreeze}} {count}: the backbone has {blocks} blocks. "
            f"Use a number up to {blocks}, or `all`.",
            FinetuneConfig,
        )
    return count


def _frozen_buffers(
    model: nn.Module, frozen: tuple[nn.Module, ...], freeze_statistics: bool
) -> set[str]:
    frozen_ids = {id(submodule) for module in frozen for submodule in module.modules()}
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, _ in module.named_buffers(recurse=False)
        if id(module) in frozen_ids or (freeze_statistics and isinstance(module, NORM_LAYERS))
    }


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def tensor_digest(tensor: Tensor) -> str:
    """Return the hexadecimal SHA-256 of a tensor's dtype, shape and values in row-major order."""
    contiguous = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{contiguous.dtype} {tuple(contiguous.shape)}".encode())
    digest.update(contiguous.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
