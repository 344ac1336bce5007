"""Files for OpenVINO are proven like variants and run wherever a variant does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgetl.core import registry
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError, BundleError, ConfigError
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.runner import bench
from edgetl.device.predict import predict
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.classifier import open_classifier, run_images
from edgetl.device.verify import verify
from edgetl.export import exporter
from edgetl.export.formats import openvino as openvino_format
from edgetl.export.formats.task import ConversionTask, ConvertedFile
from tests.helpers.graphs import quick_export
from tests.helpers.openvino_bundles import openvino_bundle

pytest.importorskip("openvino")
FAST = BenchProtocol(
    block_seconds=0.02, block_runs=5, slices=2, window_seconds=0.005, warmup_seconds=0.1
)


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory, random_weights: Path) -> Path:
    return openvino_bundle(tmp_path_factory, random_weights)


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> Bundle:
    return open_bundle(bundle_path)


def test_variants_are_proven_and_hashed(bundle: Bundle) -> None:
    names = [variant.name for variant in bundle.variants]
    variant = bundle.select_variant("openvino-fp32")

    assert names[:2] == ["fp32", "openvino-fp32"]
    assert variant.parity.path.max_abs_diff <= variant.tolerance
    assert variant.parity.path.top1_agreement == 1
    assert [record.file for record in variant.files] == ["openvino-fp32.xml", "openvino-fp32.bin"]
    assert set(bundle.file_statuses.values()) == {"as proven"}
    assert bundle.manifest.recommended == "fp32"
    assert (bundle.directory.path / "predict_openvino.py").is_file()


def test_classifier_gives_the_outputs_of_onnxruntime(bundle: Bundle) -> None:
    images = bundle.load_golden().load_images()

    outputs = run_images(open_classifier(bundle, runtime="openvino"), images)

    expected = run_images(open_classifier(bundle), images)
    assert np.abs(outputs.logits - expected.logits).max() < 1e-3
    assert outputs.probabilities is not None
    assert expected.probabilities is not None
    assert np.abs(outputs.probabilities - expected.probabilities).max() < 1e-5


def test_predict_has_the_same_labels_with_each_runtime(bundle: Bundle) -> None:
    golden = bundle.directory.golden

    labels = [item.label for item in predict(bundle, golden, runtime="openvino")]

    assert labels == [item.label for item in predict(bundle, golden)]
    # OpenVINO reads the ONNX file as well, without its preprocessing.
    onnx_items = predict(bundle, golden, variant="fp32", runtime="openvino")
    assert labels == [item.label for item in onnx_items]


def test_unsuitable_choices_are_explained(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"Unknown runtime 'tvm'\. Use one of onnxruntime"):
        open_classifier(bundle, runtime="tvm")
    with pytest.raises(BundleError, match="openvino-fp32 is a file for OpenVINO"):
        open_classifier(bundle, "openvino-fp32", runtime="onnxruntime")
    with pytest.raises(BundleError, match="runs on the CPU"):
        open_classifier(bundle, provider="cuda", runtime="openvino")
    with pytest.raises(BundleError, match="needs a bundle"):
        open_classifier(bundle.directory.path / "fp32.onnx", runtime="openvino")


def test_verify_checks_all_runtimes(bundle: Bundle) -> None:
    results = {result.variant: result for result in verify(bundle)}

    assert results["openvino-fp32"].passed
    assert results["openvino-fp32"].runtime == "openvino"
    assert results["fp32"].passed


def test_bench_measures_runtimes_side_by_side(bundle: Bundle, tmp_path: Path) -> None:
    config = BenchConfig(
        bundle,
        scopes=("model",),
        threads=(1,),
        variants=("fp32", "openvino-fp32"),
        runtimes=("onnxruntime", "openvino"),
        rounds=2,
        output=tmp_path / "result.json",
    )

    rows = {(row.runtime, row.variant): row for row in bench(config, protocol=FAST).rows}

    assert set(rows) == {
        ("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "openvino-fp32"),
    }  # fmt: skip
    assert all(row.gate.passed and row.p50_ms for row in rows.values())
    # The same input, so the rows can be compared.
    assert len({row.comparison_key for row in rows.values()}) == 1
    assert rows["openvino", "openvino-fp32"].session.precision == "fp32"
    assert rows["openvino", "openvino-fp32"].session.runtime_version


def test_wrong_runtime_is_refused_with_the_reason(bundle_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle_path, copy)
    weights = copy / "openvino-fp32.bin"
    values = np.frombuffer(weights.read_bytes(), np.float32).copy()
    # Shapes, which are integers, look like tiny numbers.
    magnitudes = np.abs(values)
    values[(magnitudes > 1e-6) & (magnitudes < 10)] *= 1.5
    weights.write_bytes(values.tobytes())
    _record_hash(copy, weights)
    config = BenchConfig(
        copy, scopes=("model",), threads=(1,), variants=("fp32", "openvino-fp32"), rounds=2,
        output=tmp_path / "result.json",
    )  # fmt: skip

    rows = {row.variant: row for row in bench(config, protocol=FAST).rows}

    assert rows["openvino-fp32"].has_failed_gate
    assert "logits differ" in (rows["openvino-fp32"].gate.reason or "")
    assert not rows["openvino-fp32"].rounds
    assert rows["fp32"].rounds


def test_bench_names_a_runtime_without_files(stock_bundle: Path) -> None:
    with pytest.raises((BundleError, BenchError, ConfigError), match="tvm"):
        bench(BenchConfig(stock_bundle, runtimes=("tvm",)))


def test_wrong_file_is_left_out_with_the_reason(
    tmp_path_factory: pytest.TempPathFactory,
    random_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry.FORMATS, "openvino", f"{__name__}:convert_wrongly")
    monkeypatch.setattr(exporter, "_add_latencies", lambda manifest, *arguments: manifest)

    bundle = quick_export(tmp_path_factory, random_weights, monkeypatch)(
        tmp_path / "bundle", formats=("openvino",)
    )

    assert [variant.name for variant in bundle.variants] == ["fp32"]
    assert "logits differ by" in bundle.manifest.failed_formats["openvino-fp32"]
    assert not list((tmp_path / "bundle").glob("openvino*"))
    assert not (tmp_path / "bundle" / "predict_openvino.py").exists()


def convert_wrongly(task: ConversionTask) -> Sequence[ConvertedFile]:
    model = onnx.ModelProto()
    model.CopyFrom(task.float32.model)
    scale = onnx.numpy_helper.from_array(np.float32(3), "scale")
    model.graph.initializer.append(scale)
    for node in model.graph.node:
        node.output[:] = ["true_logits" if name == "logits" else name for name in node.output]
        node.input[:] = ["logits" if name == "true_logits" else name for name in node.input]
    model.graph.node.append(onnx.helper.make_node("Mul", ["true_logits", "scale"], ["logits"]))
    network = replace(task.float32, model=_sorted_nodes(model))
    return openvino_format.convert_to_openvino(replace(task, float32=network))[:1]


def _sorted_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Move the last node directly behind the node that computes its input."""
    nodes = list(model.graph.node)
    last = nodes.pop()
    index = next(i for i, node in enumerate(nodes) if last.input[0] in node.output)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: index + 1], last, *nodes[index + 1 :]])
    return model


def _record_hash(bundle: Path, file: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for variant in manifest["variants"]:
        for record in variant.get("extra_files", ()):
            if record["file"] == file.name:
                record["sha256"] = digest
    (bundle / "bundle.json").write_text(json.dumps(manifest))
