"""Is `edgetl bench` to be trusted? Trials whose truth is known.

    python -m tools.benchmarks.bench_coverage coverage RUN          the same pair again and again: does the interval hold the median of all?
    python -m tools.benchmarks.bench_coverage planted BUNDLE        a slowdown of 10% and one of 0%: is the first found and the second not?
    python -m tools.benchmarks.bench_coverage planted BUNDLE --load the same beside a process that keeps a core busy: does the verdict say noisy?
    python -m tools.benchmarks.bench_coverage plain BUNDLE SCRIPT   p50 against a tight loop (`SCRIPT FILE.onnx --threads N`, JSON on its last line)

Every trial is kept as a result file in --keep; a folder that holds trials already is gone on with.
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
from pathlib import Path
from statistics import median

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_json import read_bench_result
from edgetl.core.config.bench import BenchConfig, BenchScope
from edgetl.core.files import read_json, sha256_file, write_json
from edgetl.device.bench.runner import bench
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.bundle import open_bundle

PLANTED = "planted"
# Read by every worker when it starts: the planted variant's calls take longer by exactly this share, whatever the machine does meanwhile.
_SLOWED = """
from time import perf_counter_ns
from edgetl.device.bench.ort_backend import OnnxRuntimeBackend
infer = OnnxRuntimeBackend.infer
def slowed(self, batch):
    start = perf_counter_ns()
    answer = infer(self, batch)
    end = perf_counter_ns()
    stop = end + int((end - start) * ({slowdown!r} if self._source.model.stem == {planted!r} else 0.0))
    while perf_counter_ns() < stop:
        pass
    return answer
OnnxRuntimeBackend.infer = slowed
"""


def coverage(arguments: argparse.Namespace) -> None:
    scopes: tuple[BenchScope, ...] = ("model", "file") if arguments.default else ("model",)
    config = BenchConfig(arguments.target, scopes=scopes, variants=("fp32",))
    results = list(_trials(config, arguments.trials, arguments.keep))
    speedups = [result.comparisons[0].speedup for result in results]
    middle = median(speedup.ratio for speedup in speedups)
    held = sum(speedup.low <= middle <= speedup.high for speedup in speedups)
    widths = sorted((speedup.high - speedup.low) / 2 / speedup.ratio for speedup in speedups)
    print(
        f"median of {len(speedups)} speed-ups {middle:.3f} ({min(s.ratio for s in speedups):.3f} to {max(s.ratio for s in speedups):.3f})"
    )
    print(
        f"the interval held it {held} of {len(speedups)} times; half-widths {widths[0]:.1%}, median {median(widths):.1%}, {widths[-1]:.1%}"
    )
    print(f"noisy by their own account: {sum(result.noise.is_noisy for result in results)}")


def planted(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        bundle = _with_a_twin(arguments.target, Path(name) / "bundle")
        for slowdown in arguments.slowdown:
            keep = (
                None
                if arguments.keep is None
                else arguments.keep / f"{slowdown:g}{'-load' if arguments.load else ''}"
            )
            with _slowed(Path(name), slowdown), _load(arguments.load):
                config = BenchConfig(bundle, scopes=("model",), torch_modes=())
                results = list(_trials(config, arguments.trials, keep))
            verdicts = [result.comparisons[0].verdict for result in results]
            ratios = sorted(1 / result.comparisons[0].speedup.ratio for result in results)
            told = ", ".join(
                f"{verdicts.count(word)} {word}" for word in dict.fromkeys(sorted(verdicts))
            )
            print(
                f"planted {slowdown:+.0%}: {told}; measured {ratios[0]:.3f} to {ratios[-1]:.3f}, median {median(ratios):.3f}",
                flush=True,
            )


def plain(arguments: argparse.Namespace) -> None:
    bundle, threads = open_bundle(arguments.target), arguments.threads or available_cores()
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
    benched, loops = [], [_loop_ms(command)]
    for number in range(arguments.trials):
        (result,) = _trials(
            config, 1, None if arguments.keep is None else arguments.keep / str(number)
        )
        benched.append(result.rows[0].percentile_ms(50) or 0.0)
        loops.append(_loop_ms(command))
        print(
            f"loop {loops[-2]:.3f} ms, bench p50 {benched[-1]:.3f} ms, loop {loops[-1]:.3f} ms",
            flush=True,
        )
    print(
        f"medians: bench {median(benched):.3f} ms, loop {median(loops):.3f} ms, ratio {median(benched) / median(loops):.3f}"
    )


def _loop_ms(command: list[str]) -> float:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["p50_ms"])


def _trials(config: BenchConfig, count: int, keep: Path | None) -> Iterator[BenchResult]:
    with tempfile.TemporaryDirectory() as spare:
        folder = keep or Path(spare)
        for number in range(count):
            path = folder / f"{number:02}.json"
            if not path.exists():
                started = time.monotonic()
                result = bench(BenchConfig(**{**vars(config), "output": path}))
                pair = result.comparisons[0].speedup if result.comparisons else None
                told = (
                    ""
                    if pair is None
                    else f"{pair.ratio:.3f} [{pair.low:.3f}, {pair.high:.3f}] {result.comparisons[0].verdict}, "
                )
                print(f"trial {number + 1}: {told}{time.monotonic() - started:.0f} s", flush=True)
            yield read_bench_result(path)


def _with_a_twin(source: Path, folder: Path) -> Path:
    """A copy of the bundle with one file twice: once as fp32, once under the name that is slowed down."""
    bundle = open_bundle(source)
    shutil.copytree(bundle.directory.path, folder)
    manifest = read_json(folder / "bundle.json", ValueError, "The manifest")
    entry = next(entry for entry in manifest["variants"] if entry["name"] == "fp32")
    shutil.copy(folder / entry["file"], folder / f"{PLANTED}.onnx")
    twin = {
        **entry,
        "name": PLANTED,
        "file": f"{PLANTED}.onnx",
        "sha256": sha256_file(folder / f"{PLANTED}.onnx"),
    }
    write_json(folder / "bundle.json", {**manifest, "variants": [entry, twin]})
    return folder


@contextmanager
def _slowed(folder: Path, slowdown: float) -> Iterator[None]:
    (folder / "sitecustomize.py").write_text(_SLOWED.format(slowdown=slowdown, planted=PLANTED))
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before


@contextmanager
def _load(wanted: bool) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="folder of the trials' result files")
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("coverage")
    one.add_argument("target", type=Path)
    one.add_argument("--default", action="store_true", help="both default scopes, not model alone")
    one.set_defaults(run=coverage)
    two = kinds.add_parser("planted")
    two.add_argument("target", type=Path)
    two.add_argument("--slowdown", type=float, nargs="+", default=[0.1, 0.0])
    two.add_argument("--load", action="store_true", help="keep one core busy meanwhile")
    two.set_defaults(run=planted)
    three = kinds.add_parser("plain")
    three.add_argument("target", type=Path)
    three.add_argument("script", type=Path)
    three.add_argument("--threads", type=int)
    three.set_defaults(run=plain)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
