"""Sessions run on the requested provider or raise an error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgetl.core.errors import BundleError, ProviderError
from edgetl.device.runtime import session as session_module
from edgetl.device.runtime.classifier import Classifier
from edgetl.device.runtime.placement import NodeAssignment
from edgetl.device.runtime.session import (
    available_providers,
    create_session,
    raise_provider_failure,
)
from edgetl.device.runtime.sessions.onnxruntime_session import OnnxRuntimeSession
from tests.helpers.bundles import CONTRACT, LABELS, colour_model

MODEL: bytes = colour_model().SerializeToString()
without_gpu = pytest.mark.skipif(
    "cuda" not in available_providers() or Path("/dev/nvidia0").exists(),
    reason="needs the GPU wheel without a GPU",
)
EPFail = type("EPFail", (Exception,), {})
NO_ENGINE = (
    "[ONNXRuntimeError] : 11 : EP_FAIL : Non-zero status code returned while running Conv node. "
    "Name:'features.0' Status Message: Failed to initialize CUDNN Frontend: "
    "/src/cudnn_fe_call.cc:117 std::conditional_t<THRW> onnxruntime::CudaCall(int) "
    "CUDNN_FE failure 8: HEURISTIC_QUERY_FAILED ; "
    "GPU=0 ; hostname=vm ; file=/src/conv.cc ; line=238"
)


class FakeSession:
    """Replacement for onnxruntime's session that records its arguments and fails to run."""

    arguments: dict[str, Any]

    def __init__(
        self,
        content: object,
        options: Any,
        providers: list[tuple[str, dict[str, str]]],
        **keywords: Any,
    ) -> None:
        FakeSession.arguments = {"options": options, "providers": providers, **keywords}

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.arguments["providers"]]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="pixels", shape=["batch", "height", "width", 3])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="logits"), SimpleNamespace(name="probabilities")]

    def run(self, names: list[str], feed: dict[str, Any], options: Any = None) -> Any:
        raise EPFail(NO_ENGINE)


@pytest.fixture
def assignments(monkeypatch: pytest.MonkeyPatch) -> list[NodeAssignment]:
    """Fake CUDA sessions, and return the list of node assignments that they report."""
    nodes: list[NodeAssignment] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(session_module, "available_providers", lambda: ["cpu", "cuda", "tensorrt"])
    monkeypatch.setattr(session_module, "preload_cuda_libraries", lambda: None)
    monkeypatch.setattr(session_module, "read_node_assignments", lambda session: nodes)
    return nodes


def test_session_disables_fallback() -> None:
    session = create_session(MODEL)
    assert not session._enable_fallback


def test_gpu_session_records_node_assignments(assignments: list[NodeAssignment]) -> None:
    create_session(MODEL, "cuda")
    assert FakeSession.arguments["enable_fallback"] == 0
    assert (
        FakeSession.arguments["options"].get_session_config_entry(
            session_module.RECORD_ASSIGNMENT_OPTION
        )
        == "1"
    )


def test_create_session_rejects_conv_on_cpu(
    assignments: list[NodeAssignment],
) -> None:
    assignments += [NodeAssignment("features.0", "Conv", "CPUExecutionProvider")]
    with pytest.raises(
        ProviderError,
        match=r"did not take 1 of 1 compute nodes; CPUExecutionProvider got Conv features\.0",
    ):
        create_session(MODEL, "cuda")


def test_tensorrt_session_has_precision_and_cache(
    assignments: list[NodeAssignment], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path))
    create_session(MODEL, "tensorrt", precision="fp16")
    (name, options), *others = FakeSession.arguments["providers"]
    assert (name, options["trt_fp16_enable"]) == ("TensorrtExecutionProvider", "True")
    assert Path(options["trt_engine_cache_path"]).is_relative_to(tmp_path)
    assert others[-1] == ("CPUExecutionProvider", {})


def test_create_session_warns_without_node_assignments(
    assignments: list[NodeAssignment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "read_node_assignments", lambda session: None)
    with pytest.warns(UserWarning, match="does not record where it places nodes"):
        create_session(MODEL, "cuda")


def test_failed_run_raises_short_provider_error(
    assignments: list[NodeAssignment],
) -> None:
    classifier = Classifier(
        OnnxRuntimeSession(create_session(MODEL, "cuda")), LABELS, CONTRACT, "image"
    )
    with pytest.raises(ProviderError) as error:
        classifier.classify(np.zeros((8, 8, 3), np.uint8))
    message = str(error.value)
    assert (
        "CUDAExecutionProvider loaded the model but failed to run it: "
        "Conv features.0: CUDNN_FE failure 8: HEURISTIC_QUERY_FAILED. "
    ) in message
    assert "hostname" not in message


def test_raise_provider_failure_ignores_other_errors(assignments: list[NodeAssignment]) -> None:
    session = create_session(MODEL, "cuda")
    raise_provider_failure(session, ValueError("wrong shape"))
    with pytest.raises(ProviderError):
        raise_provider_failure(session, RuntimeError("Error in execution: " + NO_ENGINE))


@without_gpu
def test_create_session_names_missing_library() -> None:
    with pytest.raises(
        ProviderError, match=r"CUDAExecutionProvider did not start: lib\w+\.so\.\d+ is missing\. "
    ):
        create_session(MODEL, "cuda")


@without_gpu
def test_create_session_raises_bundle_error_for_broken_file() -> None:
    with pytest.raises(BundleError, match="cannot load the model"):
        create_session(MODEL[: len(MODEL) // 2], "cuda")
