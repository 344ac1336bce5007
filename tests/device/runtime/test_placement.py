"""Placements recorded from real sessions of onnxruntime-gpu 1.31.1's CUDA provider: MobileNetV2 at 64 px, by its own partitioner."""

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


def recorded(name: str) -> list[NodeAssignment]:
    return [
        NodeAssignment(node, operator, f"{provider}ExecutionProvider")
        for node, operator, provider in _RECORDED[name]
    ]


def moved(
    assignments: list[NodeAssignment], operator: str, provider: str, count: int
) -> list[NodeAssignment]:
    """The first `count` nodes of an operator on another provider."""
    chosen = [index for index, node in enumerate(assignments) if node.operator == operator][:count]
    assert len(chosen) == count
    return [
        replace(node, provider=provider) if index in chosen else node
        for index, node in enumerate(assignments)
    ]


@pytest.mark.parametrize("name", sorted(_RECORDED))
def test_sessions_on_the_provider_pass(name: str) -> None:
    assignments = recorded(name)
    assert sum(node.operator == "Conv" for node in assignments) == 52
    check_placement(assignments, CHAIN)


def test_shape_arithmetic_on_the_cpu_is_no_mistake() -> None:
    assignments = recorded("image_fp32")
    assert sum(node.provider == CPU for node in assignments) == 12
    assert misplaced_nodes(assignments, {CUDA}) == []


def test_compute_nodes_on_the_cpu_are_named_and_counted() -> None:
    assignments = moved(recorded("tensor_fp32"), "Conv", CPU, 4)
    names = [node.name for node in misplaced_nodes(assignments, {CUDA})]
    assert len(names) == 4
    with pytest.raises(ProviderError) as caught:
        check_placement(assignments, CHAIN)
    message = str(caught.value)
    assert message.startswith(
        f"{CUDA} did not take 4 of 53 compute nodes; {CPU} got Conv {names[0]}, Conv {names[1]}"
    )
    assert f"{names[2]} and 1 more" in message
    assert names[3] not in message
    assert "--provider cpu" in message


def test_a_session_wholly_on_the_cpu_is_refused() -> None:
    assignments = [replace(node, provider=CPU) for node in recorded("tensor_int8")]
    with pytest.raises(ProviderError, match="did not take 53 of 53"):
        check_placement(assignments, CHAIN)


@pytest.mark.parametrize(
    "operator", ["ConvInteger", "QLinearConv", "FusedConv", "Gemm", "MatMul", "MatMulNBits"]
)
def test_every_compute_operator_counts(operator: str) -> None:
    with pytest.raises(ProviderError, match=f"{operator} last"):
        check_placement(
            [NodeAssignment("first", "Relu", CUDA), NodeAssignment("last", operator, CPU)], CHAIN
        )


def test_nodes_that_tensorrt_leaves_to_cuda_pass() -> None:
    assignments = moved(
        [replace(node, provider=TENSORRT) for node in recorded("tensor_fp32")], "Conv", CUDA, 2
    )
    check_placement(assignments, [TENSORRT, CUDA, CPU])
    with pytest.raises(ProviderError, match="did not take 2 of 53"):
        check_placement(assignments, [TENSORRT, CPU])


def test_xnnpack_may_leave_nodes_to_the_cpu_it_runs_on() -> None:
    xnnpack = "XnnpackExecutionProvider"
    assignments = moved(
        [replace(node, provider=xnnpack) for node in recorded("tensor_fp32")], "Conv", CPU, 2
    )
    check_placement(assignments, [xnnpack, CPU])
    with pytest.raises(ProviderError, match="53 of 53"):
        check_placement([replace(node, provider=CPU) for node in assignments], [xnnpack, CPU])


def test_the_cpu_is_right_where_it_was_asked_for() -> None:
    check_placement([replace(node, provider=CPU) for node in recorded("tensor_fp32")], [CPU])


def test_a_graph_without_compute_nodes_is_not_judged() -> None:
    check_placement([NodeAssignment("only", "Relu", CPU)], CHAIN)


def test_shares_add_up() -> None:
    share = provider_node_shares(node.provider for node in recorded("image_fp32"))
    assert share == {CPU: pytest.approx(12 / 203), CUDA: pytest.approx(191 / 203)}


def test_assignments_of_a_real_session_are_read() -> None:
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


def test_an_onnxruntime_without_the_record_says_nothing() -> None:
    assert read_node_assignments(object()) is None
