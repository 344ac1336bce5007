"""The network cut in pieces where it stops being a fixed function, so that what comes before can be computed once.

The network is traced by torch.fx with its blocks as single nodes: they stay the very modules that are trained, with their modes and
weights; only what connects them is rewritten. A node is fixed when nothing that it depends on can change between two epochs.
"""

from __future__ import annotations

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
    """Values that cross from the fixed part of a network to the rest, by the names of the nodes that give them."""

    node_names: tuple[str, ...]

    @property
    def name(self) -> str:
        """For keys and messages."""
        return "+".join(self.node_names)


class TracedModel:
    """A network as a graph of its blocks."""

    def __init__(self, adapted: AdaptedModel) -> None:
        """Trace it.

        Raises:
            ValueError: it cannot be traced, which is no fault of the user's: it is then trained as a whole.
        """
        whole = {path for block in adapted.blocks for path in block.module_paths} | {
            adapted.classifier_layer.path
        }
        try:
            graph = _Tracer(whole).trace(adapted.model)
        except Exception as cause:  # whatever a forward method does with a proxy that is no tensor
            raise ValueError(f"torch.fx cannot trace it: {cause}") from cause
        self._model = adapted.model
        self._graph = graph
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self.input_cut = Cut((inputs[0].name,))

    def find_cut(self) -> Cut:
        """Where the network stops being fixed, with its parameters and modules as they are set now for training."""
        fixed: set[fx.Node] = set()
        for node in self._graph.nodes:
            if (
                node.op != "output"
                and all(needed in fixed for needed in node.all_input_nodes)
                and self._is_fixed(node)
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
        """Whether any block runs before `cut`: without one there is nothing worth computing once."""
        named = {node.name: node for node in self._graph.nodes}
        return any(
            node.op == "call_module"
            for node in _collect_ancestors([named[name] for name in cut.node_names], set())
        )

    def extract_subgraph(self, start: Cut, end: Cut | None = None) -> fx.GraphModule:
        """The part from `start` to `end`: (value, ...) -> (value, ...); without an end to the logits: (value, ...) -> tensor.

        Its modules and parameters are the network's own.

        Raises:
            ValueError: `end` needs a value from before `start` that does not cross there.
        """
        graph = fx.Graph()
        known: dict[fx.Node, fx.Node] = {}
        named = {node.name: node for node in self._graph.nodes}
        for name in start.node_names:
            known[named[name]] = graph.placeholder(name)
        output = next(node for node in self._graph.nodes if node.op == "output")
        wanted = [named[name] for name in end.node_names] if end else list(output.all_input_nodes)
        needed = _collect_ancestors(wanted, set(known))
        for node in self._graph.nodes:
            if node in needed:
                if node.op == "placeholder":
                    raise ValueError(f"{node.name} is needed behind the cut {start.name}")
                known[node] = graph.node_copy(node, lambda one: known[one])
        graph.output(tuple(known[node] for node in wanted) if end else known[wanted[0]])
        return fx.GraphModule(self._model, graph)

    def _is_fixed(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return _is_fixed_module(self._model.get_submodule(str(node.target)))
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self._model)
            return not (isinstance(value, Tensor) and value.requires_grad)
        return "dropout" not in str(node.target)


def check_subgraphs(
    traced: TracedModel, network: nn.Module, cuts: Sequence[Cut], image_size: int
) -> None:
    """Prove on two noise images that the pieces between the cuts give the network's own logits, and that each value has a row an image.

    Raises:
        ValueError: they do not.
    """
    network.eval()
    parameter = next(network.parameters())
    noise = torch.randn(
        2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)
    ).to(parameter.device, parameter.dtype)
    values: tuple[Tensor, ...] = (noise,)
    with torch.inference_mode():
        expected = network(noise)
        start = traced.input_cut
        for cut in cuts:
            values = traced.extract_subgraph(start, cut)(*values)
            if not all(
                isinstance(value, Tensor) and value.dim() > 0 and len(value) == 2
                for value in values
            ):
                raise ValueError(f"not every value at {cut.name} has a row for each image")
            start = cut
        logits = traced.extract_subgraph(start)(*values)
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
        raise ValueError("its pieces do not give the logits of the whole")


class _Tracer(fx.Tracer):
    def __init__(self, whole: set[str]) -> None:
        super().__init__()
        self._leaf_paths = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaf_paths or super().is_leaf_module(
            m, module_qualified_name
        )


def _is_fixed_module(module: nn.Module) -> bool:
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    return not any(
        inner.training and (isinstance(inner, NORM_LAYERS) or _is_random(inner))
        for inner in module.modules()
    )


def _is_random(module: nn.Module) -> bool:
    return isinstance(module, _RANDOM_MODULES) and float(module.p) > 0


def _collect_ancestors(wanted: Sequence[fx.Node], known: set[fx.Node]) -> set[fx.Node]:
    needed: set[fx.Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node not in needed and node not in known:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed


def wrap_channels_last(module: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function of values in whatever order of memory, given to the module as its convolutions are fastest."""

    def forward(*values: Tensor) -> Tensor:
        ordered = (
            value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
            for value in values
        )
        return module(*ordered)

    return forward
