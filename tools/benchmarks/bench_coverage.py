"""Validate `edgetl bench` on trials with a known outcome.

    python -m tools.benchmarks.bench_coverage coverage RUN
        Compare the same pair repeatedly and count the intervals that contain the overall median.
    python -m tools.benchmarks.bench_coverage planted BUNDLE
        Plant slowdowns of 10% and 0% and print the verdicts.
    python -m tools.benchmarks.bench_coverage planted BUNDLE --load
        The same with one core kept busy by another process; the verdict should be noisy.
    python -m tools.benchmarks.bench_coverage plain BUNDLE SCRIPT
        Compare p50 with that of a tight loop: `SCRIPT FILE.onnx --threads N` prints JSON with
        `p50_ms` on its last line.

--keep names a folder for the result file of every trial; trials already in it are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_json import read_result
from edgetl.core.artifacts.bundle import write_bundle_manifest
from edgetl.core.config.bench import BenchConfig, BenchScope
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.device.bench.runner import bench
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.bundle import open_bundle

PLANTED = "planted"
"""Name of the variant that is slowed down."""

# Imported by every worker at startup. The calls of the planted variant are extended by a fixed
# share of their duration, so the true ratio does not depend on the state of the machine.
_SITECUSTOMIZE = """
from time import perf_counter_ns
from edgetl.device.bench.ort_backend import OnnxRuntimeBackend
infer = OnnxRuntimeBackend.infer
def slowed(self, batch):
    start = perf_counter_ns()
    logits = infer(self, batch)
    end = perf_counter_ns()
    stop = end + int((end - start) * ({slowdown!r} if self._source.model.stem == {planted!r} else 0.0))
    while perf_counter_ns() < stop:
        pass
    return logits
