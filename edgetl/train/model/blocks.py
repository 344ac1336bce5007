"""The backbone as an ordered list of blocks, so that "the last N" never cuts through one.

Found by structure: containers are opened until what is left are the units that an architecture is stacked from
(a residual block, an inverted residual, an encoder layer, a lone convolution). A normalisation belongs to the block before it.
Parameters in no block (a class token, position embeddings) belong to the stem: they are trained only when everything is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class BackboneBlock:
    """One unit of the backbone."""

    module_paths: tuple[str, ...]
    """Paths of its modules, as in `named_modules()`."""

    @property
    def name(self) -> str:
        """The path of its first module."""
        return self.module_paths[0]


def find_blocks(network: nn.Module, classification_layer: str) -> list[BackboneBlock]:
    """The blocks of everything but the classification layer, in forward order.

    torchvision's classifiers define their modules in the order in which they run; a test holds every family to it.
    """
    excluded = network.get_submodule(classification_layer)
    backbone = _count_parameters(network) - _count_parameters(excluded)
    blocks: list[BackboneBlock] = []
    for path, module in _units(network, "", excluded, backbone):
        if blocks and _is_leaf(module) and not _has_weight_matrix(module):
            blocks[-1] = BackboneBlock((*blocks[-1].module_paths, path))
        else:
            blocks.append(BackboneBlock((path,)))
    return blocks


def count_last_blocks(network: nn.Module, blocks: list[BackboneBlock], share: float = 0.5) -> int:
    """The fewest last blocks that hold this share of all blocks' parameters."""
    sizes = [
        sum(_count_parameters(network.get_submodule(path)) for path in block.module_paths)
        for block in blocks
    ]
    for count in range(1, len(blocks) + 1):
        if sum(sizes[-count:]) >= share * sum(sizes):
            return count
    return 0


def _units(
    module: nn.Module, path: str, excluded: nn.Module, backbone: int
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if child is excluded or not (
            _count_parameters(child) or any(True for _ in child.buffers())
        ):
            continue
        if _is_stack(child, backbone) or any(inner is excluded for inner in child.modules()):
            yield from _units(child, child_path, excluded, backbone)
        else:
            yield child_path, child


def _is_stack(module: nn.Module, backbone: int) -> bool:
    children = [child for child in module.children() if _count_parameters(child)]
    if isinstance(module, _CONTAINERS):
        return (
            any(not _is_leaf(child) for child in children)
            or sum(_has_weight_matrix(child) for child in children) > 1
        )
    if len(children) == 1 and isinstance(children[0], nn.ModuleList):
        return True  # MaxVitBlock: nothing but a list of layers
    return not _is_leaf(module) and 2 * _count_parameters(module) > backbone  # ViT's encoder


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _has_weight_matrix(module: nn.Module) -> bool:
    # Normalisations and layer scales have vectors; convolutions, linear layers and embeddings have matrices.
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
