"""Output of the bundle's clients."""

from __future__ import annotations


def read_closest_labels(output: str) -> dict[str, tuple[str, float]]:
    """Return path to (most probable label, probability), also for images labeled unknown."""
    labels = {}
    for line in output.splitlines():
        path, label, probability, *confidence = line.split("\t")
        closest = confidence[1] if confidence else label
        labels[path] = closest, float(probability)
    return labels
