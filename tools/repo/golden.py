"""Record what the commands write, and compare it with a later commit: a refactoring must not change a byte.

    python -m tools.repo.golden record DIR     run the commands on a generated data set, in DIR
    python -m tools.repo.golden compare DIR    run them again and print the differences; exit status 1 if there are any

Times, dates, host facts and versions are masked. Training is deterministic, so weights and ONNX files are compared by hash.
`record` also measures once (bench, candidates); reports are made of these recorded results, so pages can be compared.
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

MASKED_KEYS = {
    "seconds", "elapsed", "images_per_second", "created", "device", "versions", "p50_ms", "interval_ms", "spread", "peak_memory_bytes",
    "choices", "latency",
    "path", "paths", "host", "source", "data", "output", "fixed", "made_by", "run", "run_id", "timing", "milliseconds",
    "peak_rss_bytes", "memory", "ms", "fill_seconds", "folder", "recommended", "not_recommended", "slow_because",
}  # fmt: skip
"""JSON keys whose values depend on the machine or on time."""

CLASSES = ("circles", "stripes", "noise")
HELP = (
    "",
    "check",
    "finetune",
    "compare",
    "models",
    "presets",
    "export",
    "bench",
    "report",
    "verify",
    "predict",
    "doctor",
    "demo",
)
TRAINING = (
    "--model", "mobilenet_v3_small", "--weights", "builtin", "--image-size", "64", "--seed", "0", "--deterministic", "--device", "cpu",
    "--epochs", "2", "--finetune-epochs", "2", "--batch-size", "8",
)  # fmt: skip


MAX_LINES = 12
"""Lines of each difference that are printed."""


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
                colors = np.stack(
                    [plane * gain for gain in generator.uniform(0.3, 1, 3)], axis=-1
                ) + generator.normal(0, 0.3, (96, 96, 3))
                Image.fromarray(np.uint8(np.clip(128 + 60 * colors, 0, 255))).save(
                    target / f"{index}.png"
                )


def run(folder: Path, *arguments: str, cache: Path | None = None) -> str:
    """Run one command in `folder` with a cache of its own and return its standard output."""
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
    """Make the run, bundle, results and experiment that pages are drawn of; they are kept as they are for later comparisons."""
    write_images(folder / "data")
    run(folder, "finetune", "data", *TRAINING, "-o", "run")
    run(folder, "export", "run", "--variants", "fp32,int8", "--search", "quick")
    run(folder, "bench", "run", "--rounds", "2", "--scope", "model", "-o", "result.json")
    run(folder, "compare", "data", "--models", "mobilenet_v3_small", "--weights", "builtin", "--image-size", "64", "--strategies",
        "head,finetune", "--epochs", "2", "--no-bench", "-o", "experiment")  # fmt: skip


def produce(inputs: Path, work: Path) -> dict[str, str]:
    """Run every command and return its artifacts: name to masked content or hash."""
    shutil.copytree(inputs / "data", work / "data")
    produced = {}
    for name in HELP:
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
        shutil.copytree(
            inputs, work / "pages" / name, symlinks=True, ignore=shutil.ignore_patterns("cache")
        )
        run(work / "pages" / name, "report", source, "-o", "page.html")
        produced[f"page {name}"] = (work / "pages" / name / "page.html").read_text(encoding="utf-8")
    return produced


def artifacts(folder: Path, name: str) -> dict[str, str]:
    """Return what a run directory or bundle holds: text masked, binary files as hashes."""
    produced = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_dir() or relative.parts[0] in ("checkpoint", "bundle", "bench"):
            continue
        if path.suffix == ".json":
            produced[f"{name}/{relative}"] = mask_json(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            produced[f"{name}/{relative}"] = "\n".join(
                mask_json(line) for line in path.read_text(encoding="utf-8").splitlines()
            )
        elif path.suffix == ".md":
            produced[f"{name}/{relative}"] = re.sub(
                r"\d[\d.,:]*", "N", path.read_text(encoding="utf-8")
            )
        elif path.suffix in (".csv", ".py"):
            produced[f"{name}/{relative}"] = path.read_text(encoding="utf-8")
        elif path.suffix != ".html":
            produced[f"{name}/{relative}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return produced


def mask_json(text: str) -> str:
    """Return JSON text with the values of MASKED_KEYS left out."""

    def mask(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: "masked" if key in MASKED_KEYS else mask(item) for key, item in value.items()
            }
        return [mask(item) for item in value] if isinstance(value, list) else value

    return json.dumps(mask(json.loads(text)), indent=1)


def differences(before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if old is None or new is None:
            yield f"{name}: {'new' if old is None else 'missing'}"
            continue
        diff = difflib.unified_diff(
            old.splitlines(), new.splitlines(), "recorded", "now", "", "", 0
        )
        lines = [line[:160] for line in diff if not line.startswith(("---", "+++", "@@"))]
        shown = "\n".join(f"    {line}" for line in lines[:MAX_LINES])
        yield f"{name}: {len(lines)} lines differ\n{shown}"


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
    problems = list(differences(json.loads(recorded.read_text(encoding="utf-8")), produced))
    print("\n".join(problems) or f"{len(produced)} artifacts are equal")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
