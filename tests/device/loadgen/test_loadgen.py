"""MLPerf LoadGen itself drives small bundles, in real processes."""

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
from edgetl.device.loadgen import loadgen as running
from edgetl.device.loadgen.loadgen import loadgen
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import resize_and_crop, resize_around_crop
from tests.helpers.bundles import LABELS, colour_logits, colour_model, write_bundle, write_pictures

if not os.environ.get("CI"):  # there it must be: it is one of the packages for development
    pytest.importorskip("mlperf_loadgen")

ROOT = Path(__file__).parents[3]
LOOP = BenchProtocol(block_seconds=0.3, block_runs=50, window_seconds=0.02, window_runs=5)
SEEDS = {
    "qsl_rng_seed": 2085463073848966840,
    "sample_index_rng_seed": 2747215439041700203,
    "schedule_rng_seed": 16159082839903944936,
}
"""As MLPerf publishes them in mlperf.conf."""


def busy_model(side: int = 384) -> onnx.ModelProto:
    """The colour model with a multiplication of large matrices beside it, so that LoadGen's own microseconds hardly count."""
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
def labelled(tmp_path: Path) -> tuple[Path, set[str]]:
    """Eleven pictures that the colour model tells apart, three of them in the wrong folder; and the names of those."""
    folder, planted = tmp_path / "labelled", set()
    for number in range(11):
        right = number % 2
        colour = (30, 230, 128) if right else (230, 30, 128)
        assert int(colour_logits(np.full((2, 2, 3), colour, np.uint8)).argmax()) == LABELS.index(
            LABELS[right]
        )
        wrong = number in (2, 5, 9)
        place = folder / LABELS[1 - right if wrong else right]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60 + number, 50), colour).save(place / f"{number}.png")
        planted |= {f"{number}.png"} if wrong else set()
    return folder, planted


