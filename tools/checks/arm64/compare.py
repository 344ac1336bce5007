"""Do two outputs of `edgetl predict --csv -k 1` say the same? python compare.py HERE.csv THERE.csv."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

TOLERANCE = 0.05
"""Of a probability: an int8 file's sums round otherwise on another kind of processor."""


def answers(path: str) -> dict[str, tuple[str, float]]:
    """File name to label and probability."""
    with Path(path).open(encoding="utf-8", newline="") as stream:
        return {
            Path(row["path"]).name: (row["label"], float(row["probability"]))
            for row in csv.DictReader(stream)
        }


def main() -> None:
    here, there = answers(sys.argv[1]), answers(sys.argv[2])
    if not here or here.keys() != there.keys():
        sys.exit(f"{len(here)} images were labelled on this machine, {len(there)} on the other.")
    other = [name for name in here if here[name][0] != there[name][0]]
    difference = max(abs(here[name][1] - there[name][1]) for name in here)
    print(
        f"{len(here) - len(other)} of {len(here)} labels are this machine's, probabilities within {difference:.6f}."
    )
    if other or difference > TOLERANCE:
        sys.exit(f"Not the same answers: {', '.join(other) or f'{TOLERANCE} is allowed'}.")


if __name__ == "__main__":
    main()
