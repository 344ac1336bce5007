"""Session modes by provider, their benchmark cases, and the options of their sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.recommendation import recommend
from edgetl.core.artifacts.session import SessionRecord
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.session_modes import (
    find_mode_obstacle,
    list_session_modes,
    mode_options,
)
from edgetl.core.errors import BenchError, BundleError, ConfigError, ProviderError
from edgetl.core.typed_json import to_json
from edgetl.device.bench import ort_backend, target
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.ort_backend import OnnxRuntimeBackend
from edgetl.device.bench.target import find_target
from edgetl.device.runtime.io_binding import OrtCudaGraphRunner
from edgetl.device.runtime.session import create_session
from tests.core.artifacts.test_bench import row

MakeBundle = Callable[..., Path]


def test_session_modes_by_provider() -> None:
    assert list_session_modes(["all"], ["cuda"]) == ["default", "cuda-graph", "no-tf32"]
    assert list_session_modes(["all"], ["cpu"]) == [
        "default",
        "no-spinning",
        "optimized-model",
        "bf16-fastmath",
    ]
    assert list_session_modes(["all"], ["xnnpack"]) == ["default"]
    assert list_session_modes(["no-tf32", "all", "no-tf32"], ["cuda", "cpu"])[:3] == [
        "no-tf32",
        "default",
        "cuda-graph",
    ]
    assert mode_options("cuda", "cuda-graph").provider == {"enable_cuda_graph": "1"}
    assert mode_options("cuda", "no-tf32").provider == {"use_tf32": "0"}
    assert mode_options("cpu", "no-spinning").session == {"session.intra_op.allow_spinning": "0"}


@pytest.mark.parametrize(
    ("mode", "provider", "threads", "precision", "flags", "obstacle"),
    [
        ("default", "qnn", 1, "int8", (), None),
        ("no-spinning", "cpu", 2, "int8", (), None),
        ("no-spinning", "cpu", 1, "int8", (), "with 1 thread"),
        ("no-spinning", "cuda", 2, "int8", (), "on cuda"),
        ("bf16-fastmath", "cpu", 1, "fp32", ("asimd", "bf16"), None),
        ("bf16-fastmath", "cpu", 1, None, ("bf16",), None),
        ("bf16-fastmath", "cpu", 1, "int8", ("bf16",), "for int8 files"),
        ("bf16-fastmath", "cpu", 1, "fp32", ("avx512_bf16",), "lacks bf16"),
    ],
)
def test_session_mode_obstacles(
    mode: str,
    provider: str,
    threads: int,
    precision: str | None,
    flags: tuple[str, ...],
    obstacle: str | None,
) -> None:
    reason = find_mode_obstacle(provider, mode, threads, precision, flags)
    assert (reason is None) == (obstacle is None)
    assert obstacle is None or obstacle in (reason or "")


def test_all_session_modes_are_those_that_apply(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "cpu_flags", lambda: {"bf16"})
    config = BenchConfig(make_bundle(), session_modes=("all",), torch_modes=())
    cases = find_target(config, (1, 2)).cases
    assert [(case.variant, case.source.threads, case.relative_tolerance) for case in cases] == [
        ("fp32", 1, 0.0),
        ("fp32", 2, 0.0),
        ("fp32-no-spinning", 2, 0.0),
        ("fp32-optimized-model", 1, 0.0),
        ("fp32-optimized-model", 2, 0.0),
        ("fp32-bf16-fastmath", 1, 0.05),
        ("fp32-bf16-fastmath", 2, 0.05),
    ]


def test_session_modes_without_any_case_are_rejected(make_bundle: MakeBundle) -> None:
    config = BenchConfig(make_bundle(), session_modes=("no-spinning",), torch_modes=())
    with pytest.raises(BenchError, match=r"no-spinning is not measured with 1 thread.*Add default"):
        find_target(config, (1,))
    assert len(find_target(config, (1, 2)).cases) == 1


def test_no_spinning_session_sleeps_between_runs(make_bundle: MakeBundle) -> None:
    session = create_session(make_bundle() / "fp32.onnx", threads=2, session_mode="no-spinning")
    options = session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_session_modes_become_separate_cases(make_bundle: MakeBundle) -> None:
    config = BenchConfig(
        make_bundle(),
        providers=("cpu", "cuda"),
        session_modes=("default", "cuda-graph", "no-tf32"),
        torch_modes=(),
    )
    bench_target = find_target(config, (1,))
    cases = bench_target.cases
    assert [(case.variant, case.source.provider, case.source.settings) for case in cases] == [
        ("fp32", "cpu", {}),
        ("fp32", "cuda", {}),
        ("fp32-cuda-graph", "cuda", {"session_mode": "cuda-graph"}),
        ("fp32-no-tf32", "cuda", {"session_mode": "no-tf32"}),
    ]
    assert len({case.name for case in cases}) == 4
    assert [note for note in bench_target.notes if "Session mode" in note] == [
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
        ConfigError, match=r"session_modes must be among default, no-spinning, .*, all, got 'fast'"
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
    session_modes: list[str] = []

    def record_options(
        model: Path, provider: str, threads: int, session_mode: str, **options: Any
    ) -> Any:
        session_modes.append(session_mode)
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
    assert session_modes == ["cuda-graph", "default", "default"]
    plain = OnnxRuntimeBackend(replace(source, settings={}))
    assert plain.describe(batch).session_mode is None
    assert session_modes[3:] == ["default", "default"]


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
        create_session(path, "cuda", 1, session_mode="no-tf32")
    assert "{'use_tf32': '0'}" in str(calls[0])


def _mode_row(p50_ns: int, session_ms: float, mode: str | None) -> BenchRow:
    measured = row("onnxruntime", [p50_ns + index for index in range(8)])
    variant = measured.variant if mode is None else f"{measured.variant}-{mode}"
    rounds = tuple(
        replace(item, cold=replace(item.cold, session_ms=session_ms + index))
        for index, item in enumerate(measured.rounds)
    )
    session = SessionRecord(session_mode=mode)
    return replace(measured, variant=variant, session=session, rounds=rounds)


@pytest.mark.parametrize(
    ("mode_p50_ns", "mode_session_ms", "recommended"),
    [
        (1_000_000, 20.0, "optimized-model"),
        (1_000_000, 99.0, None),
        (1_100_000, 20.0, None),
        (900_000, 200.0, "optimized-model"),
    ],
)
def test_recommended_mode_is_faster_or_ready_sooner(
    mode_p50_ns: int, mode_session_ms: float, recommended: str | None
) -> None:
    rows = [
        _mode_row(1_000_000, 100.0, None),
        _mode_row(mode_p50_ns, mode_session_ms, "optimized-model"),
    ]
    recommendation = recommend(rows)
    assert recommendation is not None
    options = recommendation.latency.options
    assert (options.session_mode, options.variant) == (recommended, "fp32")