@pytest.mark.parametrize(
    ("scenario", "batch"), [("single-stream", 1), ("multi-stream", 8), ("offline", 8)]
)
def test_both_modes_of_each_scenario(
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
    kept = {str(path.relative_to(logs)) for path in logs.rglob("*") if path.is_file()}
    names = ("mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json")
    assert kept == {f"{mode}/{name}" for mode in ("accuracy", "performance") for name in names}

    performance, accuracy = result.performance, result.accuracy
    assert performance is not None
    assert accuracy is not None
    assert (accuracy.correct_images, accuracy.images, accuracy.passed) == (4, 4, True)
    assert set(read_predictions(logs / "accuracy")) == {0, 1, 2, 3}
    summary = performance.summary
    assert summary == read_summary(logs / "performance")
    assert summary.result == "VALID", summary
    assert SEEDS.items() <= summary.parameters.items()
    assert summary.parameters["min_duration (ms)"] == 500, (
        "an audit.config that lies about is not obeyed"
    )
    if scenario == "offline":
        assert summary.get_figure("Samples per second") * 0.5 < performance.issued
        assert len(performance.inside_ns) == 1
    else:
        assert summary.parameters["samples_per_query"] == batch
        assert len(performance.inside_ns) * batch == performance.issued
        assert any(
            "Early stopping" in words and "percentile estimate" in words
            for words in summary.remarks
        )
    # The machine may change its speed between loop and test; within the test both clocks see the same.
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
def test_planted_mistakes_are_counted(
    make_bundle: Callable[..., Path],
    labelled: tuple[Path, set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scenario: Scenario,
    scope: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    # Not all fit into memory: LoadGen loads them part by part, and fills up queries of eight.
    monkeypatch.setattr("edgetl.device.loadgen.samples.MAX_RESIDENT_SAMPLES", 4)
    folder, planted = labelled
    config = LoadgenConfig(
        make_bundle(), scenario, ("accuracy",), scope, threads=1, data=folder, min_accuracy=0.8
    )  # type: ignore[arg-type]
    accuracy = loadgen(config).accuracy
    assert accuracy is not None
    assert (accuracy.correct_images, accuracy.images, accuracy.against) == (8, 11, "labels")
    assert {Path(mistake["file"]).name for mistake in accuracy.wrong} == planted
    assert all(mistake["answer"] != mistake["wanted"] for mistake in accuracy.wrong)
    assert not accuracy.passed
    assert replace(accuracy, least=8 / 11).passed


def test_the_accuracy_at_export_is_what_labelled_images_must_reach(
    make_bundle: Callable[..., Path],
    labelled: tuple[Path, set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = make_bundle()
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["variants"][0]["accuracy"] = {"top1": 0.9}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    command = (
        "bench",
        bundle,
        "--loadgen",
        "single-stream",
        "--loadgen-mode",
        "accuracy",
        "--threads",
        1,
        "--data",
        labelled[0],
    )
    done = run_program(*command)
    assert done.returncode == 1
    assert "8 of 11 images correct, at least 89.1% required" in done.stderr
    assert "FAILED" in done.stdout
    assert len(list((tmp_path / "bench").glob("*.json"))) == 1, "it is kept all the same"
    assert run_program(*command, "--min-accuracy", "70%").returncode == 0


def test_a_file_that_is_no_image_ends_the_run_with_its_name(
    make_bundle: Callable[..., Path],
    labelled: tuple[Path, set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (labelled[0] / "cat/broken.png").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=r"broken\.png: cannot be decoded"):
        loadgen(LoadgenConfig(make_bundle(), "single-stream", threads=1, data=labelled[0]))
    assert not Path("bench").exists()


def run_program(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgetl", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, **options
    )  # type: ignore[call-overload,no-any-return]


def test_the_terminal_tells_what_loadgen_says(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_program(
        "bench",
        make_bundle(),
        "--loadgen",
        "single-stream",
        "--min-duration",
        "0.3s",
        "--threads",
        1,
        "--pytorch",
        "none",
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "Result is : ",
        "Early stopping 90.0th percentile estimate",
        "LoadGen p50",
        "timed by edgetl inside LoadGen",
        "Official no:",
        "10 minutes",
    ):
        assert words in done.stdout
    (kept,) = (tmp_path / "bench").glob("*.json")
    assert kept.stem in done.stdout


def test_a_closed_gate_starts_nothing(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError, match=r"LoadGen was not started.*logits differ by 1"):
        loadgen(LoadgenConfig(make_bundle(error=1.0), "single-stream", threads=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loadgen", "server"], "--loadgen takes single-stream, multi-stream, offline"),
        (
            ["--loadgen", "offline", "--pytorch", "eager", "--sustained", "1m"],
            "cannot be combined with --pytorch, --sustained",
        ),
        (["--loadgen", "offline", "--rounds", "3"], "cannot be combined with --rounds"),
        (["--loadgen", "offline", "--threads", "1,2"], "give only one value for --threads"),
        (["--loadgen", "offline", "--scope", "file"], "takes scope model or image"),
        (["--loadgen", "multi-stream", "--batch", "9"], "leave --batch at 8 or less"),
        (["--loadgen", "offline", "--batch", "2", "--scope", "image"], "leave --batch at 1"),
        (
            ["--loadgen", "offline", "--loadgen-mode", "submission"],
            "--loadgen-mode takes accuracy, performance",
        ),
        (["--loadgen", "offline", "--variant", "all"], "measures one variant"),
        (["--loadgen", "offline", "--data", "absent"], "No folder at absent"),
        (["--loadgen", "offline", "--data", "."], "no labels of the bundle: bundle"),
        (
            ["--data", "photos", "--min-duration", "1m"],
            "--data, --min-duration can only be used with --loadgen",
        ),
    ],
)
def test_options_that_make_no_sense(
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
            create_app("bench"),
            ["bench", str(make_bundle()), *arguments],
            catch_exceptions=False,
            standalone_mode=False,
        )
    assert not Path("bench").exists()


def test_a_lone_file_brings_no_images(tmp_path: Path) -> None:
    onnx.save(colour_model(), tmp_path / "model.onnx")
    with pytest.raises(BenchError, match="a lone ONNX file brings no images"):
        loadgen(LoadgenConfig(tmp_path / "model.onnx", "offline"))


def test_without_the_package_one_sentence(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    """In an interpreter that has all packages but this one."""
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
        "bench",
        str(make_bundle()),
        "--loadgen",
        "offline",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        'Error: mlperf_loadgen is not installed. `pip install "edgetl[loadgen]"` adds it'
    )
    assert done.stdout == ""


def started(bundle: Path, folder: Path) -> tuple[subprocess.Popen[str], int]:
    """The program in the middle of a long performance run, and the process id of its worker."""
    command = [
        sys.executable,
        "-m",
        "edgetl",
        "bench",
        str(bundle),
        "--loadgen",
        "single-stream",
        "--threads",
        "1",
        "--min-duration",
        "6s",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    program = subprocess.Popen(
        [*command, "--loadgen-mode", "performance"],
        stdout=-1,
        stderr=-1,
        text=True,
        cwd=folder,
        env=environment,
    )
    assert program.stderr is not None
    while "performance" not in (line := program.stderr.readline()):
        assert line, "it ended before"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        # LoadGen has opened its files once its test runs; until then it is edgetl's own loop.
        for child in Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split():
            if any(
                "mlperf_log_detail" in str(link.readlink())
                for link in Path(f"/proc/{child}/fd").iterdir()
                if link.is_symlink()
            ):
                return program, int(child)
        time.sleep(0.05)
    program.kill()
    raise AssertionError("LoadGen's test did not begin")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 3
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if ") Z " in Path(f"/proc/{pid}/stat").read_text():
            return True
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("victim", "number", "status", "told"),
    [
        ("worker", signal.SIGKILL, 1, "loadgen process of onnxruntime was ended by SIGKILL"),
        ("worker", signal.SIGSEGV, 1, "loadgen process of onnxruntime was ended by SIGSEGV"),
        ("program", signal.SIGINT, 130, "nothing was kept"),
        ("program", signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_an_ended_process_leaves_nothing(
    busy_bundle: Path, tmp_path: Path, victim: str, number: int, status: int, told: str
) -> None:
    program, worker = started(busy_bundle, tmp_path)
    os.kill(worker if victim == "worker" else program.pid, number)
    said = program.communicate(timeout=60)[1]
    assert program.returncode == status, said
    assert told in said
    assert "Traceback" not in said
    assert gone(worker)
    assert not (tmp_path / "bench").exists()


def test_queries_that_fill_the_memory_are_not_made_up(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """A quick network for a day: LoadGen would hold hundreds of gigabytes before its first query."""
    config = LoadgenConfig(
        make_bundle(), "single-stream", ("performance",), threads=1, min_duration_s=86400
    )
    with pytest.raises(
        BenchError, match="million samples for 86400 s, more than there is memory for"
    ):
        loadgen(replace(config, output=tmp_path / "out.json"), protocol=LOOP)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "size", [(50, 60), (61, 50), (333, 500), (500, 333), (40, 40), (40, 1000), (37, 41)]
)
@pytest.mark.parametrize(
    "contract",
    [Preprocessing(256, 224), Preprocessing(41, 32), Preprocessing(37, 37), Preprocessing(40, 33)],
)
def test_one_shape_for_all_photos_holds_the_same_crop(
    size: tuple[int, int], contract: Preprocessing
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    square = resize_around_crop(image, contract)
    assert square.shape == (contract.resize, contract.resize, 3)
    assert np.array_equal(resize_and_crop(square, contract), resize_and_crop(image, contract))


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


def test_a_summary_is_read_as_it_stands() -> None:
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
    with pytest.raises(BenchError, match="no figure 'Samples per second'"):
        summary.get_figure("Samples per second")


@pytest.mark.parametrize(
    ("loop", "model", "inside", "p50", "reason"),
    [
        (2.0, 2.0, 2.0, 2.09, ""),
        (2.0, 2.0, 2.02, 2.2, "0.18 ms lie outside edgetl's callback"),
        (2.0, 2.0, 2.19, 2.2, "0.19 ms are Python in edgetl's callback"),
        (2.0, 3.19, 3.19, 3.2, "changed its speed meanwhile"),
        (2.0, 1.5, 1.5, 1.5, "changed its speed meanwhile"),
    ],
)
def test_a_disagreement_has_its_reason(
    loop: float, model: float, inside: float, p50: float, reason: str
) -> None:
    given = (("before_ns", loop), ("after_ns", loop), ("model_ns", model), ("inside_ns", inside))
    times = {name: (round(ms * 1e6),) * 9 for name, ms in given}
    summary = LoadgenSummary("VALID", {"50.00 percentile latency (ns)": p50 * 1e6}, {}, (), ())
    performance = LoadgenPerformance("single-stream", summary, **times, loop_images=1, issued=9)
    assert performance.is_within_tolerance == (reason == "")
    assert reason in performance.disagreement
    assert bool(performance.disagreement) == (not performance.is_within_tolerance)


def test_offline_compares_samples_a_second() -> None:
    summary = LoadgenSummary("VALID", {"Samples per second": 98.0}, {}, (), ())
    times = ((80_000_000,), (80_000_000,), (10_200_000_000,), (10_000_000_000,))
    performance = LoadgenPerformance("offline", summary, *times, loop_images=8, issued=1000)
    comparison = performance.to_json()["comparison"]
    assert comparison["edgetl_samples_per_second"] == pytest.approx(100)
    assert comparison["inference_samples_per_second"] == pytest.approx(100)
    assert performance.ratio == pytest.approx(0.98)
    assert performance.is_within_tolerance


def test_mistakes_in_the_configuration_come_at_once() -> None:
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


def test_results_that_cannot_be_kept_there_are_kept_elsewhere(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out-loadgen").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    config = LoadgenConfig(
        make_bundle(), "offline", ("accuracy",), threads=1, output=tmp_path / "out.json"
    )
    result = running.loadgen(config)
    assert result.path == tmp_path / "edgetl-out.json"
    assert "out-loadgen exists already" in result.notes[0]
    assert (tmp_path / "edgetl-out-loadgen/accuracy/mlperf_log_summary.txt").is_file()
