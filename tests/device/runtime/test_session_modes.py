"""Session modes by provider, their benchmark cases, and the options of their sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import onnxruntime
import pytest

from edgetl.core.artifacts.recommendation import recommend
from edgetl.core.artifacts.session import SessionRecord
from edgetl.core.config.bench import BenchConfig, SessionMode
from edgetl.core.config.session_modes import has_session_mode, provider_options
from edgetl.core.errors import BenchError, BundleError, ConfigError, ProviderError
from edgetl.core.typed_json import to_json
from edgetl.device.bench import ort_backend
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.ort_backend import OnnxRuntimeBackend
from edgetl.device.bench.target import find_target
from edgetl.device.runtime.io_binding import OrtCudaGraphRunner
from edgetl.device.runtime.session import create_session
from tests.core.artifacts.test_bench import row

MakeBundle = Callable[..., Path]


def test_session_modes_by_provider() -> None:
    modes = get_args(SessionMode)
    assert [mode for mode in modes if has_session_mode("cuda", mode)] == list(modes)
    assert [mode for mode in modes if has_session_mode("cpu", mode)] == ["default"]
    assert [provider_options("cuda", mode) for mode in modes] == [
        {},
        {"enable_cuda_graph": "1"},
        {"use_tf32": "0"},
    ]


def test_session_modes_become_separate_cases(make_bundle: MakeBundle) -> None:
    config = BenchConfig(
        make_bundle(),
        providers=("cpu", "cuda"),
        session_modes=("default", "cuda-graph", "no-tf32"),
        torch_modes=(),
    )
    target = find_target(config, (1,))
    cases = target.cases
    assert [(case.variant, case.source.provider, case.source.settings) for case in cases] == [
        ("fp32", "cpu", {}),
        ("fp32", "cuda", {}),
        ("fp32-cuda-graph", "cuda", {"session_mode": "cuda-graph"}),
        ("fp32-no-tf32", "cuda", {"session_mode": "no-tf32"}),
    ]
    assert len({case.name for case in cases}) == 4
    assert [note for note in target.notes if "Session mode" in note] == [
        "Session mode cuda-graph is not measured on cpu, which does not support it.",
        "Session mode no-tf32 is not measured on cpu, which does not support it.",
    ]


def test_session_modes_apply_to_onnx_files(make_bundle: MakeBundle) -> None:
    config = BenchConfig(
        make_bundle() / "fp32.onnx",
        scopes=("model",),
        providers=("cuda",),
        session_modes=("default", "cuda-graph"),
    )
    assert [case.variant for case in find_target(config, (1,)).cases] == [
        "fp32",
        "fp32-cuda-graph",
    ]


@pytest.mark.parametrize("mode", ["cuda-graph", "no-tf32"])
def test_session_mode_is_rejected_without_its_provider(tmp_path: Path, mode: Any) -> None:
    with pytest.raises(
        ConfigError,
        match=f"session_modes {mode} needs provider cuda, got providers cpu. Add providers cuda",
    ):
        BenchConfig(tmp_path, session_modes=("default", mode))


def test_unknown_session_mode_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="session_modes must be among default, cuda-graph, no-tf32, got 'fast'"
    ):
        BenchConfig(tmp_path, session_modes=("fast",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="session_modes must name at least one"):
        BenchConfig(tmp_path, session_modes=())


@pytest.mark.parametrize("error", [BundleError, ProviderError])
@pytest.mark.parametrize(
    ("ort_message", "reason"),
    [
        (
            "This session cannot use the graph capture feature as the model has control flow nodes",
            r"control flow \(If, Loop or Scan\)",
        ),
        (
            "This session cannot use the graph capture feature as all the graph nodes have not been assigned",
            "not all of its nodes run",
        ),
    ],
)
def test_cuda_graph_error_gives_reason(
    make_bundle: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    ort_message: str,
    reason: str,
) -> None:
    def fail_to_load(*arguments: object, **options: object) -> None:
        raise error(f"onnxruntime cannot load it: {ort_message}")

    monkeypatch.setattr(ort_backend, "create_session", fail_to_load)
    source = ModelSource(
        make_bundle() / "fp32.onnx",
        threads=1,
        provider="cuda",
        settings={"session_mode": "cuda-graph"},
    )
    with pytest.raises(BenchError, match=rf"fp32.onnx has no CUDA graph: .*{reason}"):
        OnnxRuntimeBackend(source)
    with pytest.raises(error):
        OnnxRuntimeBackend(replace(source, settings={"session_mode": "no-tf32"}))


def test_backend_opens_session_with_mode_options(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU session replaces CUDA's, and the options for CUDA are recorded."""
    session_options: list[dict[str, str]] = []

    def record_options(
        model: Path, provider: str, threads: int, provider_options: dict[str, str], **options: Any
    ) -> Any:
        session_options.append(dict(provider_options))
        return create_session(model, "cpu", threads, **options)

    monkeypatch.setattr(ort_backend, "create_session", record_options)
    monkeypatch.setattr(ort_backend, "DEVICE_TYPES", {"cuda": "cpu"})
    monkeypatch.setattr(ort_backend, "read_node_assignments", lambda session: None)
    source = ModelSource(
        make_bundle() / "fp32.onnx",
        threads=1,
        provider="cuda",
        settings={"session_mode": "cuda-graph"},
    )
    backend = OnnxRuntimeBackend(source)
    assert isinstance(backend._device_run, OrtCudaGraphRunner)
    (batch,) = backend.make_inputs(1)
    description = backend.describe(batch)
    assert (description.session_mode, description.provider_options) == (
        "cuda-graph",
        {"enable_cuda_graph": "1"},
    )
    profile = backend.profile(batch, 1)
    assert profile.clock == "host dispatch"
    # The profile needs separate nodes, which a CUDA graph does not have.
    assert session_options == [{"enable_cuda_graph": "1"}, {}, {}]
    plain = OnnxRuntimeBackend(replace(source, settings={}))
    assert plain.describe(batch).session_mode is None
    assert session_options[3:] == [{}, {}]


def test_recommendation_has_variant_and_provider_options() -> None:
    fast = replace(
        row("onnxruntime", [1_000_000] * 3),
        variant="fp32-cuda-graph",
        session=SessionRecord(
            session_mode="cuda-graph", provider_options={"enable_cuda_graph": "1"}
        ),
    )
    recommendation = recommend([row("onnxruntime", [2_000_000] * 3), fast])
    assert recommendation is not None
    assert recommendation.latency.row == "onnxruntime-fp32-cuda-graph-model-cpu-b1-t2"
    options = recommendation.latency.options
    assert options.variant == "fp32"
    assert options.provider_options == {"enable_cuda_graph": "1"}
    plain = recommend([row("onnxruntime", [2_000_000] * 3)])
    assert plain is not None
    assert "provider_options" not in to_json(plain.latency.options)


def test_create_session_passes_provider_options(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def record(*arguments: object, **keywords: Any) -> None:
        calls.append(keywords)
        raise RuntimeError("stop here")

    path = make_bundle() / "fp32.onnx"
    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    with pytest.raises((BundleError, ProviderError)):
        create_session(path, "cuda", 1, provider_options={"use_tf32": "0"})
    assert "{'use_tf32': '0'}" in str(calls[0])
