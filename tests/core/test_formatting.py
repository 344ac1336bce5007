from __future__ import annotations

import pytest

from edgetl.core.formatting import (
    format_duration,
    format_milliseconds,
    format_node_counts,
    pluralize,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0.0123, "0.012"),
        (0.9, "0.900"),
        (1, "1.00"),
        (99.99, "99.99"),
        (1234.5, "1234"),
    ],
)
def test_format_milliseconds(value: float | None, text: str) -> None:
    assert format_milliseconds(value) == text


def test_pluralize() -> None:
    assert [pluralize(count, "thread") for count in (0, 1, 2)] == [
        "0 threads",
        "1 thread",
        "2 threads",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (21.5, "22 s"),
        (99.6, "1 min 40 s"),
        (250, "4 min 10 s"),
        (3569.4, "59 min 29 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_node_counts_are_shares_with_most_nodes_first() -> None:
    counts = {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 3}
    assert format_node_counts(counts) == "CUDA 75.0%, CPU 25.0%"
    assert format_node_counts({"CPUExecutionProvider": 1.0}) == "CPU 100.0%"
