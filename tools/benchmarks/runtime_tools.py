"""Compare latencies of `edgetl bench` with each runtime's own benchmark tool, in turns.

    python -m tools.benchmarks.runtime_tools BUNDLE [--variant NAME] [--threads N] [--pairs N]
        [--benchncnn PROGRAM]

BUNDLE must have been exported with `--input tensor`, so that both sides time the network alone.
Linux only. A pair is one `edgetl bench` and as many runs of the tool as fit into its time. Both are
started together and take turns of a quarter of a second, in which the other side is stopped
(SIGSTOP), so that a change of the machine's speed affects both. A turn interrupts one inference of
some thirty, which hardly moves a median. Printed are medians over the pairs and the ratio
edgetl / tool with its 95% interval.

Tools: `benchmark_app` (package openvino) and `litert-benchmark` (package ai-edge-litert) print
medians. `benchncnn` (built from ncnn's sources) prints means, so its runs are short and not
interrupted. It lacks some layers of the unknown score, which edgetl does not compute when only
logits are asked for, and gets the network without them. It has no option for bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.statistics import paired_speedup
from edgetl.device.runtime.bundle import Bundle, open_bundle

_TURN_SECONDS = 0.25
_ROUNDS = 8
_OPENVINO_SECONDS, _LITERT_RUNS, _NCNN_RUNS = 10, 1000, 16
_OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}

Command = list[str]


@dataclass(frozen=True)
class Tool:
    """A runtime's benchmark tool."""

    name: str
    command: Callable[[Path, VariantRecord, int], Command]
    """Command that measures a variant's file with a number of threads."""
    pattern: str
    """Pattern of the typical latency in the output, ms: median, or mean if it prints no median."""
    is_interrupted: bool = True
    """Whether a turn may end in the middle of a run."""

    def read(self, output: str) -> float:
        """Return the typical latency in the tool's output, ms."""
        match = re.search(self.pattern, output)
        if match is None:
            sys.exit(f"No latency in the output of {self.name}: {output[-500:]}")
        return float(match.group(1))


def benchmark_app_command(file: Path, variant: VariantRecord, threads: int) -> Command:
    """Return the command of benchmark_app in its synchronous mode, with float32 input."""
    return _to_command(
        Path(sys.executable).with_name("benchmark_app"), "-m", file, "-d", "CPU", "-api", "sync",
        "-hint", "none", "-nstreams", 1, "-nthreads", threads, "-t", _OPENVINO_SECONDS,
        "-infer_precision", _OPENVINO_PRECISIONS[variant.precision], "-b", 1, "-ip", "f32",
    )  # fmt: skip


def litert_benchmark_command(file: Path, variant: VariantRecord, threads: int) -> Command:
    """Return the command of litert-benchmark."""
    return _to_command(
        Path(sys.executable).with_name("litert-benchmark"), "--model", file,
        "--num_threads", threads, "--num_runs", _LITERT_RUNS, "--warmup_runs", 50,
    )  # fmt: skip


def edgetl_command(bundle: Path, variant: VariantRecord, threads: int, result: Path) -> Command:
    """Return the command of `edgetl bench` in scope model."""
    return _to_command(
        sys.executable, "-m", "edgetl", "bench", bundle, "--variant", variant.name, "--scope",
        "model", "--threads", threads, "--rounds", _ROUNDS, "--pytorch", "none", "-o", result,
    )  # fmt: skip


def _to_command(*parts: object) -> Command:
    return [str(part) for part in parts]


