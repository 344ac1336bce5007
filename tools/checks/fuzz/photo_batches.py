"""Mutate image files and see that `edgetl check` reports every one: python -m tools.checks.fuzz.photo_batches PHOTOS --count 20000 --seed 0.

Bytes of JPEG, PNG and WebP files are flipped, cut, repeated, overwritten with what headers hold, or two files are spliced. A batch of them
is a data set that a process of its own looks through, with a limit on its memory and its time: a crash, a hang, a file that is neither
counted nor reported, or memory that grows, fails.
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
"""Of the pictures that are mutated, pixels."""
BATCH = 1000
LIMIT_S, LIMIT_BYTES = 240, 8 << 30
"""Of a process that looks through a batch: its time, and its address space, of which libraries take half."""


@dataclass
class Outcome:
    """Outcomes of the files."""

    files: int = 0
    decoded: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """First words of why a file was rejected."""
    peak_bytes: list[int] = field(default_factory=list)
    """Resident memory of each batch's process."""


def seeds_of(photos: Path, most: int = 40) -> dict[str, list[bytes]]:
    """Small copies of photos in every format, by suffix."""
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    chosen = files[:: max(1, len(files) // most)][:most]
    if not chosen:
        sys.exit(f"No images in {photos}.")
    encoded: dict[str, list[bytes]] = {suffix: [] for suffix in FORMATS}
    for path in chosen:
        with Image.open(path) as image:
            small = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE))
        for suffix, name in FORMATS.items():
            stream = io.BytesIO()
            small.save(stream, name)
            encoded[suffix].append(stream.getvalue())
    return encoded


def write_batch(folder: Path, encoded: dict[str, list[bytes]], count: int, seed: int) -> None:
    """So many mutated files, in two classes that have one whole picture each."""
    generator = np.random.default_rng(seed)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        (folder / label / f"whole-{label}.png").write_bytes(
            encoded[".png"][0 if label == "a" else -1]
        )
    for number in range(count):
        suffix = list(FORMATS)[number % len(FORMATS)]
        of_format = encoded[suffix]
        first, second = (of_format[int(generator.integers(len(of_format)))] for _ in range(2))
        (folder / "ab"[number % 2] / f"{number:05d}{suffix}").write_bytes(
            mutate_bytes(first, second, generator)
        )


def look_through(folder: Path, count: int, outcome: Outcome) -> None:
    """Check a batch in a process of its own.

    Raises:
        AssertionError: it crashed, hung, or lost a file.
    """
    code = (
        "import resource, sys; from edgetl.cli.app import create_app\n"
        "try: create_app('check')(['check', sys.argv[1], '--json'], standalone_mode=False)\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)"
    )

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))

    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        preexec_fn=limited,
    )
    assert done.stdout.startswith("{"), f"status {done.returncode}: {done.stderr[-2000:]}"
    found = json.loads(done.stdout)
    rejected = sum(
        len(finding["groups"])
        for finding in found["findings"]
        if finding["kind"] in ("unreadable", "bombs")
    )
    assert found["images"] + rejected == count + 2, (
        f"{found['images']} images and {rejected} rejected of {count + 2} files"
    )
    outcome.files += count
    outcome.decoded += found["images"] - 2
    for finding in found["findings"]:
        if finding["kind"] in ("unreadable", "bombs"):
            outcome.reasons[finding["kind"]] += len(finding["groups"])
    outcome.peak_bytes.append(int(done.stderr.splitlines()[-1]))


def fuzz(photos: Path, count: int, seed: int) -> Outcome:
    """Mutate and look through, batch by batch.

    Raises:
        AssertionError, subprocess.TimeoutExpired: see `look_through`.
    """
    encoded, outcome = seeds_of(photos), Outcome()
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        with tempfile.TemporaryDirectory(prefix="edgetl-fuzz-") as name:
            write_batch(Path(name) / "data", encoded, size, seed + start)
            look_through(Path(name) / "data", size, outcome)
    return outcome


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.checks.fuzz.photo_batches",
        description="Mutated images through `edgetl check`.",
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    outcome = fuzz(given.photos, given.count, given.seed)
    told = ", ".join(f"{count} {reason}" for reason, count in outcome.reasons.items())
    memory = f"{min(outcome.peak_bytes) / 2**20:.0f} to {max(outcome.peak_bytes) / 2**20:.0f} MiB"
    print(
        f"{outcome.files} files: {outcome.decoded} still decode, {told}; no crash, no hang, none lost; memory {memory} a batch."
    )


if __name__ == "__main__":
    main()
