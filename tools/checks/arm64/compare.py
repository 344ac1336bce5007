"""Compare two outputs of `edgetl predict --csv -k 1`: python compare.py HOST.csv AARCH64.csv."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

TOLERANCE = 0.05
"""Tolerance of a probability; int8 kernels round differently on other processors."""


def read_predictions(path: str) -> dict[str, tuple[str, float]]:
    """Return label and probability by file name."""
    with Path(path).open(encoding="utf-8", newline="") as stream:
        return {
            Path(row["path"]).name: (row["label"], float(row["probability"]))
            for row in csv.DictReader(stream)
        }


def main() -> None:
    host = read_predictions(sys.argv[1])
    aarch64 = read_predictions(sys.argv[2])
    if not host or host.keys() != aarch64.keys():
        sys.exit(f"The images differ: {len(host)} on the host, {len(aarch64)} on aarch64.")
    different = [name for name in host if host[name][0] != aarch64[name][0]]
    difference = max(abs(host[name][1] - aarch64[name][1]) for name in host)
    print(
        f"{len(host) - len(different)} of {len(host)} labels equal the host's, "
        f"probabilities differ by up to {difference:.6f}."
    )
    if different:
        sys.exit(f"Labels differ from the host's: {', '.join(different)}.")
    if difference > TOLERANCE:
        sys.exit(f"Probabilities must differ by at most {TOLERANCE}, got {difference:.6f}.")


if __name__ == "__main__":
    main()
