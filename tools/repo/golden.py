"""Compare the artifacts of the commands between two commits; a refactoring must not change them.

    python -m tools.repo.golden record DIR     run the commands on a generated data set, in DIR
    python -m tools.repo.golden compare DIR    run them again and print the differences

`compare` exits with status 1 if there are differences.

Times, dates, host facts and versions are masked. Training is deterministic, so weights and ONNX
files are compared by hash. `record` also measures once (bench, compare); reports are rendered from
these recorded results, so pages can be compared.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgetl.cli.app import COMMANDS

MASKED_KEYS = {
    "seconds", "elapsed", "images_per_second", "created", "device", "versions", "p50_ms",
    "interval_ms", "spread", "peak_memory_bytes", "choices", "latency", "path", "paths", "host",
    "source", "data", "output", "fixed", "made_by", "run", "run_id", "timing", "milliseconds",
    "peak_rss_bytes", "memory", "ms", "fill_seconds", "folder", "recommended", "not_recommended",
    "slow_because",
}  # fmt: skip
"""JSON keys whose values depend on the machine or on time."""

CLASSES = ("circles", "stripes", "noise")
TRAINING = (
    "--model", "mobilenet_v3_small", "--weights", "builtin", "--image-size", "64",
    "--seed", "0", "--deterministic", "--device", "cpu",
    "--epochs", "2", "--finetune-epochs", "2", "--batch-size", "8",
)  # fmt: skip
"""Options of the deterministic training runs."""

MAX_LINES = 12
"""Number of lines printed per difference."""


def write_images(folder: Path) -> None:
    """Write 20 training and 8 validation images of each class, 96 pixels square."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:96, 0:96]
    for label in CLASSES:
        for split, count in (("train", 20), ("val", 8)):
            target = folder / split / label
            target.mkdir(parents=True)
            for index in range(count):
                phase = generator.uniform(0, 6.28)
                if label == "circles":
                    plane = np.sin(np.hypot(rows - 48, columns - 48) / 4 + phase)
                elif label == "stripes":
                    plane = np.sin(columns / 3 + phase)
                else:
                    plane = generator.normal(size=(96, 96))
                channels = [plane * gain for gain in generator.uniform(0.3, 1, 3)]
                colors = np.stack(channels, axis=-1) + generator.normal(0, 0.3, (96, 96, 3))
                pixels = np.uint8(np.clip(128 + 60 * colors, 0, 255))
                Image.fromarray(pixels).save(target / f"{index}.png")


def run(folder: Path, *arguments: str, cache: Path | None = None) -> str:
    """Run one command in `folder` with a separate cache and return its standard output.

    Raises:
        SystemExit: its exit status is not 0, 4 or 5.
    """
    environment = {
        **os.environ,
        "COLUMNS": "110",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "OMP_NUM_THREADS": "1",
    }
    environment["EDGETL_CACHE"] = str(cache or folder / "cache")
    result = subprocess.run(
        [sys.executable, "-m", "edgetl", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode not in (0, 4, 5):
        sys.exit(f"edgetl {' '.join(arguments)} ended with {result.returncode}:\n{result.stderr}")
    return result.stdout


def measure_once(folder: Path) -> None:
    """Create the run, bundle, result and experiment that the pages of all comparisons show."""
    write_images(folder / "data")
    run(folder, "finetune", "data", *TRAINING, "-o", "run")
    run(folder, "export", "run", "--variants", "fp32,int8", "--search", "quick")
    run(folder, "bench", "run", "--rounds", "2", "--scope", "model", "-o", "result.json")
    run(folder, "compare", "data", "--models", "mobilenet_v3_small", "--weights", "builtin",
        "--image-size", "64", "--strategies", "head,finetune", "--epochs", "2", "--no-bench",
        "-o", "experiment")  # fmt: skip


def produce(inputs: Path, work: Path) -> dict[str, str]:
    """Run every command and return its artifacts, as name to masked content or hash."""
    shutil.copytree(inputs / "data", work / "data")
    produced = {}
    for name in ("", *COMMANDS):
        produced[f"help {name}".strip()] = run(work, *([name] if name else []), "--help")
    produced["check --json"] = mask_json(run(work, "check", "data", "--json"))
    for name, extra in (("cached", ()), ("streamed", ("--cache-budget", "0"))):
        run(work, "finetune", "data", *TRAINING, *extra, "-o", name)
        produced |= artifacts(work / name, name)
    run(work, "export", "cached", "--variants", "fp32,int8", "--search", "quick")
    produced |= artifacts(work / "cached/bundle", "bundle")
    for name, source in (
        ("run", "run"),
        ("bundle", "run/bundle"),
        ("bench", "result.json"),
        ("experiment", "experiment"),
    ):
        folder = work / "pages" / name
        shutil.copytree(inputs, folder, symlinks=True, ignore=shutil.ignore_patterns("cache"))
        run(folder, "report", source, "-o", "page.html")
        produced[f"page {name}"] = (folder / "page.html").read_text(encoding="utf-8")
    return produced


def artifacts(folder: Path, name: str) -> dict[str, str]:
    """Return the files of a run directory or bundle: masked text, hashes of binary files."""
    produced = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_dir() or relative.parts[0] in ("checkpoint", "bundle", "bench"):
            continue
        if path.suffix != ".html":
            produced[f"{name}/{relative}"] = _file_content(path)
    return produced


def _file_content(path: Path) -> str:
    if path.suffix not in (".json", ".jsonl", ".md", ".csv", ".py"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text(encoding="utf-8")
    match path.suffix:
        case ".json":
            return mask_json(text)
        case ".jsonl":
            return "\n".join(mask_json(line) for line in text.splitlines())
        case ".md":
            return re.sub(r"\d[\d.,:]*", "N", text)
        case _:
            return text


def mask_json(text: str) -> str:
    """Return JSON text with the values of MASKED_KEYS replaced."""

    def mask(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: "masked" if key in MASKED_KEYS else mask(item) for key, item in value.items()
            }
        if isinstance(value, list):
            return [mask(item) for item in value]
        return value

    return json.dumps(mask(json.loads(text)), indent=1)


def differences(before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    """Yield a message for each artifact that is new, missing or different."""
    for name in sorted({*before, *after}):
        old = before.get(name)
        new = after.get(name)
        if old == new:
            continue
        if old is None or new is None:
            yield f"{name}: {'new' if old is None else 'missing'}"
            continue
        diff = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0)
        lines = [line[:160] for line in diff if not line.startswith(("---", "+++", "@@"))]
        excerpt = "\n".join(f"    {line}" for line in lines[:MAX_LINES])
        yield f"{name}: {len(lines)} lines differ\n{excerpt}"


def main() -> None:
    action, folder = sys.argv[1], Path(sys.argv[2]).absolute()
    recorded = folder / "produced.json"
    if action == "record" and not (folder / "inputs").exists():
        (folder / "inputs").mkdir(parents=True)
        measure_once(folder / "inputs")
    with tempfile.TemporaryDirectory() as work:
        produced = produce(folder / "inputs", Path(work))
    if action == "record":
        recorded.write_text(json.dumps(produced, indent=1), encoding="utf-8")
        return
    expected = json.loads(recorded.read_text(encoding="utf-8"))
    problems = list(differences(expected, produced))
    print("\n".join(problems) or f"{len(produced)} artifacts are equal")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
