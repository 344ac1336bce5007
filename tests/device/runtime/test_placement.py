"""Checks of node placements recorded from real sessions.

The sessions ran MobileNetV2 at 64 px on the CUDA provider of onnxruntime-gpu 1.31.1.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from edgetl.core.errors import ProviderError
from edgetl.device.runtime.placement import (
    RECORD_ASSIGNMENT_OPTION,
    NodeAssignment,
    check_placement,
    misplaced_nodes,
    provider_node_shares,
    read_node_assignments,
)
from tests.helpers.bundles import colour_model

CUDA, CPU, TENSORRT = "CUDAExecutionProvider", "CPUExecutionProvider", "TensorrtExecutionProvider"
CHAIN = [CUDA, CPU]
_RECORDED = json.loads(Path(__file__).with_name("placements.json").read_text())


def read_recorded(name: str) -> list[NodeAssignment]:
    return [
        NodeAssignment(node, operator, f"{provider}ExecutionProvider")
        for node, operator, provider in _RECORDED[name]
    ]


def move_nodes(
    assignments: list[NodeAssignment], operator: str, provider: str, count: int
) -> list[NodeAssignment]:
    """Move the first `count` nodes of an operator to another provider."""
    indices = [index for index, node in enumerate(assignments) if node.operator == operator]
    assert len(indices) >= count
    return [
        replace(node, provider=provider) if index in indices[:count] else node
        for index, node in enumerate(assignments)
    ]


@pytest.mark.parametrize("name", sorted(_RECORDED))
def test_check_placement_passes_when_all_on_provider(name: str) -> None:
    assignments = read_recorded(name)
    assert sum(node.operator == "Conv" for node in assignments) == 52
    check_placement(assignments, CHAIN)


def test_shape_nodes_on_cpu_are_not_misplaced() -> None:
    assignments = read_recorded("image_fp32")
    assert sum(node.provider == CPU for node in assignments) == 12
    assert misplaced_nodes(assignments, {CUDA}) == []


def test_check_placement_lists_compute_nodes_on_cpu() -> None:
    assignments = move_nodes(read_recorded("tensor_fp32"), "Conv", CPU, 4)
    names = [node.name for node in misplaced_nodes(assignments, {CUDA})]
    assert len(names) == 4
    with pytest.raises(ProviderError) as error:
        check_placement(assignments, CHAIN)
    message = str(error.value)
    assert message.startswith(
        f"{CUDA} did not take 4 of 53 compute nodes; {CPU} got Conv {names[0]}, Conv {names[1]}"
    )
    assert f"{names[2]} and 1 more" in message
    assert names[3] not in message
    assert "--provider cpu" in message


def test_check_placement_rejects_session_fully_on_cpu() -> None:
    assignments = [replace(node, provider=CPU) for node in read_recorded("tensor_int8")]
    with pytest.raises(ProviderError, match="did not take 53 of 53"):
        check_placement(assignments, CHAIN)


@pytest.mark.parametrize(
    "operator", ["ConvInteger", "QLinearConv", "FusedConv", "Gemm", "MatMul", "MatMulNBits"]
)
def test_check_placement_covers_every_compute_operator(operator: str) -> None:
    with pytest.raises(ProviderError, match=f"{operator} last"):
        check_placement(
            [NodeAssignment("first", "Relu", CUDA), NodeAssignment("last", operator, CPU)], CHAIN
        )


def test_check_placement_accepts_tensorrt_nodes_on_cuda() -> None:
    assignments = move_nodes(
        [replace(node, provider=TENSORRT) for node in read_recorded("tensor_fp32")], "Conv", CUDA, 2
    )
    check_placement(assignments, [TENSORRT, CUDA, CPU])
    with pytest.raises(ProviderError, match="did not take 2 of 53"):
        check_placement(assignments, [TENSORRT, CPU])


def test_check_placement_accepts_xnnpack_nodes_on_cpu() -> None:
    xnnpack = "XnnpackExecutionProvider"
    assignments = move_nodes(
        [replace(node, provider=xnnpack) for node in read_recorded("tensor_fp32")], "Conv", CPU, 2
    )
    check_placement(assignments, [xnnpack, CPU])
    with pytest.raises(ProviderError, match="53 of 53"):
        check_placement([replace(node, provider=CPU) for node in assignments], [xnnpack, CPU])


def test_check_placement_accepts_cpu_when_requested() -> None:
    check_placement([replace(node, provider=CPU) for node in read_recorded("tensor_fp32")], [CPU])


def test_check_placement_passes_without_compute_nodes() -> None:
    check_placement([NodeAssignment("only", "Relu", CPU)], CHAIN)


def test_provider_node_shares_add_up() -> None:
    shares = provider_node_shares(node.provider for node in read_recorded("image_fp32"))
    assert shares == {CPU: pytest.approx(12 / 203), CUDA: pytest.approx(191 / 203)}


def test_read_node_assignments_of_real_session() -> None:
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime does not record its partitioning")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(RECORD_ASSIGNMENT_OPTION, "1")
    session = onnxruntime.InferenceSession(
        colour_model().SerializeToString(), options, providers=[CPU]
    )
    assignments = read_node_assignments(session)
    assert assignments is not None
    assert {"Gemm", "Softmax"} <= {node.operator for node in assignments}
    assert {node.provider for node in assignments} == {CPU}


def test_read_node_assignments_is_none_when_unsupported() -> None:
    assert read_node_assignments(object()) is None
