"""Mutate image files and check that `edgetl check` counts or reports each of them.

    python -m tools.checks.fuzz.photo_batches PHOTOS --count 20000 --seed 0

The bytes of JPEG, PNG and WebP files are flipped, cut, repeated or overwritten with bytes typical
of headers, or two files are spliced. Each batch is a data set that a separate process checks with
limited memory and time. A crash, a hang, or a file that is neither counted nor reported is a
failure.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from edgetl.device.runtime.images import IMAGE_SUFFIXES
from tools.checks.fuzz.mutation import mutate_bytes

FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
SIDE = 160
"""Side of the images before mutation, in pixels."""
BATCH = 1000
"""Mutated files per batch."""
LIMIT_S, LIMIT_BYTES = 240, 8 << 30
"""Limits of a batch's process: time, and address space, half of which libraries use."""
_REJECTED_KINDS = ("unreadable", "bombs")
"""Kinds of findings for rejected files."""


@dataclass
class BatchCounts:
    """Results of all batches."""

    files: int = 0
    decoded: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Number of rejected files by kind of finding."""
    peak_bytes: list[int] = field(default_factory=list)
    """Peak resident memory of each batch's process."""


def encode_seed_images(photos: Path, limit: int = 40) -> dict[str, list[bytes]]:
    """Return small copies of up to `limit` photos in every format, by suffix.

    Raises:
        SystemExit: the folder has no images.
    """
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    selected = files[:: max(1, len(files) // limit)][:limit]
    if not selected:
        sys.exit(f"No images found in {photos}.")
    encoded: dict[str, list[bytes]] = {suffix: [] for suffix in FORMATS}
    for path in selected:
        with Image.open(path) as image:
            small = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE))
        for suffix, name in FORMATS.items():
            stream = io.BytesIO()
            small.save(stream, name)
            encoded[suffix].append(stream.getvalue())
    return encoded


def write_batch(folder: Path, encoded: dict[str, list[bytes]], count: int, seed: int) -> None:
    """Write `count` mutated files in two classes, with one intact image in each."""
    generator = np.random.default_rng(seed)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        intact = encoded[".png"][0 if label == "a" else -1]
        (folder / label / f"whole-{label}.png").write_bytes(intact)
    for number in range(count):
        suffix = list(FORMATS)[number % len(FORMATS)]
        originals = encoded[suffix]
        first, second = (originals[int(generator.integers(len(originals)))] for _ in range(2))
        path = folder / "ab"[number % 2] / f"{number:05d}{suffix}"
        path.write_bytes(mutate_bytes(first, second, generator))


def check_batch(folder: Path, count: int, counts: BatchCounts) -> None:
    """Run `edgetl check` on a batch in a separate process and add its results to `counts`.

    Raises:
        AssertionError: the process crashed or lost a file.
        subprocess.TimeoutExpired: the process took longer than LIMIT_S.
    """
    code = (
        "import resource, sys; from edgetl.cli.app import create_app\n"
        "try: create_app('check')(['check', sys.argv[1], '--json'], standalone_mode=False)\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)"
    )

    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))

    process = subprocess.run(
        [sys.executable, "-c", code, folder],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        preexec_fn=limit_memory,
    )
    assert process.stdout.startswith("{"), (
        f"exit status {process.returncode}: {process.stderr[-2000:]}"
    )
    report = json.loads(process.stdout)
    rejections = [finding for finding in report["findings"] if finding["kind"] in _REJECTED_KINDS]
    rejected = sum(len(finding["groups"]) for finding in rejections)
    assert report["images"] + rejected == count + 2, (
        f"{report['images']} images and {rejected} rejected of {count + 2} files"
    )
    counts.files += count
    counts.decoded += report["images"] - 2
    for finding in rejections:
        counts.reasons[finding["kind"]] += len(finding["groups"])
    counts.peak_bytes.append(int(process.stderr.splitlines()[-1]))


def fuzz(photos: Path, count: int, seed: int) -> BatchCounts:
    """Mutate and check `count` files in batches.

    Raises:
        AssertionError, subprocess.TimeoutExpired: see `check_batch`.
    """
    encoded = encode_seed_images(photos)
    counts = BatchCounts()
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        with tempfile.TemporaryDirectory(prefix="edgetl-fuzz-") as name:
            write_batch(Path(name) / "data", encoded, size, seed + start)
            check_batch(Path(name) / "data", size, counts)
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.checks.fuzz.photo_batches",
        description="Mutate images and run `edgetl check` on them.",
    )
    parser.add_argument("photos", type=Path, help="folder of images")
    parser.add_argument("--count", type=int, default=20_000, help="number of files [20,000]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations [0]")
    options = parser.parse_args(arguments)
    counts = fuzz(options.photos, options.count, options.seed)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.reasons.items())
    peaks = [peak / 2**20 for peak in counts.peak_bytes]
    print(
        f"{counts.files} files: {counts.decoded} decoded, {reasons}; no crashes, hangs or lost "
        f"files; peak memory per batch {min(peaks):.0f} to {max(peaks):.0f} MiB."
    )


if __name__ == "__main__":
    main()