class SuspendedProcess:
    """A command that runs only during its turns."""

    def __init__(self, command: Command, output: IO[str]) -> None:
        self._command = command
        self._output = output
        self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self._signal(signal.SIGSTOP)

    def run_turn(self, seconds: float | None) -> bool:
        """Run for `seconds`, or to the end if None; return whether the command has ended.

        Exits if it failed.
        """
        self._signal(signal.SIGCONT)
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            # Twice: a process may start another one before it stops.
            self._signal(signal.SIGSTOP)
            self._signal(signal.SIGSTOP)
            return False
        if code:
            self._output.seek(0)
            sys.exit(f"{self._command[0]} failed: {self._output.read()[-500:]}")
        return True

    def kill(self) -> None:
        """End the command early."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in list_process_tree(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def list_process_tree(pid: int) -> list[int]:
    """Return the IDs of a process and of all its descendants."""
    pids = [pid]
    # A process may end at any time.
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                pids += list_process_tree(int(child))
    return pids


def run_in_turns(command: Command, tool_command: Command, *, is_interrupted: bool) -> list[str]:
    """Run a command once and a tool again and again until the command has ended.

    Returns the outputs of the tool's complete runs. Without `is_interrupted` a turn of the tool is a
    complete run.
    """
    outputs: list[str] = []
    tool_seconds = _TURN_SECONDS if is_interrupted else None
    with tempfile.TemporaryFile("w+") as output:
        process = SuspendedProcess(command, output)
        while True:
            with tempfile.TemporaryFile("w+") as tool_output:
                tool = SuspendedProcess(tool_command, tool_output)
                while not tool.run_turn(tool_seconds):
                    if process.run_turn(_TURN_SECONDS):
                        tool.kill()
                        return outputs
                tool_output.seek(0)
                outputs.append(tool_output.read())
            if process.run_turn(_TURN_SECONDS):
                return outputs


def read_result(path: Path) -> float:
    """Return the p50 of a result of one configuration, ms: the median over its rounds."""
    [row] = json.loads(path.read_text())["rows"]
    return float(median(median(block["latencies_ns"]) for block in row["rounds"])) / 1e6


def list_tools(benchncnn: Path | None, side: int, folder: Path) -> dict[str, Tool]:
    """Return the tools by runtime; networks of `side` pixels for benchncnn go into `folder`."""
    tools = {
        "openvino": Tool("benchmark_app", benchmark_app_command, r"Median:\s+([\d.]+) ms"),
        "litert": Tool(
            "litert-benchmark",
            litert_benchmark_command,
            r"Inference \(median\):\s+([\d.]+) ms",
        ),
    }
    if benchncnn is not None:
        tools["ncnn"] = Tool(
            "benchncnn",
            make_benchncnn(benchncnn, side, folder),
            r"avg =\s+([\d.]+)",
            is_interrupted=False,
        )
    return tools


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--benchncnn", type=Path)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    with tempfile.TemporaryDirectory() as folder:
        tools = list_tools(arguments.benchncnn, bundle.preprocessing.crop, Path(folder))
        for variant in bundle.variants:
            tool = tools.get(variant.runtime)
            is_selected = variant.name in (arguments.variant or [variant.name])
            if tool is not None and is_selected and _can_measure(tool, variant):
                _compare(bundle, variant, arguments.threads, tool, arguments.pairs)


def _compare(bundle: Bundle, variant: VariantRecord, threads: int, tool: Tool, count: int) -> None:
    pairs = [_measure_pair(bundle, variant, threads, tool) for _ in range(count)]
    edgetl_ms, tool_ms = (median(values) for values in zip(*pairs, strict=True))
    ratio = paired_speedup([first / second for first, second in pairs])
    print(
        f"{variant.name}, {threads} threads: edgetl {edgetl_ms:.2f} ms, {tool.name} "
        f"{tool_ms:.2f} ms, ratio {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
        flush=True,
    )


def _can_measure(tool: Tool, variant: VariantRecord) -> bool:
    return (tool.name, variant.precision) != ("benchncnn", "bf16")


def _measure_pair(
    bundle: Bundle, variant: VariantRecord, threads: int, tool: Tool
) -> tuple[float, float]:
    """Return the p50 of edgetl and the typical latency of the tool over its runs, ms."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        outputs = run_in_turns(
            edgetl_command(bundle.directory.path, variant, threads, result),
            tool.command(bundle.variant_path(variant), variant, threads),
            is_interrupted=tool.is_interrupted,
        )
        edgetl = read_result(result)
    if not outputs:
        sys.exit(f"{tool.name} did not end within the time of a benchmark.")
    return edgetl, median(tool.read(output) for output in outputs)


def make_benchncnn(
    program: Path, side: int, folder: Path
) -> Callable[[Path, VariantRecord, int], Command]:
    """Return a function for the command of benchncnn on a .param file for images of `side` pixels.

    The network without its other outputs is written into `folder`.
    """

    def make_command(file: Path, variant: VariantRecord, threads: int) -> Command:
        network = folder / file.name
        network.write_text(remove_other_outputs(file.read_text()))
        # Loops, threads, powersave, GPU, cooling down.
        return _to_command(
            program, _NCNN_RUNS, threads, 0, -1, 0, f"param={network}", f"shape=[{side},{side},3]"
        )

    return make_command


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
