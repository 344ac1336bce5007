"""Sessions of ExecuTorch: names of kernels, the process's pool of threads, and real programs."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetl.core.errors import BundleError, MissingPackageError
from edgetl.device.runtime.sessions import executorch_session
from edgetl.device.runtime.sessions.executorch_session import (
    ExecuTorchSession,
    _precision_shares,
    _ThreadPool,
)
from edgetl.device.runtime.sessions.session import SessionSource
from tests.helpers.executorch import CROP, SmallNetwork, convert_small_network

with_executorch = pytest.mark.skipif(
    find_spec("executorch") is None, reason="executorch is not installed"
)


def open_program(path: Path, threads: int = 1) -> ExecuTorchSession:
    return ExecuTorchSession(SessionSource((path,), threads, CROP))


def random_pixels(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 3, CROP, CROP)).astype(np.float32)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return convert_small_network(tmp_path_factory.mktemp("programs"))


@pytest.mark.parametrize(
    ("kernels", "shares"),
    [
        (["Convolution (NHWC, F32) IGEMM #1", "Fully Connected (NC, F32) GEMM #1"], {"fp32": 1.0}),
        (
            [
                "Convert (NC) #1",
                "Convolution (NHWC, QC8) IGEMM #1",
                "Fully Connected (NC, QS8, QC8W) GEMM #1",
                "Convolution (NHWC, QC8) DWConv #1",
                "native_call_convolution.out",
            ],
            {"int8": 0.75, "fp32": 0.25},
        ),
        (["Fully Connected (NC, F16) GEMM #1", "Mean (ND) #1"], {"fp16": 1.0}),
        (["Fully Connected (NC, QD8, F32, QC8W) GEMM #1"], {"int8": 1.0}),
        (["Add (ND) #1"], {}),
    ],
)
def test_precision_shares_come_from_names_of_kernels(
    kernels: list[str], shares: dict[str, float]
) -> None:
    assert _precision_shares(kernels) == shares


def test_pool_is_replaced_only_for_another_size() -> None:
    sizes: list[int] = []
    bindings = ModuleType("bindings")
    bindings._unsafe_reset_threadpool = sizes.append  # type: ignore[attr-defined]
    pool = _ThreadPool()
    first = pool.resize(bindings, 2)
    assert pool.resize(bindings, 2) == first
    assert pool.is_current(2, first)
    second = pool.resize(bindings, 1)
    assert sizes == [2, 1]
    assert not pool.is_current(2, first)
    assert pool.is_current(1, second)


def test_sessions_reload_after_another_resized_the_pool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A program keeps a pointer to the pool that it was loaded with.
    loads: list[str] = []

    class Program:
        def method_meta(self, name: str) -> Any:
            info = SimpleNamespace(sizes=lambda: (1, 3, CROP, CROP))
            return SimpleNamespace(input_tensor_meta=lambda index: info)

        def load_method(self, name: str) -> Any:
            return lambda inputs: [SimpleNamespace(numpy=lambda: np.zeros((1, 2), np.float32))]

    def load(path: str, **options: object) -> Program:
        loads.append(Path(path).name)
        return Program()

    bindings = SimpleNamespace(
        _load_program=load,
        _unsafe_reset_threadpool=lambda threads: None,
        Verification=SimpleNamespace(InternalConsistency=1),
    )
    monkeypatch.setattr(executorch_session, "_POOL", _ThreadPool())
    monkeypatch.setattr(
        executorch_session, "_load_bindings", lambda: (bindings, lambda array: array)
    )
    first = open_program(tmp_path / "a.pte", 1)
    second = open_program(tmp_path / "b.pte", 2)
    second.run(("logits",), random_pixels(1))
    assert loads == ["a.pte", "b.pte"]
    first.run(("logits",), random_pixels(3))
    first.run(("logits",), random_pixels(1))
    assert loads == ["a.pte", "b.pte", "a.pte"]


def test_missing_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"PyTorch.*edgetl\[executorch\]"):
        open_program(tmp_path / "a.pte")


@with_executorch
def test_float32_logits_equal_those_of_pytorch(programs: dict[str, Path]) -> None:
    import torch

    pixels = random_pixels(5)
    with torch.no_grad():
        expected = SmallNetwork()(torch.from_numpy(pixels)).numpy()
    logits = open_program(programs["executorch-fp32"]).run(("logits",), pixels)[0]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@with_executorch
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_facts_hold_the_precision_that_ran(programs: dict[str, Path], precision: str) -> None:
    facts = open_program(programs[f"executorch-{precision}"], 2).describe()
    assert facts.precision_shares == {precision: 1.0}
    assert facts.threads == 2
    delegated, _, total = facts.options["operators in XNNPACK"].partition(" of ")
    assert delegated == total


@with_executorch
def test_profile_adds_up(programs: dict[str, Path]) -> None:
    nodes = open_program(programs["executorch-int8"]).profile(random_pixels(1), 3)
    assert any(node.operator.startswith("Convolution (NHWC, QC8)") for node in nodes)
    assert sum(node.share for node in nodes) == pytest.approx(1)


@with_executorch
def test_threads_are_bounded(programs: dict[str, Path]) -> None:
    session = open_program(programs["executorch-fp32"], 1)
    pixels = random_pixels(1)
    session.run(("logits",), pixels)
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(200):
        session.run(("logits",), pixels)
    assert time.process_time() - processor <= 1.05 * (time.perf_counter() - wall)


@with_executorch
def test_outputs_survive_later_inferences(programs: dict[str, Path]) -> None:
    session = open_program(programs["executorch-fp32"])
    pixels = random_pixels(2)
    first = session.run(("logits",), pixels[:1])[0]
    copy = first.copy()
    session.run(("logits",), pixels[1:])
    np.testing.assert_array_equal(first, copy)


@with_executorch
def test_broken_programs_are_reported(programs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "broken.pte"
    path.write_bytes(programs["executorch-fp32"].read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"ExecuTorch [\d.]+ cannot load broken\.pte"):
        open_program(path)


@with_executorch
def test_programs_of_another_size_are_reported(programs: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match="its input is"):
        ExecuTorchSession(SessionSource((programs["executorch-fp32"],), 1, CROP + 8))
