from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgetl.cli.bench_tables import show_bench_result
from edgetl.cli.console import out
from edgetl.cli.exit_codes import ExitCode
from edgetl.cli.moved_options import describe_moved_option
from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.comparison import EarlierPair, EarlierRow, Pair
from edgetl.core.artifacts.noise import NoiseReport
from edgetl.core.artifacts.session import OperatorProfile, ProfiledOperator
from edgetl.device.runtime.images import load_image
from tests.core.artifacts.test_bench import result, row
from tests.helpers.bundles import colour_logits, colour_model, write_bundle, write_pictures
from tests.helpers.gpus import gpu_reading

ROOT = Path(__file__).parents[2]


def edgetl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "edgetl", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    images = write_pictures(tmp_path / "bundle/golden")
    return write_bundle(
        tmp_path / "bundle",
        {"fp32": colour_model()},
        np.stack([colour_logits(load_image(path)) for path in images]),
    )


def test_bench_of_a_bundle_without_its_run(bundle: Path, tmp_path: Path) -> None:
    process = edgetl(
        "bench", str(bundle), "--rounds", "2", "--scope", "model", "--threads", "1", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    (result_path,) = (tmp_path / "bench").iterdir()
    assert str(result_path.relative_to(tmp_path)) in process.stdout
    for text in (
        "onnxruntime",
        "p50 ms",
        "images/s",
        "4/4 agree",
        "Noise",
        "PyTorch is not measured",
    ):
        assert text in process.stdout
    assert "gate: onnxruntime fp32 1 thread" in process.stderr
    assert "\x1b" not in process.stderr


def test_json_is_the_only_output(bundle: Path, tmp_path: Path) -> None:
    process = edgetl(
        "bench",
        str(bundle),
        "--rounds",
        "2",
        "--scope",
        "model",
        "--json",
        "-o",
        "kept.json",
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    content = json.loads(process.stdout)
    assert (content["schema"], content["kind"]) == (1, "bench")
    assert content == json.loads((tmp_path / "kept.json").read_text())
    assert content["rows"][0]["p50_ms"] > 0


def test_invalid_scope_is_rejected(bundle: Path, tmp_path: Path) -> None:
    process = edgetl(
        "bench", str(bundle), "--rounds", "2", "--scope", "model, pixels", cwd=tmp_path
    )
    assert process.returncode == 1
    assert "--scope must be among model, image, file, got 'pixels'" in " ".join(
        process.stderr.split()
    )


def test_failed_gate_is_shown_and_exits_with_1(bundle: Path, tmp_path: Path) -> None:
    images = sorted((bundle / "golden").glob("*.png"))
    logits = np.stack([colour_logits(load_image(path)) for path in images]) + np.float32(1)
    write_bundle(bundle, {"fp32": colour_model()}, logits)
    process = edgetl("bench", str(bundle), "--rounds", "2", "--scope", "model", cwd=tmp_path)
    assert process.returncode == 1
    assert "failed" in process.stdout
    assert "logits differ by 1" in " ".join(process.stderr.split())
    as_json = edgetl(
        "bench", str(bundle), "--rounds", "2", "--scope", "model", "--json", cwd=tmp_path
    )
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["rows"][0]["gate"]["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent not found"),
        (["bundle", "--provider", "qnn"], "The installed onnxruntime has no"),
        (["bundle", "--rounds", "1"], "--rounds must be >= 2"),
        (["bundle", "--threads", "0"], "--threads must be >= 1"),
        (["bundle", "--threads", "4096"], "use fewer, or --force"),
        (["bundle", "--threads", "two"], "--threads: must be integers separated by commas"),
        (["bundle", "--batch", "0"], "--batch must be >= 1, got 0"),
        (["bundle", "--batch", "4", "--scope", "file"], "needs scope model"),
        (["bundle", "--rate", "0"], "--rate must be > 0"),
        (["bundle", "--pytorch", "jit"], "--pytorch must be among eager, bf16, fp16, compile"),
        (["bundle", "--sustained", "1s"], "--sustained must be at least 10s"),
        (["bundle", "--max-regression", "5%"], "give --baseline"),
        (["bundle", "--max-regression", "little"], "is not a share"),
        (["bundle", "--inputs", "x.npy"], "a bundle brings its own"),
        (["bundle", "--wheels", "."], "--wheels can only be used with --host"),
        (["bundle", "--variant", "int8"], "no variant 'int8'"),
        (["bundle", "--baseline", "absent.json"], "cannot be read"),
    ],
)
def test_invalid_options_are_rejected(
    bundle: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    process = edgetl("bench", *arguments, cwd=tmp_path)
    assert process.returncode == 1
    assert message in " ".join(process.stderr.split())
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    assert not (tmp_path / "bench").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidates", "mobilenet_v2,resnet18"], "Use `edgetl candidates ARCHITECTURE...`."),
        (["mobilenet_v2", "resnet18"], "Use `edgetl candidates mobilenet_v2`."),
        (["--threads", "1", "resnet18"], "Use `edgetl candidates resnet18`."),
        (["bundle", "--latency-budget=5ms"], "bench has no option --latency-budget."),
        (["bundle", "--loadgen", "offline"], "Use `edgetl loadgen TARGET --scenario SCENARIO`."),
        (["bundle", "--min-accuracy", "90%"], "bench has no option --min-accuracy."),
    ],
)
def test_old_spelling_names_the_new_command(arguments: list[str], message: str) -> None:
    described = describe_moved_option(["bench", *arguments])
    assert described is not None
    assert message in described


