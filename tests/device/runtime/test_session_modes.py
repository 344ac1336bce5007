"""Session modes: which providers have them, what becomes of the others, and what a session is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import onnxruntime
import pytest

from edgetl.core.artifacts.recommendation import recommend
from edgetl.core.config.bench import BenchConfig, SessionMode
from edgetl.core.errors import BenchError, BundleError, ConfigError, ProviderError
from edgetl.device.bench import ort_backend
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.ort_backend import OnnxRuntimeBackend
from edgetl.device.bench.target import find_target
from edgetl.device.runtime.io_binding import OrtCudaGraphRunner
from edgetl.device.runtime.session import create_session
from edgetl.device.runtime.session_modes import has_session_mode, provider_options
from tests.core.artifacts.test_bench import row

MakeBundle = Callable[..., Path]


def test_cuda_has_every_mode_and_the_cpu_only_the_default() -> None:
    modes = get_args(SessionMode)
    assert [mode for mode in modes if has_session_mode("cuda", mode)] == list(modes)
    assert [mode for mode in modes if has_session_mode("cpu", mode)] == ["default"]
    assert [provider_options("cuda", mode) for mode in modes] == [
        {},
        {"enable_cuda_graph": "1"},
        {"use_tf32": "0"},
    ]


def test_modes_become_rows_of_their_own(make_bundle: MakeBundle) -> None:
    config = BenchConfig(
        make_bundle(),
        providers=("cpu", "cuda"),
        session_modes=("default", "cuda-graph", "no-tf32"),
        torch_modes=(),
    )
    target = find_target(config, (1,))
    assert [(one.variant, one.source.provider, one.source.settings) for one in target.cases] == [
        ("fp32", "cpu", {}),
        ("fp32", "cuda", {}),
        ("fp32-cuda-graph", "cuda", {"session_mode": "cuda-graph"}),
        ("fp32-no-tf32", "cuda", {"session_mode": "no-tf32"}),
    ]
    assert len({one.name for one in target.cases}) == 4
    assert [note for note in target.notes if "Session mode" in note] == [
        "Session mode cuda-graph is left out on cpu, which has no such option.",
        "Session mode no-tf32 is left out on cpu, which has no such option.",
    ]


def test_lone_files_have_modes_too(make_bundle: MakeBundle) -> None:
    config = BenchConfig(
        make_bundle() / "fp32.onnx",
        scopes=("model",),
        providers=("cuda",),
        session_modes=("default", "cuda-graph"),
    )
    assert [one.variant for one in find_target(config, (1,)).cases] == [
        "fp32",
        "fp32-cuda-graph",
    ]


@pytest.mark.parametrize("mode", ["cuda-graph", "no-tf32"])
def test_a_mode_that_no_provider_has_is_refused(make_bundle: MakeBundle, mode: Any) -> None:
    bundle = make_bundle()
    for path in (bundle, bundle / "fp32.onnx"):
        config = BenchConfig(path, scopes=("model",), session_modes=("default", mode))
        with pytest.raises(
            BenchError,
            match=f"--session {mode} is an option of cuda and not of cpu: add --provider cuda",
        ):
            find_target(config, (1,))


def test_unknown_modes_are_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--session must be one of default, cuda-graph, no-tf32, got 'fast'"
    ):
        BenchConfig(tmp_path, session_modes=("fast",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--session must name at least one"):
        BenchConfig(tmp_path, session_modes=())


@pytest.mark.parametrize("error", [BundleError, ProviderError])
@pytest.mark.parametrize(
    ("words", "reason"),
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
def test_a_file_without_a_graph_says_why(
    make_bundle: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    words: str,
    reason: str,
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise error(f"onnxruntime cannot load it: {words}")

    monkeypatch.setattr(ort_backend, "create_session", refuse)
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


def test_a_mode_opens_its_session_with_its_options(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU session stands in for CUDA's; the options that CUDA's would get are noted."""
    opened: list[dict[str, str]] = []

    def note(
        model: Path, provider: str, threads: int, provider_options: dict[str, str], **more: Any
    ) -> Any:
        opened.append(dict(provider_options))
        return create_session(model, "cpu", threads, **more)

    monkeypatch.setattr(ort_backend, "create_session", note)
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
    described = backend.describe(batch)
    assert (described["session_mode"], described["provider_options"]) == (
        "cuda-graph",
        {"enable_cuda_graph": "1"},
    )
    profile = backend.profile(batch, 1)
    assert profile["clock"] == "host dispatch"
    # Profiled node by node, which a graph doesn't have.
    assert opened == [{"enable_cuda_graph": "1"}, {}, {}]
    plain = OnnxRuntimeBackend(replace(source, settings={}))
    assert "session_mode" not in plain.describe(batch)
    assert opened[3:] == [{}, {}]


def test_recommendation_names_file_and_provider_options() -> None:
    fast = replace(
        row("onnxruntime", [1_000_000] * 3),
        variant="fp32-cuda-graph",
        session={"session_mode": "cuda-graph", "provider_options": {"enable_cuda_graph": "1"}},
    )
    chosen = recommend([row("onnxruntime", [2_000_000] * 3), fast])
    assert chosen is not None
    assert chosen.latency.row == "onnxruntime-fp32-cuda-graph-model-cpu-b1-t2"
    assert (chosen.latency.options["variant"], chosen.latency.options["provider_options"]) == (
        "fp32",
        {"enable_cuda_graph": "1"},
    )
    plain = recommend([row("onnxruntime", [2_000_000] * 3)])
    assert plain is not None
    assert "provider_options" not in plain.latency.options


def test_provider_options_reach_onnxruntime(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def record(*arguments: object, **named: Any) -> None:
        given.append(named)
        raise RuntimeError("enough was seen")

    path = make_bundle() / "fp32.onnx"
    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    with pytest.raises((BundleError, ProviderError)):
        create_session(path, "cuda", 1, provider_options={"use_tf32": "0"})
    assert "{'use_tf32': '0'}" in str(given[0])
