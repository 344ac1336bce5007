"""Compare latencies of `edgetl bench` with each runtime's own benchmark tool, in turns.

    python -m tools.benchmarks.runtime_tools BUNDLE [--variant NAME] [--threads N] [--pairs N]
        [--benchncnn PROGRAM]

BUNDLE must have been exported with `--input tensor`, so that both sides time the network alone. A
pair is one short `edgetl bench` and one run of the tool, which takes turns in going first. The
ratio edgetl / tool is taken within a pair, for the typical latency and for the smallest, which other
programs disturb least; printed are estimates and 95% intervals.

Tools: `benchmark_app` (package openvino) and `litert-benchmark` (package ai-edge-litert) print
medians; `benchncnn` (built from ncnn's sources) prints means, which are compared with the mean of
edgetl's latencies. It lacks some layers of the unknown score, which edgetl does not compute when
only logits are asked for, and gets the network without them. It has no option for bfloat16.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.statistics import paired_speedup
from edgetl.device.runtime.bundle import Bundle, open_bundle

_SECONDS, _LITERT_RUNS = 3, 400
_OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


@dataclass(frozen=True)
class Latencies:
    """Latencies in ms."""

    typical: float
    """Median, or mean if the tool prints no median."""
    smallest: float


@dataclass(frozen=True)
class Tool:
    """A runtime's benchmark tool."""

    name: str
    measure: Callable[[Path, VariantRecord, int], Latencies]
    """Measure a variant's file with a number of threads."""
    typical: Callable[[Sequence[float]], float] = median
    """The statistic that it prints."""


def run_benchmark_app(file: Path, variant: VariantRecord, threads: int) -> Latencies:
    """Return the latencies of benchmark_app in its synchronous mode."""
    output = _run(
        Path(sys.executable).with_name("benchmark_app"), "-m", file, "-d", "CPU", "-api", "sync",
        "-hint", "none", "-nstreams", 1, "-nthreads", threads, "-t", _SECONDS,
        "-infer_precision", _OPENVINO_PRECISIONS[variant.precision], "-b", 1,
    )  # fmt: skip
    return _parse(output, r"Median:\s+([\d.]+) ms", r"Min:\s+([\d.]+) ms")


def run_litert_benchmark(file: Path, variant: VariantRecord, threads: int) -> Latencies:
    """Return the latencies of litert-benchmark."""
    output = _run(
        Path(sys.executable).with_name("litert-benchmark"), "--model", file,
        "--num_threads", threads, "--num_runs", _LITERT_RUNS, "--warmup_runs", 50,
    )  # fmt: skip
    return _parse(
        output, r"Inference \(median\):\s+([\d.]+) ms", r"Inference \(min\):\s+([\d.]+) ms"
    )


def measure_edgetl(bundle: Path, variant: VariantRecord, threads: int, tool: Tool) -> Latencies:
    """Return the latencies of a short `edgetl bench` in scope model, medians over its rounds."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        _run(
            sys.executable, "-m", "edgetl", "bench", bundle, "--variant", variant.name,
            "--scope", "model", "--threads", threads, "--rounds", 2, "--pytorch", "none",
            "-o", output,
        )  # fmt: skip
        [row] = json.loads(output.read_text())["rows"]
    rounds = [block["latencies_ns"] for block in row["rounds"]]
    return Latencies(median(map(tool.typical, rounds)) / 1e6, median(map(min, rounds)) / 1e6)


def _run(*command: object) -> str:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"{command[0]} failed: {result.stderr[-500:]}")
    return result.stdout + result.stderr


def _parse(output: str, typical: str, smallest: str) -> Latencies:
    matches = [re.search(pattern, output) for pattern in (typical, smallest)]
    values = [float(match.group(1)) for match in matches if match is not None]
    if len(values) != len(matches):
        sys.exit(f"No latencies in the output: {output[-500:]}")
    return Latencies(*values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", action="append")
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
        tools["ncnn"] = Tool(
            "benchncnn", make_benchncnn(arguments.benchncnn, bundle.preprocessing.crop), fmean
        )
    for variant in bundle.variants:
        tool = tools.get(variant.runtime)
        is_selected = variant.name in (arguments.variant or [variant.name])
        if tool is None or not is_selected or not _can_measure(tool, variant):
            continue
        pairs = [
            _measure_pair(bundle, variant, arguments.threads, tool, edgetl_first=number % 2 == 0)
            for number in range(arguments.pairs)
        ]
        typical = [(pair.typical, of_tool.typical) for pair, of_tool in pairs]
        smallest = [(pair.smallest, of_tool.smallest) for pair, of_tool in pairs]
        print(
            f"{variant.name}, {arguments.threads} threads, edgetl / {tool.name}: "
            f"{tool.typical.__name__} {_describe(typical)}; min {_describe(smallest)}",
            flush=True,
        )


def _can_measure(tool: Tool, variant: VariantRecord) -> bool:
    return (tool.name, variant.precision) != ("benchncnn", "bf16")


def _describe(pairs: Sequence[tuple[float, float]]) -> str:
    edgetl_ms, tool_ms = (median(values) for values in zip(*pairs, strict=True))
    ratio = paired_speedup([first / second for first, second in pairs])
    return (
        f"{edgetl_ms:.2f} / {tool_ms:.2f} ms, ratio {ratio.ratio:.3f} "
        f"[{ratio.low:.3f}, {ratio.high:.3f}]"
    )


def _measure_pair(
    bundle: Bundle, variant: VariantRecord, threads: int, tool: Tool, *, edgetl_first: bool
) -> tuple[Latencies, Latencies]:
    """Return the latencies of edgetl and of the tool."""

    def run_edgetl() -> Latencies:
        return measure_edgetl(bundle.directory.path, variant, threads, tool)

    def run_tool() -> Latencies:
        return tool.measure(bundle.variant_path(variant), variant, threads)

    if edgetl_first:
        return run_edgetl(), run_tool()
    of_tool = run_tool()
    return run_edgetl(), of_tool


def make_benchncnn(program: Path, side: int) -> Callable[[Path, VariantRecord, int], Latencies]:
    """Return a function that runs benchncnn on a .param file for images of `side` pixels."""

    def run(file: Path, variant: VariantRecord, threads: int) -> Latencies:
        with tempfile.TemporaryDirectory() as folder:
            network = Path(folder) / file.name
            network.write_text(remove_other_outputs(file.read_text()))
            # Loops, threads, powersave, GPU, cooling down.
            output = _run(
                program, 200, threads, 0, -1, 0, f"param={network}", f"shape=[{side},{side},3]"
            )
        return _parse(output, r"avg =\s+([\d.]+)", r"min =\s+([\d.]+)")

    return run


def remove_other_outputs(param: str) -> str:
    """Return a network of ncnn without the layers behind the value `logits`."""
    magic, counts, *layers = param.splitlines()
    end = 1 + next(index for index, layer in enumerate(layers) if "logits" in _list_outputs(layer))
    _, values = counts.split()
    return "\n".join([magic, f"{end} {values}", *layers[:end], ""])


def _list_outputs(layer: str) -> list[str]:
    # Type, name, number of inputs, number of outputs, inputs, outputs, parameters.
    fields = layer.split()
    inputs, outputs = int(fields[2]), int(fields[3])
    return fields[4 + inputs : 4 + inputs + outputs]


if __name__ == "__main__":
    main()