@pytest.mark.parametrize(
    "arguments", [["bench", "bundle", "--threads", "1"], ["predict", "--data", "resnet18"], []]
)
def test_other_arguments_are_not_old_spellings(arguments: list[str]) -> None:
    assert describe_moved_option(arguments) is None


def test_old_spelling_is_a_usage_error_of_one_line(tmp_path: Path) -> None:
    process = edgetl("bench", "resnet18", "--classes", "3", cwd=tmp_path)
    assert process.returncode == ExitCode.USAGE
    (line,) = process.stderr.splitlines()
    assert line.startswith("Error: bench needs a run, a bundle or an ONNX file")


def test_folder_named_like_an_architecture_is_a_target(bundle: Path, tmp_path: Path) -> None:
    bundle.rename(tmp_path / "resnet18")
    process = edgetl("bench", "resnet18", "--provider", "qnn", cwd=tmp_path)
    assert "The installed onnxruntime has no" in process.stderr


@pytest.mark.parametrize("command", ["bench", "candidates", "loadgen", "doctor"])
def test_help_imports_no_heavy_package(command: str, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom edgetl.cli.app import create_app\napp = create_app()\n"
        f"try:\n    app(['{command}', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([name for name in ('numpy', 'PIL', 'torch', 'onnxruntime', 'edgetl.device') if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.splitlines()[-1] == "[]"
    assert command in process.stdout


def rendered_text(content: BenchResult) -> str:
    with out.capture() as capture:
        show_bench_result(content)
    return capture.get()


def test_table_fits_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out._get_console(), "_width", 100)
    rows = [
        row(runtime, [9_876_000, 9_912_000], scope)
        for runtime in ("pytorch", "onnxruntime")
        for scope in ("model", "file")
    ]
    pairs = tuple(
        Pair(f"pytorch-fp32-{scope}-cpu-b1-t2", f"onnxruntime-fp32-{scope}-cpu-b1-t2")
        for scope in ("model", "file")
    )
    text = rendered_text(BenchResult(**{**vars(result()), "rows": tuple(rows), "pairs": pairs}))
    lines = [
        line
        for line in text.splitlines()
        if not line.startswith(("Noise", "Result", "Note", "Fastest", "    "))
    ]
    assert all(len(line.rstrip()) <= 100 for line in lines)
    assert sum("onnxruntime" in line for line in lines) == 5, (
        "two rows of latency, two of stages, one of cold starts, none wrapped"
    )
    assert text.count("inconclusive") == 2
    assert "1.00× [" in text


def test_table_shows_missing_values_noise_and_earlier_result() -> None:
    earlier = EarlierRow(
        "old.json", "2025-01-01T00:00:00+00:00", True, False, 4, True, 8.0, (8e6, 8.1e6)
    )
    text = rendered_text(
        BenchResult(
            **{
                **{name: value for name, value in vars(result()).items() if name != "comparisons"},
                "noise": NoiseReport(("other processes used 40% of the CPU",)),
                "earlier_pairs": (
                    EarlierPair(
                        "pytorch-fp32-model-cpu-b1-t2", "onnxruntime-fp32-model-cpu-b1-t2", earlier
                    ),
                ),
            }
        )
    )
    joined = " ".join(text.split())
    assert "—" in text
    assert "noisy: other processes used 40% of the CPU" in joined
    assert "another device, another model, another configuration, noisy" in joined


def test_table_shows_profile_clock_and_gpu_state() -> None:
    reading = gpu_reading(throttle_reasons=("hw slowdown",), temperature_c=61)
    measured = row("onnxruntime", [2_000_000, 2_000_000])
    measured = replace(
        measured, rounds=tuple(replace(block, gpu=reading) for block in measured.rounds)
    )
    operators = (ProfiledOperator("Conv", "CUDAExecutionProvider", 1, 1.0, 1.0),)
    profile = OperatorProfile(3, operators, (), "host dispatch")
    content = replace(result(), rows=(measured,), pairs=(), profiles={measured.id: profile})
    text = " ".join(rendered_text(content).split())
    assert "Times are host dispatch: time to launch the work" in text
    assert (
        f"GPU {measured.id}: SM 1980 MHz of 1980, 61 °C, 300 W, 1024 MiB, throttle reasons: hw slowdown"
        in text
    )
    old = replace(
        content,
        profiles={measured.id: replace(profile, clock=None)},
    )
    assert "Times are" not in rendered_text(old)
