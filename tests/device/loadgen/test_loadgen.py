"""Tests of MLPerf LoadGen on small bundles, in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgetl.cli.exit_codes import ExitCode
from edgetl.core.artifacts.loadgen import LoadgenPerformance
from edgetl.core.artifacts.loadgen_logs import (
    LoadgenSummary,
    parse_summary,
    read_predictions,
    read_summary,
)
from edgetl.core.config.loadgen import LoadgenConfig, Scenario
from edgetl.core.errors import BenchError, ConfigError, DecodeError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.loadgen import loadgen as loadgen_module
from edgetl.device.loadgen.loadgen import loadgen
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import resize_and_crop, resize_around_crop
from tests.helpers.bundles import LABELS, colour_logits, colour_model, write_bundle, write_pictures

if not os.environ.get("CI"):  # CI installs it with the development packages
    pytest.importorskip("mlperf_loadgen")

ROOT = Path(__file__).parents[3]
LOOP = BenchProtocol(block_seconds=0.3, block_runs=50, window_seconds=0.02, window_runs=5)
SEEDS = {
    "qsl_rng_seed": 2085463073848966840,
    "sample_index_rng_seed": 2747215439041700203,
    "schedule_rng_seed": 16159082839903944936,
}
"""Seeds published by MLPerf in mlperf.conf."""


def busy_model(side: int = 384) -> onnx.ModelProto:
    """Return the colour model with a large matrix product, so that LoadGen's overhead is small."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        busy (uint8[batch, height, width, 3] image) => (float[batch, 2] logits, float[batch, 2] probabilities)
        <int64[2] axes = {1, 2}, float[1] little = {1e-30}> {
            pixels = Cast <to: int = 1> (image)
            colour = ReduceMean <keepdims: int = 0> (pixels, axes)
            brightness = ReduceMean <keepdims: int = 0> (colour)
            left = Mul (square, brightness)
            product = MatMul (left, square)
            mean = ReduceMean <keepdims: int = 0> (product)
            hint = Mul (mean, little)
            scores = MatMul (colour, weight)
            answer = Add (scores, bias)
            logits = Add (answer, hint)
            probabilities = Softmax <axis: int = 1> (logits)
        }"""
    )
    square = np.random.default_rng(0).random((side, side), np.float32) / side
    model.graph.initializer.extend(
        [*colour_model().graph.initializer, onnx.numpy_helper.from_array(square, "square")]
    )
    return model


@pytest.fixture(scope="module")
def busy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("busy") / "bundle"
    pictures = write_pictures(folder / "golden")
    return write_bundle(
        folder,
        {"fp32": busy_model()},
        np.stack([colour_logits(load_image(path)) for path in pictures]),
    )


@pytest.fixture
def labeled_folder(tmp_path: Path) -> tuple[Path, set[str]]:
    """Return a folder of eleven images, three in the wrong class folder, and their names."""
    folder = tmp_path / "labeled"
    mislabeled = set()
    for index in range(11):
        label = index % 2
        colour = (30, 230, 128) if label else (230, 30, 128)
        assert int(colour_logits(np.full((2, 2, 3), colour, np.uint8)).argmax()) == LABELS.index(
            LABELS[label]
        )
        is_mislabeled = index in (2, 5, 9)
        class_folder = folder / LABELS[1 - label if is_mislabeled else label]
        class_folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60 + index, 50), colour).save(class_folder / f"{index}.png")
        if is_mislabeled:
            mislabeled.add(f"{index}.png")
    return folder, mislabeled


@pytest.mark.parametrize(
    ("scenario", "batch"), [("single-stream", 1), ("multi-stream", 8), ("offline", 8)]
)
def test_scenario_runs_accuracy_and_performance(
    busy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scenario: Scenario,
    batch: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("audit.config").write_text("*.*.min_duration = 1\n")
    result = loadgen(
        LoadgenConfig(busy_bundle, scenario, threads=1, min_duration_s=0.5), protocol=LOOP
    )
    assert result.path is not None
    content = json.loads(result.path.read_text())
    assert content == json.loads(json.dumps(result.to_json() | {"notes": []}))
    assert (content["schema"], content["kind"], content["official"]) == (1, "loadgen", False)
    assert content["configuration"]["gate"]["passed"]
    assert content["configuration"]["batch"] == batch

    logs = result.path.parent / content["logs"]
    log_names = {str(path.relative_to(logs)) for path in logs.rglob("*") if path.is_file()}
    names = ("mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json")
    assert log_names == {f"{mode}/{name}" for mode in ("accuracy", "performance") for name in names}

    performance = result.performance
    accuracy = result.accuracy
    assert performance is not None
    assert accuracy is not None
    assert (accuracy.correct_images, accuracy.images, accuracy.passed) == (4, 4, True)
    assert set(read_predictions(logs / "accuracy")) == {0, 1, 2, 3}
    summary = performance.summary
    assert summary == read_summary(logs / "performance")
    assert summary.result == "VALID", summary
    assert SEEDS.items() <= summary.parameters.items()
    assert summary.parameters["min_duration (ms)"] == 500, (
        "an audit.config in the current folder was used"
    )
    if scenario == "offline":
        assert summary.get_figure("Samples per second") * 0.5 < performance.issued
        assert len(performance.inside_ns) == 1
    else:
        assert summary.parameters["samples_per_query"] == batch
        assert len(performance.inside_ns) * batch == performance.issued
        assert any(
            "Early stopping" in remark and "percentile estimate" in remark
            for remark in summary.remarks
        )
    # The machine's speed may change between loop and test, but not between the clocks of the test.
    assert 0.5 < performance.ratio < 2
    assert (
        0.7 * performance.loadgen_ns
        < performance.inference_ns
        <= performance.callback_ns
        < 1.02 * performance.loadgen_ns
    )


@pytest.mark.parametrize(
    ("scenario", "scope"),
    [("multi-stream", "model"), ("offline", "image"), ("single-stream", "model")],
)
def test_mislabeled_images_are_counted(
    make_bundle: Callable[..., Path],
    labeled_folder: tuple[Path, set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scenario: Scenario,
    scope: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    # Not all samples fit into memory: LoadGen loads them in portions and pads queries of eight.
    monkeypatch.setattr("edgetl.device.loadgen.samples.MAX_RESIDENT_SAMPLES", 4)
    folder, mislabeled = labeled_folder
    config = LoadgenConfig(
        make_bundle(), scenario, ("accuracy",), scope, threads=1, data=folder, min_accuracy=0.8
    )  # type: ignore[arg-type]
    accuracy = loadgen(config).accuracy
    assert accuracy is not None
    assert (accuracy.correct_images, accuracy.images, accuracy.against) == (8, 11, "labels")
    assert {Path(mistake.file).name for mistake in accuracy.wrong} == mislabeled
    assert all(mistake.answer != mistake.expected for mistake in accuracy.wrong)
    assert not accuracy.passed
    assert replace(accuracy, least=8 / 11).passed


def test_min_accuracy_defaults_to_share_of_export_accuracy(
    make_bundle: Callable[..., Path],
    labeled_folder: tuple[Path, set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = make_bundle()
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["variants"][0]["accuracy"] = {
        "split": "validation", "images": 100, "top1": 0.9, "ci95": [0.8, 0.95],
        "macro_f1": 0.9, "drop": 0.0, "flips": 0,
    }  # fmt: skip
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    command = (
        "loadgen",
        bundle,
        "--mode",
        "accuracy",
        "--threads",
        1,
        "--data",
        labeled_folder[0],
    )
    completed = run_program(*command)
    assert completed.returncode == ExitCode.FAILED_CHECK
    assert "8 of 11 images correct, at least 89.1% required" in completed.stderr
    assert "FAILED" in completed.stdout
    assert len(list((tmp_path / "bench").glob("*.json"))) == 1, "the result was not written"
    assert run_program(*command, "--min-accuracy", "70%").returncode == 0


def test_invalid_image_is_reported_by_name(
    make_bundle: Callable[..., Path],
    labeled_folder: tuple[Path, set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (labeled_folder[0] / "cat/broken.png").write_bytes(b"not an image")
    with pytest.raises(DecodeError, match=r"broken\.png: cannot be decoded"):
        loadgen(LoadgenConfig(make_bundle(), "single-stream", threads=1, data=labeled_folder[0]))
    assert not Path("bench").exists()


def run_program(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgetl", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, **options
    )  # type: ignore[call-overload,no-any-return]


def test_cli_prints_loadgen_summary(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    completed = run_program(
        "loadgen",
        make_bundle(),
        "--min-duration",
        "0.3s",
        "--threads",
        1,
    )
    assert completed.returncode == 0, completed.stderr
    for text in (
        "Result is : ",
        "Early stopping 90.0th percentile estimate",
        "LoadGen p50",
        "timed by edgetl inside LoadGen",
        "Official no:",
        "10 minutes",
    ):
        assert text in completed.stdout
    (path,) = (tmp_path / "bench").glob("*.json")
    assert path.stem in completed.stdout


def test_loadgen_is_not_started_when_gate_fails(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError, match=r"LoadGen was not started.*logits differ by 1"):
        loadgen(LoadgenConfig(make_bundle(error=1.0), "single-stream", threads=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--scenario", "server"],
            "'server' is not one of 'single-stream', 'multi-stream', 'offline'",
        ),
        (["--scope", "file"], "'file' is not one of 'model', 'image'"),
        (
            ["--scenario", "multi-stream", "--batch", "9"],
            "batch must be <= 8 for scenario multi-stream",
        ),
        (
            ["--scenario", "offline", "--batch", "2", "--scope", "image"],
            "batch must be 1 in scope image",
        ),
        (["--mode", "submission"], "modes must be among accuracy, performance"),
        (["--threads", "1,2"], "'1,2' is not a valid int"),
        (["--variant", "all"], "no variant 'all'"),
        (["--data", "absent"], "Folder not found: absent"),
        (["--data", "."], "not labels of the bundle: bundle"),
    ],
)
def test_invalid_options_are_rejected(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    from typer.testing import CliRunner

    from edgetl.cli.app import create_app

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=message):
        CliRunner().invoke(
            create_app("loadgen"),
            ["loadgen", str(make_bundle()), *arguments],
            catch_exceptions=False,
            standalone_mode=False,
        )
    assert not Path("bench").exists()


def test_lone_file_is_rejected(tmp_path: Path) -> None:
    onnx.save(colour_model(), tmp_path / "model.onnx")
    with pytest.raises(BenchError, match="a lone ONNX file has no images"):
        loadgen(LoadgenConfig(tmp_path / "model.onnx", "offline"))


def test_missing_package_is_reported(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    """Run an interpreter with all packages except mlperf_loadgen."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(("mlperf", "mlcommons")):
            (packages / entry.name).symlink_to(entry)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)])}
    command = [
        sys.executable,
        "-S",
        "-m",
        "edgetl",
        "loadgen",
        str(make_bundle()),
    ]
    completed = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 1
    assert completed.stderr.startswith(
        'Error: mlperf_loadgen is not installed. Run `pip install "edgetl[loadgen]"`'
    )
    assert completed.stdout == ""


