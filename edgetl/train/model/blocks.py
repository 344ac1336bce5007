"""Ordered blocks of a backbone, so that "the last N blocks" never splits one.

Blocks are found by structure: containers, and stages that only pass their input through repeated
units, are opened until the units that an architecture is stacked from remain (a residual block, an
inverted residual, an encoder layer, a single convolution). A normalization layer belongs to the
block before it. Parameters outside all blocks (a class token, position embeddings) belong to the
stem, which is trained only with `all`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import fx, nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class BackboneBlock:
    """A unit of the backbone."""

    module_paths: tuple[str, ...]
    """Paths of the modules, as in `named_modules()`."""

    @property
    def name(self) -> str:
        """Path of the first module."""
        return self.module_paths[0]


def find_blocks(model: nn.Module, classifier_path: str) -> list[BackboneBlock]:
    """Return the blocks of everything but the classification layer, in forward order.

    torchvision's classifiers define their modules in the order in which they run; a test checks
    this for every family.
    """
    classifier = model.get_submodule(classifier_path)
    backbone_size = _count_parameters(model) - _count_parameters(classifier)
    blocks: list[BackboneBlock] = []
    for path, module in _units(model, "", classifier, backbone_size):
        if blocks and _is_leaf(module) and not _has_weight_matrix(module):
            blocks[-1] = BackboneBlock((*blocks[-1].module_paths, path))
        else:
            blocks.append(BackboneBlock((path,)))
    return blocks


def count_last_blocks(model: nn.Module, blocks: list[BackboneBlock], share: float = 0.5) -> int:
    """Return the smallest number of last blocks with this share of all blocks' parameters."""
    sizes = [
        sum(_count_parameters(model.get_submodule(path)) for path in block.module_paths)
        for block in blocks
    ]
    for count in range(1, len(blocks) + 1):
        if sum(sizes[-count:]) >= share * sum(sizes):
            return count
    return 0


def _units(
    module: nn.Module, path: str, classifier: nn.Module, backbone_size: int
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if child is classifier:
            continue
        if not _count_parameters(child) and not any(True for _ in child.buffers()):
            continue
        if _is_stack(child, backbone_size) or any(
            submodule is classifier for submodule in child.modules()
        ):
            yield from _units(child, child_path, classifier, backbone_size)
        else:
            yield child_path, child


def _is_stack(module: nn.Module, backbone_size: int) -> bool:
    children = [child for child in module.children() if _count_parameters(child)]
    if isinstance(module, _CONTAINERS):
        return (
            any(not _is_leaf(child) for child in children)
            or sum(_has_weight_matrix(child) for child in children) > 1
        )
    if len(children) == 1 and isinstance(children[0], nn.ModuleList):
        return True  # MaxVitBlock contains only a list of layers
    # ViT's encoder holds most of the backbone.
    is_large = not _is_leaf(module) and 2 * _count_parameters(module) > backbone_size
    return is_large or (_has_repeated_units(module) and _is_chain(module))


def _has_repeated_units(module: nn.Module) -> bool:
    """Return whether a container in the module has only units of one class, and several.

    A unit has several layers with weights, unlike the parts of an inverted residual.
    """
    for container in module.children():
        units = list(container.children()) if isinstance(container, _CONTAINERS) else []
        is_uniform = len({type(unit) for unit in units}) == 1
        if is_uniform and len(units) > 1 and all(_count_weight_layers(unit) > 1 for unit in units):
            return True
    return False


def _is_chain(module: nn.Module) -> bool:
    """Return whether the module passes its input from child to child, without a branch."""
    try:
        nodes = list(_ChildTracer().trace(module).nodes)
    except Exception:  # forward methods raise anything when given fx proxies
        return False
    return all(node.all_input_nodes == [previous] for previous, node in pairwise(nodes))


class _ChildTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, _CONTAINERS)


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _count_weight_layers(module: nn.Module) -> int:
    return sum(_has_weight_matrix(submodule) for submodule in module.modules())


def _has_weight_matrix(module: nn.Module) -> bool:
    # Normalizations and layer scales have vectors; convolutions, linear layers and embeddings have
    # matrices.
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
