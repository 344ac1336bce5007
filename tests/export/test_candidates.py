from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.errors import BenchError, ConfigError, ExportError, ParityError, ProviderError
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.export import candidates, random_init
from edgetl.export.candidates import time_candidates
from edgetl.export.graph.torch_export import NetworkGraph, export_network_graph
from edgetl.export.random_init import write_untrained
from tests.conftest import ARCHITECTURE

BRIEF = BenchProtocol(
    block_seconds=0.01,
    block_runs=20,
    window_seconds=0.002,
    window_runs=5,
    max_windows=4,
    random_inputs=2,
)
SIZE = 32


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a temporary folder, as results go to bench/ under the current folder."""
    monkeypatch.chdir(tmp_path)


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("must not be called")


def test_candidates_are_timed_or_failed_with_reason(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    config = CandidatesConfig(
        (ARCHITECTURE, "inception_v3", "shufflenet_v2_x0_5", ARCHITECTURE),
        3,
        (SIZE,),
        latency_budget_ms=1000,
        threads=1,
        rounds=2,
    )
    result = time_candidates(config, lambda *step: steps.append(step), BRIEF)

    assert [row.name for row in result.rows] == [
        f"{ARCHITECTURE}-32",
        "inception_v3-32",
        "shufflenet_v2_x0_5-32",
    ]
    first, small, _ = result.rows
    assert small.failed is not None
    assert "does not take images of 32 pixels" in small.failed
    assert [row.failed for row in result.timed_rows] == [None, None]
    assert [len(row.rounds) for row in result.rows] == [2, 0, 2]
    assert all(
        len(block.latencies_ns) >= BRIEF.block_runs
        for row in result.timed_rows
        for block in row.rounds
    )
    assert {frozenset(order) for order in result.order} == {
        frozenset({f"{ARCHITECTURE}-32", "shufflenet_v2_x0_5-32"})
    }
    assert result.fitting_rows == result.timed_rows
    assert first.session.input == "uint8 1x37x37x3"
    assert first.session.intra_op_threads == 1
    assert first.session.node_share == {"CPUExecutionProvider": 1.0}
    assert first.parity.max_logit_difference < 1e-4
    assert first.imagenet_top1 == pytest.approx(67.7, abs=0.1)
    # MobileNetV3-Small's blocks, its first dense layer and the new one.
    assert first.parameters == 927_008 + 590_848 + 1024 * 3 + 3
    assert first.file_bytes is not None
    assert abs(first.file_bytes - 4 * first.parameters) < 0.15 * first.file_bytes

    assert (0, 0) in [step[1:] for step in steps], "a note with the duration"
    assert next(step for step, _, total in steps if total == 0).startswith(
        "Timing 2 candidates in 2 rounds takes about"
    )
    assert steps[-1] == ("measured", 4, 4)
    assert result.path is not None
    assert json.loads(result.path.read_text()) == json.loads(json.dumps(result.to_json()))
    assert result.path.parent.resolve() == (tmp_path / "bench").resolve()


def test_interrupt_writes_complete_rounds_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(step: str, done: int, total: int) -> None:
        if step.startswith("round 3"):
            raise KeyboardInterrupt

    output = tmp_path / "here/result.json"
    config = CandidatesConfig((ARCHITECTURE,), image_sizes=(SIZE,), rounds=3, output=output)
    with pytest.raises(KeyboardInterrupt, match="1 of 1 rows were timed, see"):
        time_candidates(config, stop, BRIEF)
    content = json.loads(output.read_text())
    assert content["interrupted"] is True
    assert len(content["rows"][0]["rounds"]) == 2
    monkeypatch.setattr(candidates, "write_untrained", forbidden)
    with pytest.raises(BenchError, match="never overwritten"):
        time_candidates(config, None, BRIEF)


def test_unknown_names_are_listed_before_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "write_untrained", forbidden)
    with pytest.raises(ConfigError) as raised:
        time_candidates(CandidatesConfig(("mobilnet_v2", "resnet18", "shuflenet_v2_x1_0")))
    lines = str(raised.value).splitlines()
    assert len(lines) == 2
    assert "'mobilnet_v2'. Did you mean mobilenet_v2" in lines[0]
    assert "'shuflenet_v2_x1_0'. Did you mean shufflenet_v2_x1_0" in lines[1]


def test_too_many_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "write_untrained", forbidden)
    with pytest.raises(BenchError, match="threads must be at most"):
        time_candidates(
            CandidatesConfig((ARCHITECTURE,), image_sizes=(SIZE,), threads=10**6), None, BRIEF
        )


def test_missing_provider_stops_the_measurement(tmp_path: Path) -> None:
    with pytest.raises(ProviderError):
        time_candidates(
            CandidatesConfig((ARCHITECTURE,), image_sizes=(SIZE,), provider="qnn"), None, BRIEF
        )
    assert not (tmp_path / "bench").exists()


def test_random_init_falls_back_to_torch_export(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(*arguments: Any) -> NetworkGraph:
        calls.append(arguments[1:])
        raise ExportError("no such operator")

    monkeypatch.setattr(random_init, "convert_fx_to_onnx", refuse)
    monkeypatch.setattr(random_init, "export_network_graph", refuse)
    result = time_candidates(CandidatesConfig((ARCHITECTURE, "resnet18"), 7, (SIZE,)), None, BRIEF)
    assert calls[1] == (SIZE, 7, 18)
    assert [row.failed for row in result.rows] == ["no such operator"] * 2
    assert (result.timed_rows, result.noise.is_noisy, result.order) == ([], False, ())


def test_random_init_refuses_file_with_other_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_altered(file: Path) -> onnx.ModelProto:
        model = onnx.load(file)
        weight = next(
            value
            for value in model.graph.initializer
            if len(value.dims) == 4 and not value.name.startswith("pre_")
        )
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
        return model

    monkeypatch.setattr(random_init, "read_back", read_altered)
    with pytest.raises(ParityError, match="logits differ"):
        write_untrained(ARCHITECTURE, SIZE, 5, 0, 1, tmp_path / "model.onnx")


def test_random_init_depends_on_seed_only(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name, seed in (("first", 0), ("same", 0), ("other", 1)):
        write_untrained(ARCHITECTURE, SIZE, 5, seed, 1, tmp_path / name)
    first, same, other = ((tmp_path / name).read_bytes() for name in ("first", "same", "other"))
    assert first == same != other
    assert torch.equal(state, torch.get_rng_state())


def test_random_init_uses_torch_export_for_densenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> NetworkGraph:
        raise ExportError("the exporter was called")

    monkeypatch.setattr(random_init, "export_network_graph", refuse)
    with pytest.raises(ExportError, match="the exporter was called"):
        write_untrained("densenet121", SIZE, 5, 0, 1, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        "efficientnet_b0", "efficientnet_v2_s", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "regnet_y_400mf",
        "resnet18", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1",
    ],
)  # fmt: skip
def test_tracer_and_exporter_give_same_optimized_operators(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = []
    for name in ("traced", "exported"):
        if name == "exported":
            monkeypatch.setattr(
                random_init,
                "convert_fx_to_onnx",
                lambda *_: (_ for _ in ()).throw(ExportError("not now")),
            )
        else:
            monkeypatch.setattr(random_init, "export_network_graph", forbidden)
        write_untrained(architecture, 64, 5, 0, 1, tmp_path / name)
        monkeypatch.setattr(random_init, "export_network_graph", export_network_graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / f"{name}.optimized.onnx")
        onnxruntime.InferenceSession(
            str(tmp_path / name), options, providers=["CPUExecutionProvider"]
        )
        operators.append(
            Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
        )
    assert operators[0] == operators[1]