def start_performance_run(bundle: Path, folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a long performance run and return the program and its worker's process id."""
    command = [
        sys.executable,
        "-m",
        "edgetl",
        "loadgen",
        str(bundle),
        "--threads",
        "1",
        "--min-duration",
        "6s",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    program = subprocess.Popen(
        [*command, "--mode", "performance"],
        stdout=-1,
        stderr=-1,
        text=True,
        cwd=folder,
        env=environment,
    )
    assert program.stderr is not None
    while "performance" not in (line := program.stderr.readline()):
        assert line, "the program ended early"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        # LoadGen opens its files when its test starts, after edgetl's own loop.
        for child in Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split():
            if any(
                "mlperf_log_detail" in str(link.readlink())
                for link in Path(f"/proc/{child}/fd").iterdir()
                if link.is_symlink()
            ):
                return program, int(child)
        time.sleep(0.05)
    program.kill()
    raise AssertionError("LoadGen's test did not start")


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 3
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if ") Z " in Path(f"/proc/{pid}/stat").read_text():
            return True
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("target", "number", "status", "message"),
    [
        ("worker", signal.SIGKILL, 1, "loadgen process of onnxruntime was killed by SIGKILL"),
        pytest.param(
            "worker",
            signal.SIGSEGV,
            1,
            "loadgen process of onnxruntime was killed by SIGSEGV",
            marks=pytest.mark.slow,
        ),
        ("program", signal.SIGINT, 130, "nothing was kept"),
        pytest.param("program", signal.SIGKILL, -signal.SIGKILL, "", marks=pytest.mark.slow),
    ],
)
def test_stopped_process_leaves_no_files(
    busy_bundle: Path, tmp_path: Path, target: str, number: int, status: int, message: str
) -> None:
    program, worker = start_performance_run(busy_bundle, tmp_path)
    os.kill(worker if target == "worker" else program.pid, number)
    stderr = program.communicate(timeout=60)[1]
    assert program.returncode == status, stderr
    assert message in stderr
    assert "Traceback" not in stderr
    assert is_gone(worker)
    assert not (tmp_path / "bench").exists()


def test_queries_beyond_memory_are_rejected(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """With a fast network, a day of LoadGen queries needs hundreds of gigabytes."""
    config = LoadgenConfig(
        make_bundle(), "single-stream", ("performance",), threads=1, min_duration_s=86400
    )
    with pytest.raises(BenchError, match="million samples for 86400 s do not fit into memory"):
        loadgen(replace(config, output=tmp_path / "out.json"), protocol=LOOP)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "size", [(50, 60), (61, 50), (333, 500), (500, 333), (40, 40), (40, 1000), (37, 41)]
)
@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing(256, 224), Preprocessing(41, 32), Preprocessing(37, 37), Preprocessing(40, 33)],
)
def test_resize_around_crop_preserves_crop(
    size: tuple[int, int], preprocessing: Preprocessing
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    square = resize_around_crop(image, preprocessing)
    assert square.shape == (preprocessing.resize, preprocessing.resize, 3)
    assert np.array_equal(
        resize_and_crop(square, preprocessing), resize_and_crop(image, preprocessing)
    )


INVALID = """
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : SingleStream
90.0th percentile latency (ns) : 2202359
Result is : INVALID
  Min duration satisfied : NO
Recommendations:
 * Decrease the expected latency so the loadgen pre-generates more queries.
Early Stopping Result:
 * Only processed 60 queries.
 * Need to process at least 64 queries for
 early stopping.

================================================
Additional Stats
================================================
QPS w/ loadgen overhead         : 462.10
50.00 percentile latency (ns)   : 2147137

================================================
Test Parameters Used
================================================
min_duration (ms): 2000

1 warning encountered. See detailed log.

1 ERROR encountered. See detailed log.
"""


def test_summary_is_parsed() -> None:
    summary = parse_summary(INVALID)
    assert summary.result == "INVALID"
    assert summary.figures["Min duration satisfied"] == "NO"
    assert summary.get_figure("QPS w/ loadgen overhead") == 462.1
    assert summary.get_figure("50.00 percentile latency (ns)") == 2147137
    assert summary.parameters == {"min_duration (ms)": 2000}
    assert len(summary.remarks) == 4
    assert summary.remarks[-1] == "early stopping."
    assert summary.messages == (
        "1 warning encountered. See detailed log.",
        "1 ERROR encountered. See detailed log.",
    )
    assert parse_summary("").result is None
    with pytest.raises(BenchError, match="'Samples per second' not found"):
        summary.get_figure("Samples per second")


@pytest.mark.parametrize(
    ("loop", "model", "inside", "p50", "reason"),
    [
        (2.0, 2.0, 2.0, 2.09, ""),
        (2.0, 2.0, 2.02, 2.2, "0.18 ms are spent outside edgetl's callback"),
        (2.0, 2.0, 2.19, 2.2, "0.19 ms are spent on Python in edgetl's callback"),
        (2.0, 3.19, 3.19, 3.2, "the machine changed its speed"),
        (2.0, 1.5, 1.5, 1.5, "the machine changed its speed"),
    ],
)
def test_disagreement_reports_reason(
    loop: float, model: float, inside: float, p50: float, reason: str
) -> None:
    durations_ms = {"before_ns": loop, "after_ns": loop, "model_ns": model, "inside_ns": inside}
    times = {name: (round(duration_ms * 1e6),) * 9 for name, duration_ms in durations_ms.items()}
    summary = LoadgenSummary("VALID", {"50.00 percentile latency (ns)": p50 * 1e6}, {}, (), ())
    performance = LoadgenPerformance("single-stream", summary, **times, loop_images=1, issued=9)
    assert performance.is_within_tolerance == (reason == "")
    assert reason in performance.disagreement
    assert bool(performance.disagreement) == (not performance.is_within_tolerance)


def test_offline_compares_samples_per_second() -> None:
    summary = LoadgenSummary("VALID", {"Samples per second": 98.0}, {}, (), ())
    times = ((80_000_000,), (80_000_000,), (10_200_000_000,), (10_000_000_000,))
    performance = LoadgenPerformance("offline", summary, *times, loop_images=8, issued=1000)
    comparison = performance.comparison
    assert comparison["edgetl_samples_per_second"] == pytest.approx(100)
    assert comparison["inference_samples_per_second"] == pytest.approx(100)
    assert performance.ratio == pytest.approx(0.98)
    assert performance.is_within_tolerance


def test_all_config_errors_are_reported() -> None:
    with pytest.raises(ConfigError) as raised:
        LoadgenConfig(
            Path(),
            "single-stream",
            modes=(),
            batch=2,
            min_duration_s=0,
            min_accuracy=2.0,
            threads=0,
        )
    assert len(str(raised.value).splitlines()) == 5


def test_unwritable_output_falls_back_to_temporary_folder(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out-loadgen").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    config = LoadgenConfig(
        make_bundle(), "offline", ("accuracy",), threads=1, output=tmp_path / "out.json"
    )
    result = loadgen_module.loadgen(config)
    assert result.path == tmp_path / "edgetl-out.json"
    assert "out-loadgen already exists" in result.notes[0]
    assert (tmp_path / "edgetl-out-loadgen/accuracy/mlperf_log_summary.txt").is_file()
