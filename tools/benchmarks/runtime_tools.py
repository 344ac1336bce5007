"""Compare p50 of `edgetl bench` with each runtime's own benchmark tool, in turns.

    python -m tools.benchmarks.runtime_tools BUNDLE [--threads N] [--pairs N] [--benchncnn PROGRAM]

BUNDLE must have been exported with `--input tensor`, so that both sides time the network alone. A
pair is one short `edgetl bench` and one run of the tool; the ratio edgetl / tool is taken within a
pair, and the median of the ratios is printed with their range. Needs a quiet machine.

Tools: `benchmark_app` (package openvino), `litert-benchmark` (package ai-edge-litert), `benchncnn`
(built from ncnn's sources; the program takes a .param file).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.device.runtime.bundle import Bundle, open_bundle

_SECONDS, _LITERT_RUNS = 3, 400
_OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


@dataclass(frozen=True)
class Tool:
    """A runtime's benchmark tool."""

    name: str
    measure_ms: Callable[[Path, VariantRecord, int], float]
    """Median latency in ms of a variant's file with a number of threads."""


def run_benchmark_app(file: Path, variant: VariantRecord, threads: int) -> float:
    """Return the median of benchmark_app in its synchronous mode."""
    output = _run(
        Path(sys.executable).with_name("benchmark_app"), "-m", file, "-d", "CPU", "-api", "sync",
        "-hint", "none", "-nstreams", 1, "-nthreads", threads, "-t", _SECONDS,
        "-infer_precision", _OPENVINO_PRECISIONS[variant.precision], "-b", 1,
    )  # fmt: skip
    return _parse(r"Median:\s+([\d.]+) ms", output)


def run_litert_benchmark(file: Path, variant: VariantRecord, threads: int) -> float:
    """Return the median of litert-benchmark."""
    output = _run(
        Path(sys.executable).with_name("litert-benchmark"), "--model", file,
        "--num_threads", threads, "--num_runs", _LITERT_RUNS, "--warmup_runs", 50,
    )  # fmt: skip
    return _parse(r"Inference \(median\):\s+([\d.]+) ms", output)


def edgetl_p50_ms(bundle: Path, variant: VariantRecord, threads: int) -> float:
    """Return p50 of a short `edgetl bench` of one variant in scope model."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        _run(
            sys.executable, "-m", "edgetl", "bench", bundle, "--variant", variant.name,
            "--scope", "model", "--threads", threads, "--rounds", 2, "--pytorch", "none",
            "-o", output,
        )  # fmt: skip
        [row] = json.loads(output.read_text())["rows"]
    return float(row["p50_ms"])


def _run(*command: object) -> str:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"{command[0]} failed: {result.stderr[-500:]}")
    return result.stdout + result.stderr


def _parse(pattern: str, output: str) -> float:
    match = re.search(pattern, output)
    if match is None:
        sys.exit(f"No median in the output: {output[-500:]}")
    return float(match.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--benchncnn", type=Path)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    tools = {
        "openvino": Tool("benchmark_app", run_benchmark_app),
        "litert": Tool("litert-benchmark", run_litert_benchmark),
    }
    if arguments.benchncnn is not None:
        tools["ncnn"] = Tool("benchncnn", _make_benchncnn(arguments.benchncnn, bundle))
    for variant in bundle.variants:
        tool = tools.get(variant.runtime)
        if tool is None:
            continue
        file = bundle.variant_path(variant)
        pairs = [
            (
                edgetl_p50_ms(arguments.bundle, variant, arguments.threads),
                tool.measure_ms(file, variant, arguments.threads),
            )
            for _ in range(arguments.pairs)
        ]
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        print(
            f"{variant.name}, {arguments.threads} threads: edgetl {median(p[0] for p in pairs):.2f} "
            f"ms, {tool.name} {median(p[1] for p in pairs):.2f} ms, ratio {median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f})",
            flush=True,
        )


def _make_benchncnn(program: Path, bundle: Bundle) -> Callable[[Path, VariantRecord, int], float]:
    side = bundle.preprocessing.crop

    def run(file: Path, variant: VariantRecord, threads: int) -> float:
        # Loops, threads, powersave, GPU, cooling down.
        output = _run(program, 100, threads, 0, -1, 0, f"param={file}", f"shape=[{side},{side},3]")
        return _parse(r"avg =\s+([\d.]+)", output)

    return run


if __name__ == "__main__":
    main()
