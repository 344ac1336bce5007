"""`edgetl export` on the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from edgetl.cli.app import main
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.export import ExportConfig
from edgetl.core.files import sha256_file
from edgetl.core.paths import RunDirectory
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.runner import bench
from edgetl.device.predict import predict
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.export import latency
from edgetl.export.exporter import export_run
from tests.conftest import ARCHITECTURE, IMAGE_SIZE
from tests.helpers.browser import browser
from tests.helpers.graphs import cache_graphs
from tests.helpers.web_page import Page, agrees, needs_browser

SHORT = BenchProtocol(
    block_seconds=0.05, block_runs=5, window_seconds=0.01, window_runs=2, max_windows=3
)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", autouse=True)
def _cached_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        cache_graphs(tmp_path_factory, patch)
        yield


@pytest.fixture(scope="module")
def finished_run(
    forked: Run, parts: Path, random_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    process = forked(
        "finetune", parts, "-o", run, "--model", ARCHITECTURE, "--weights", random_weights, "--image-size", IMAGE_SIZE,
        # Random features react to single grey levels, which a linear head would pass on.
        "--preset", "classic", "--epochs", 1, "--finetune-epochs", 1,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return run


def test_export_writes_a_bundle(
    forked: Run,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["edgetl", "export", str(finished_run)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    captured = capsys.readouterr()
    assert not exit_info.value.code, captured.err
    assert "Matches PyTorch on 20 validation images" in captured.out
    manifest = json.loads((finished_run / "bundle/bundle.json").read_text())
    (variant,) = manifest["variants"]
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert manifest["labels"] == metrics["classes"]
    assert variant["accuracy"]["images"] == 20
    assert variant["accuracy"]["flips"] == 0
    assert variant["accuracy"]["top1"] == pytest.approx(metrics["val"]["accuracy"])
    second_export = forked("export", finished_run)
    assert second_export.returncode == 1
    assert "--force" in second_export.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing_v9", "-o", "{out}"], "nothing_v9"),
        (["{run}", "--weights", "x.pth"], "can only be used with a stock architecture"),
        (["{run}", "--input", "tensor", "--web", "-o", "{out}"], "remove --input tensor"),
        (
            ["{run}", "--fixed-size", "480", "-o", "{out}"],
            "--fixed-size: must be HEIGHTxWIDTH in pixels",
        ),
        (["{run}", "--opset", "11", "-o", "{out}"], "--opset must be >= 18"),
        ([ARCHITECTURE, "--weights", "{out}/none.pth", "-o", "{out}"], "none.pth"),
        (["{empty}", "-o", "{out}"], "is not a run directory"),
    ],
)
def test_invalid_arguments_are_rejected(
    forked: Run, finished_run: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    paths = {"run": finished_run, "out": tmp_path / "out", "empty": tmp_path / "empty"}
    process = forked("export", *(argument.format(**paths) for argument in arguments))
    assert process.returncode == 1, process.stderr
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists()


def test_unknown_choice_is_wrong_usage(forked: Run, finished_run: Path, tmp_path: Path) -> None:
    process = forked("export", finished_run, "--input", "video", "-o", tmp_path / "out")
    assert process.returncode == 2
    assert "'video' is not one of 'image', 'tensor'" in process.stderr
    assert not (tmp_path / "out").exists()


def test_missing_images_are_reported(forked: Run, finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    config["config"]["data"] = str(tmp_path / "moved")
    (run / "config.json").write_text(json.dumps(config))
    process = forked("export", run, "-o", tmp_path / "out")
    assert process.returncode == 1
    assert "images not found" in process.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def all_variants_bundle(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export all variants with --ort-format, --explain and a short timing protocol."""
    bundle = tmp_path_factory.mktemp("bundles") / "all"
    names = ("fp16", "int8", "int8-dynamic", "int8-weights")
    config = ExportConfig(
        output=bundle,
        variants=names,
        ort_format=True,
        max_accuracy_drop=100,
        optimise="size",
        explain=True,
    )
    export_with_short_timing(finished_run, config)
    return bundle


def export_with_short_timing(run: Path, config: ExportConfig) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "BenchProtocol", lambda: SHORT)
        patch.setattr(latency, "_ROUNDS", 2)
        return export_run(RunDirectory(run), config)


def test_manifest_and_card_describe_every_variant(
    all_variants_bundle: Path, finished_run: Path
) -> None:
    bundle = all_variants_bundle
    manifest = json.loads((bundle / "bundle.json").read_text())
    variants = {variant["name"]: variant for variant in manifest["variants"]}
    assert list(variants) == ["fp32", "fp16", "int8", "int8-dynamic", "int8-weights"]
    card = (bundle / "README.md").read_text()
    for name, variant in variants.items():
        assert variant["sha256"] == sha256_file(bundle / variant["file"])
        assert variant["report"]["ort"]["sha256"] == sha256_file(bundle / f"{name}.ort")
        assert {"top1", "macro_f1", "ci95", "drop", "flips"} <= variant["accuracy"].keys()
        assert variant["latency"]["p50_ms"] > 0
        assert f"| {name} |" in card
        assert variant["sha256"] in card
        if name != "fp32":
            assert {"max_abs_diff", "mean_abs_diff", "top1_agreement"} <= variant["parity"][
                "path"
            ].keys()
            assert len(variant["report"]["flips"]) == variant["accuracy"]["flips"]
            assert (finished_run / f"plots/flips_{name}.png").is_file()
        assert variant["parity"]["activation_maps"]["images"] == 8
        # int8 of random weights is noise; the export has proven its maps for the same features.
        min_db = {"fp32": 80, "fp16": 30}.get(name, -20)
        assert variant["parity"]["activation_maps"]["sqnr_db"] > min_db
    assert len(variants["int8"]["report"]["search"]["candidates"]) >= 3
    smallest = min(
        (variant for variant in variants.values() if variant["accuracy"]["drop"] <= 100),
        key=lambda variant: variant["bytes"],
    )
    assert manifest["recommended"] == smallest["name"]