OnnxRuntimeBackend.infer = slowed
"""


def coverage(arguments: argparse.Namespace) -> None:
    """Print how often the interval of a trial contains the median of all trials."""
    scopes: tuple[BenchScope, ...] = ("model", "file") if arguments.default else ("model",)
    config = BenchConfig(arguments.target, scopes=scopes, variants=("fp32",))
    results = list(_trials(config, arguments.trials, arguments.keep))
    speedups = [result.comparisons[0].speedup for result in results]
    ratios = sorted(speedup.ratio for speedup in speedups)
    middle = median(ratios)
    covered = sum(speedup.low <= middle <= speedup.high for speedup in speedups)
    widths = sorted((speedup.high - speedup.low) / 2 / speedup.ratio for speedup in speedups)
    print(f"speed-up: median {middle:.3f} of {len(ratios)} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    print(f"intervals that contain the median: {covered} of {len(speedups)}")
    print(f"half-widths: {widths[0]:.1%} to {widths[-1]:.1%}, median {median(widths):.1%}")
    print(f"results reported as noisy: {sum(result.noise.is_noisy for result in results)}")


def planted(arguments: argparse.Namespace) -> None:
    """Print the verdicts and measured ratios for each planted slowdown."""
    with tempfile.TemporaryDirectory() as name:
        bundle = _copy_with_planted_variant(arguments.target, Path(name) / "bundle")
        for slowdown in arguments.slowdown:
            keep = None
            if arguments.keep is not None:
                keep = arguments.keep / f"{slowdown:g}{'-load' if arguments.load else ''}"
            with _planted_slowdown(Path(name), slowdown), _cpu_load(arguments.load):
                config = BenchConfig(bundle, scopes=("model",), torch_modes=())
                results = list(_trials(config, arguments.trials, keep))
            verdicts = [result.comparisons[0].verdict for result in results]
            ratios = sorted(1 / result.comparisons[0].speedup.ratio for result in results)
            counts = ", ".join(
                f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts))
            )
            print(
                f"planted {slowdown:+.0%}: {counts}; measured {ratios[0]:.3f} to {ratios[-1]:.3f}, "
                f"median {median(ratios):.3f}",
                flush=True,
            )


def plain(arguments: argparse.Namespace) -> None:
    """Print the p50 of the bench and of a tight loop, measured alternately."""
    bundle = open_bundle(arguments.target)
    threads = arguments.threads or available_cores()
    file = bundle.variant_path(bundle.select_variant("fp32"))
    side = str(bundle.preprocessing.resize)
    command = [
        sys.executable,
        str(arguments.script),
        str(file),
        "--threads",
        str(threads),
        "--height",
        side,
        "--width",
        side,
    ]
    config = BenchConfig(
        arguments.target, scopes=("model",), variants=("fp32",), threads=(threads,), torch_modes=()
    )
    bench_ms: list[float] = []
    loop_ms = [_time_loop_ms(command)]
    for number in range(arguments.trials):
        keep = None if arguments.keep is None else arguments.keep / str(number)
        (result,) = _trials(config, 1, keep)
        bench_ms.append(result.rows[0].percentile_ms(50) or 0.0)
        loop_ms.append(_time_loop_ms(command))
        print(
            f"loop {loop_ms[-2]:.3f} ms, bench p50 {bench_ms[-1]:.3f} ms, "
            f"loop {loop_ms[-1]:.3f} ms",
            flush=True,
        )
    ratio = median(bench_ms) / median(loop_ms)
    print(
        f"medians: bench {median(bench_ms):.3f} ms, loop {median(loop_ms):.3f} ms, "
        f"ratio {ratio:.3f}"
    )


def _time_loop_ms(command: list[str]) -> float:
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(result.stdout.splitlines()[-1])["p50_ms"])


def _trials(config: BenchConfig, count: int, keep: Path | None) -> Iterator[BenchResult]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        for number in range(count):
            path = folder / f"{number:02}.json"
            if not path.exists():
                started = time.monotonic()
                result = bench(BenchConfig(**{**vars(config), "output": path}))
                elapsed = f"{time.monotonic() - started:.0f} s"
                print(f"trial {number + 1}: {_describe_comparison(result)}{elapsed}", flush=True)
            yield read_result(path)


def _describe_comparison(result: BenchResult) -> str:
    if not result.comparisons:
        return ""
    comparison = result.comparisons[0]
    speedup = comparison.speedup
    return f"{speedup.ratio:.3f} [{speedup.low:.3f}, {speedup.high:.3f}] {comparison.verdict}, "


def _copy_with_planted_variant(source: Path, folder: Path) -> Path:
    """Copy the bundle with its fp32 file as the only variants: fp32 and PLANTED."""
    bundle = open_bundle(source)
    shutil.copytree(bundle.directory.path, folder)
    fp32 = bundle.select_variant("fp32")
    planted_file = folder / f"{PLANTED}.onnx"
    shutil.copy(folder / fp32.file, planted_file)
    planted = replace(fp32, name=PLANTED, file=planted_file.name, sha256=sha256_file(planted_file))
    manifest = replace(bundle.manifest, variants=(fp32, planted), recommended="fp32")
    write_bundle_manifest(BundleDirectory(folder), manifest)
    return folder


@contextmanager
def _planted_slowdown(folder: Path, slowdown: float) -> Iterator[None]:
    code = _SITECUSTOMIZE.format(slowdown=slowdown, planted=PLANTED)
    (folder / "sitecustomize.py").write_text(code)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before


@contextmanager
def _cpu_load(enabled: bool) -> Iterator[None]:
    if not enabled:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20, help="number of trials [20]")
    parser.add_argument("--keep", type=Path, help="folder for the result files of the trials")
    commands = parser.add_subparsers(required=True)
    coverage_parser = commands.add_parser("coverage", help=coverage.__doc__)
    coverage_parser.add_argument("target", type=Path)
    coverage_parser.add_argument(
        "--default", action="store_true", help="both default scopes instead of model only"
    )
    coverage_parser.set_defaults(run=coverage)
    planted_parser = commands.add_parser("planted", help=planted.__doc__)
    planted_parser.add_argument("target", type=Path)
    planted_parser.add_argument("--slowdown", type=float, nargs="+", default=[0.1, 0.0])
    planted_parser.add_argument("--load", action="store_true", help="keep one core busy")
    planted_parser.set_defaults(run=planted)
    plain_parser = commands.add_parser("plain", help=plain.__doc__)
    plain_parser.add_argument("target", type=Path)
    plain_parser.add_argument("script", type=Path)
    plain_parser.add_argument("--threads", type=int)
    plain_parser.set_defaults(run=plain)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
