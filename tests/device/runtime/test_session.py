"""Sessions that run where they were asked to, or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetl.core.errors import BundleError, ProviderError
from edgetl.device.runtime import session as sessions
from edgetl.device.runtime.classifier import Classifier
from edgetl.device.runtime.placement import NodeAssignment
from edgetl.device.runtime.session import (
    available_providers,
    create_session,
    raise_provider_failure,
)
from tests.helpers.bundles import CONTRACT, LABELS, colour_model

MODEL: bytes = colour_model().SerializeToString()
without_gpu = pytest.mark.skipif(
    "cuda" not in available_providers() or Path("/dev/nvidia0").exists(),
    reason="needs the GPU wheel without a GPU",
)
EPFail = type("EPFail", (Exception,), {})
NO_ENGINE = (
    "[ONNXRuntimeError] : 11 : EP_FAIL : Non-zero status code returned while running Conv node. Name:'features.0' Status Message: "
    "Failed to initialize CUDNN Frontend: /src/cudnn_fe_call.cc:117 std::conditional_t<THRW> onnxruntime::CudaCall(int) "
    "CUDNN_FE failure 8: HEURISTIC_QUERY_FAILED ; GPU=0 ; hostname=vm ; file=/src/conv.cc ; line=238"
)


class FakeSession:
    """A session of onnxruntime as far as edgetl asks; remembers how it was made."""

    made: dict[str, Any]

    def __init__(
        self,
        content: object,
        options: Any,
        providers: list[tuple[str, dict[str, str]]],
        **rest: Any,
    ) -> None:
        FakeSession.made = {"options": options, "providers": providers, **rest}

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.made["providers"]]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="pixels", shape=["batch", "height", "width", 3])]

    def run(self, names: list[str], feed: dict[str, Any], options: Any = None) -> Any:
        raise EPFail(NO_ENGINE)


@pytest.fixture
def assignments(monkeypatch: pytest.MonkeyPatch) -> list[NodeAssignment]:
    """CUDA is there; the returned nodes are those that its session records."""
    nodes: list[NodeAssignment] = []
    monkeypatch.setattr(sessions.onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(sessions, "available_providers", lambda: ["cpu", "cuda", "tensorrt"])
    monkeypatch.setattr(sessions, "preload_cuda_libraries", lambda: None)
    monkeypatch.setattr(sessions, "read_node_assignments", lambda session: nodes)
    return nodes


def test_onnxruntime_may_not_answer_from_another_provider() -> None:
    session = create_session(MODEL)
    assert not session._enable_fallback


def test_a_session_on_a_gpu_records_its_placement(assignments: list[NodeAssignment]) -> None:
    create_session(MODEL, "cuda")
    assert FakeSession.made["enable_fallback"] == 0
    assert (
        FakeSession.made["options"].get_session_config_entry(sessions.RECORD_ASSIGNMENT_OPTION)
        == "1"
    )


def test_a_conv_on_the_cpu_is_refused_when_the_session_is_made(
    assignments: list[NodeAssignment],
) -> None:
    assignments += [NodeAssignment("features.0", "Conv", "CPUExecutionProvider")]
    with pytest.raises(
        ProviderError,
        match=r"did not take 1 of 1 compute nodes; CPUExecutionProvider got Conv features\.0",
    ):
        create_session(MODEL, "cuda")


def test_tensorrt_gets_precision_and_cache(
    assignments: list[NodeAssignment], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path))
    create_session(MODEL, "tensorrt", precision="fp16")
    (name, options), *behind = FakeSession.made["providers"]
    assert (name, options["trt_fp16_enable"]) == ("TensorrtExecutionProvider", "True")
    assert Path(options["trt_engine_cache_path"]).is_relative_to(tmp_path)
    assert behind[-1] == ("CPUExecutionProvider", {})


def test_placement_that_is_not_recorded_is_said_to_be_unknown(
    assignments: list[NodeAssignment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "read_node_assignments", lambda session: None)
    with pytest.warns(UserWarning, match="does not record where it places nodes"):
        create_session(MODEL, "cuda")


def test_a_run_that_a_provider_fails_is_an_error_in_one_sentence(
    assignments: list[NodeAssignment],
) -> None:
    classifier = Classifier(create_session(MODEL, "cuda"), LABELS, CONTRACT, "image")
    with pytest.raises(ProviderError) as caught:
        classifier.classify(np.zeros((8, 8, 3), np.uint8))
    message = str(caught.value)
    assert (
        "CUDAExecutionProvider loaded the model but failed to run it: Conv features.0: CUDNN_FE failure 8: HEURISTIC_QUERY_FAILED. "
        in message
    )
    assert "hostname" not in message


def test_other_errors_of_a_run_are_left_alone(assignments: list[NodeAssignment]) -> None:
    session = create_session(MODEL, "cuda")
    raise_provider_failure(session, ValueError("wrong shape"))
    with pytest.raises(ProviderError):
        raise_provider_failure(session, RuntimeError("Error in execution: " + NO_ENGINE))


@without_gpu
def test_the_library_that_lacks_is_named() -> None:
    with pytest.raises(
        ProviderError, match=r"CUDAExecutionProvider did not start: lib\w+\.so\.\d+ is missing\. "
    ):
        create_session(MODEL, "cuda")


@without_gpu
def test_a_broken_file_is_not_the_providers_fault() -> None:
    with pytest.raises(BundleError, match="cannot load the model"):
        create_session(MODEL[: len(MODEL) // 2], "cuda")
