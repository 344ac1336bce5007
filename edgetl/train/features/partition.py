"""Partition of a model at the first trainable block, so that features before it are computed once.

torch.fx traces the model with its blocks as single nodes: they remain the modules that are trained,
with their modes and weights; only their connections are rewritten. A node is fixed if nothing that
it depends on can change between two epochs.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.freezing import NORM_LAYERS

_RANDOM_MODULES = (nn.modules.dropout._DropoutNd, StochasticDepth)


@dataclass(frozen=True)
class Cut:
    """Values that cross from the fixed part of a model to the rest."""

    node_names: tuple[str, ...]
    """Names of the nodes that produce the values."""

    @property
    def name(self) -> str:
        """Name for cache keys and messages."""
        return "+".join(self.node_names)


class TracedModel:
    """A model as a graph of its blocks."""

    def __init__(self, adapted: AdaptedModel) -> None:
        """Trace the model.

        Raises:
            ValueError: the model cannot be traced. It is then trained without a feature cache.
        """
        leaf_paths = {path for block in adapted.blocks for path in block.module_paths}
        leaf_paths.add(adapted.classifier_layer.path)
        try:
            graph = _trace(adapted.model, leaf_paths)
        except Exception as cause:  # forward methods raise anything when given fx proxies
            raise ValueError(f"torch.fx cannot trace the model: {cause}") from cause
        self._model = adapted.model
        self._graph = graph
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self.input_cut = Cut((inputs[0].name,))

    def find_cut(self) -> Cut:
        """Return the end of the fixed part, for the current trainable parameters and modes."""
        fixed: set[fx.Node] = set()
        for node in self._graph.nodes:
            if node.op == "output":
                continue
            if all(input_node in fixed for input_node in node.all_input_nodes) and self._is_fixed(
                node
            ):
                fixed.add(node)
        crossing = [
            node
            for node in self._graph.nodes
            if node in fixed
            and node.op != "get_attr"
            and any(user not in fixed for user in node.users)
        ]
        return Cut(tuple(node.name for node in crossing))

    def has_blocks_before(self, cut: Cut) -> bool:
        """Return whether any block runs before `cut`; without one a feature cache is useless."""
        nodes_by_name = {node.name: node for node in self._graph.nodes}
        return any(
            node.op == "call_module"
            for node in _collect_ancestors([nodes_by_name[name] for name in cut.node_names], set())
        )

    def extract_subgraph(self, start: Cut, end: Cut | None = None) -> fx.GraphModule:
        """Return the part from `start` to `end`, sharing the model's modules and parameters.

        Returns:
            (value, ...) -> (value, ...); without `end`, (value, ...) -> logits.

        Raises:
            ValueError: `end` needs a value from before `start` that does not cross there.
        """
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        nodes_by_name = {node.name: node for node in self._graph.nodes}
        for name in start.node_names:
            copies[nodes_by_name[name]] = graph.placeholder(name)
        output = next(node for node in self._graph.nodes if node.op == "output")
        end_nodes = list(output.all_input_nodes)
        if end:
            end_nodes = [nodes_by_name[name] for name in end.node_names]
        needed = _collect_ancestors(end_nodes, set(copies))
        for node in self._graph.nodes:
            if node in needed:
                if node.op == "placeholder":
                    raise ValueError(f"{node.name} is needed after the cut at {start.name}")
                copies[node] = graph.node_copy(node, lambda original: copies[original])
        graph.output(tuple(copies[node] for node in end_nodes) if end else copies[end_nodes[0]])
        return fx.GraphModule(self._model, graph)

    def _is_fixed(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return _is_fixed_module(self._model.get_submodule(str(node.target)))
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self._model)
            return not (isinstance(value, Tensor) and value.requires_grad)
        return "dropout" not in str(node.target)


def check_subgraphs(
    traced: TracedModel, model: nn.Module, cuts: Sequence[Cut], image_size: int
) -> None:
    """Check on two noise images that the subgraphs between the cuts reproduce the model's logits.

    Raises:
        ValueError: the logits differ, or a value has no batch axis.
    """
    model.eval()
    parameter = next(model.parameters())
    noise = torch.randn(
        2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)
    ).to(parameter.device, parameter.dtype)
    values: tuple[Tensor, ...] = (noise,)
    with torch.inference_mode():
        expected = model(noise)
        start = traced.input_cut
        for cut in cuts:
            values = traced.extract_subgraph(start, cut)(*values)
            if not all(
                isinstance(value, Tensor) and value.dim() > 0 and len(value) == 2
                for value in values
            ):
                raise ValueError(f"a value at {cut.name} has no row per image")
            start = cut
        logits = traced.extract_subgraph(start)(*values)
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
        raise ValueError("the subgraphs do not reproduce the model's logits")


def _trace(model: nn.Module, leaf_paths: set[str]) -> fx.Graph:
    """Trace a model called with one image batch; its other arguments keep their defaults."""
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {item.name: item.default for item in parameters if item.default is not item.empty}
    graph = _Tracer(leaf_paths).trace(model, defaults or None)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder in placeholders[1:]:
        _erase_with_users(graph, placeholder)
    return graph


def _erase_with_users(graph: fx.Graph, node: fx.Node) -> None:
    # torch.fx only asserts that such an argument has its default.
    for user in list(node.users):
        _erase_with_users(graph, user)
    graph.erase_node(node)


class _Tracer(fx.Tracer):
    def __init__(self, leaf_paths: set[str]) -> None:
        super().__init__()
        self._leaf_paths = leaf_paths

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaf_paths or super().is_leaf_module(
            m, module_qualified_name
        )


def _is_fixed_module(module: nn.Module) -> bool:
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    return not any(
        submodule.training and (isinstance(submodule, NORM_LAYERS) or _is_random(submodule))
        for submodule in module.modules()
    )


def _is_random(module: nn.Module) -> bool:
    return isinstance(module, _RANDOM_MODULES) and float(module.p) > 0


def _collect_ancestors(nodes: Sequence[fx.Node], boundary: set[fx.Node]) -> set[fx.Node]:
    """Return `nodes` and all nodes that they depend on, without those in `boundary`."""
    ancestors: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in ancestors and node not in boundary:
            ancestors.add(node)
            stack += node.all_input_nodes
    return ancestors


def wrap_channels_last(module: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `module` with image-like inputs converted to channels-last, the fastest layout."""

    def forward(*values: Tensor) -> Tensor:
        converted = (
            value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
            for value in values
        )
        return module(*converted)

    return forward