def _shared_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """Return the metadata without those that are fitted to each variant."""
    fitted = ("edgetl.temperature", "edgetl.prediction_sets")
    return {entry.key: entry.value for entry in model.metadata_props if entry.key not in fitted}


def test_variants_share_preprocessing_and_metadata(all_variants_bundle: Path) -> None:
    bundle = all_variants_bundle
    reference = onnx.load(bundle / "fp32.onnx")

    def preprocessing(model: onnx.ModelProto) -> list[bytes]:
        nodes = [
            node
            for node in model.graph.node
            if node.name.startswith("pre_") or any(name.startswith("pre_") for name in node.output)
        ]
        constants = [value for value in model.graph.initializer if value.name.startswith("pre_")]
        return [item.SerializeToString(deterministic=True) for item in (*nodes, *constants)]

    assert len(preprocessing(reference)) > 10
    for name in ("fp16", "int8", "int8-dynamic", "int8-weights"):
        model = onnx.load(bundle / f"{name}.onnx")
        assert preprocessing(model) == preprocessing(reference)
        assert _shared_metadata(model) == _shared_metadata(reference)


@pytest.mark.slow
@needs_browser
def test_web_page_runs_recommended_variant_when_size_optimised(
    finished_run: Path, tmp_path: Path
) -> None:
    config = ExportConfig(
        output=tmp_path / "bundle",
        variants=("int8-weights",),
        max_accuracy_drop=100,
        optimise="size",
        web=True,
    )
    bundle = export_with_short_timing(finished_run, config)
    assert bundle.manifest.web.variant == bundle.manifest.recommended != "fp32"
    with browser(tmp_path / "browser") as web_browser:
        page = Page(web_browser, bundle.directory.web)
        page.visit()
        assert f"variant {bundle.manifest.recommended}," in page.text("origin")
        for prediction in predict(bundle, bundle.load_golden().files):
            label, shares = page.label(prediction.path, "click")
            is_best = agrees((label, shares), dict(prediction.top_labels))
            assert is_best != prediction.is_unknown
            assert (label == "Unknown") == prediction.is_unknown
        assert web_browser.complaints == []
        page.server.shutdown()


@pytest.mark.slow
def test_every_variant_predicts_and_passes_the_gate(
    all_variants_bundle: Path, edgetl: Run, parts: Path, tmp_path: Path
) -> None:
    bundle = all_variants_bundle
    photo = next((parts / "val").rglob("*.jpg"))
    for name in ("fp32", "int8", "int8-weights"):
        process = edgetl("predict", bundle, photo, "--variant", name, "--json")
        assert process.returncode == 0, process.stderr
    result = bench(
        BenchConfig(bundle, scopes=("model",), rounds=2, output=tmp_path / "result.json"),
        protocol=SHORT,
    )
    assert [row.gate.passed for row in result.rows] == [True] * 5
    client = subprocess.run(
        [sys.executable, "-I", bundle / "predict.py", photo],
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(photo) in client.stdout


@pytest.mark.slow
def test_no_variant_is_recommended_when_limits_are_not_met(
    edgetl: Run,
    finished_run: Path,
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(latency, "BenchProtocol", lambda: SHORT)
    monkeypatch.setattr(
        "sys.argv",
        [
            "edgetl",
            "export",
            str(finished_run),
            "-o",
            str(tmp_path / "out"),
            "--max-latency",
            "1us",
        ],
    )
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 1
    stderr = capsys.readouterr().err
    assert "No variant meets the limits" in stderr
    assert "came closest" in stderr
    assert json.loads((tmp_path / "out/bundle.json").read_text())["recommended"] is None
    photo = next((parts / "val").rglob("*.jpg"))
    process = edgetl("predict", tmp_path / "out", photo)
    assert process.returncode == 1
    assert "recommends no variant" in process.stderr
    assert edgetl("predict", tmp_path / "out", photo, "--variant", "fp32").returncode == 0


def test_int8_of_a_stock_model_requires_images(
    forked: Run, random_weights: Path, tmp_path: Path
) -> None:
    process = forked(
        "export",
        ARCHITECTURE,
        "--weights",
        random_weights,
        "--image-size",
        IMAGE_SIZE,
        "--variants",
        "int8",
        "-o",
        tmp_path / "out",
    )
    assert process.returncode == 1
    assert "at least 20 images" in process.stderr
    assert "--images" in process.stderr
    assert not (tmp_path / "out").exists()


def test_variant_table_is_printed(
    all_variants_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgetl.cli.export import _print_bundle

    _print_bundle(open_bundle(all_variants_bundle))
    printed = capsys.readouterr().out
    for text in (
        "fp16",
        "int8-weights",
        "recommended",
        "speed-up",
        "drop",
        "weights in int8, arithmetic in float32",
    ):
        assert text in printed
