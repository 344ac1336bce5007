from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.device.hardware.procfs import (
    path_exists,
    read_int,
    read_named_ints,
    read_size_bytes,
    read_text,
    to_float,
)


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"12\n", 12),
        (b"-256000\n", -256_000),
        (b"18446744073709551615", 2**64 - 1),
        (b"1.5", None),
        (b"", None),
        (b"\xff", None),
    ],
)
def test_a_number_or_nothing(tmp_path: Path, content: bytes, number: int | None) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read_int(tmp_path / "file") == number


@pytest.mark.parametrize("digits", ["9" * 30, "9" * 5000])
def test_no_counter_is_that_wide(tmp_path: Path, digits: str) -> None:
    (tmp_path / "file").write_text(digits)
    assert read_int(tmp_path / "file") is None


def test_what_cannot_be_read_is_absent(tmp_path: Path) -> None:
    assert read_text(tmp_path) is None
    assert read_text(tmp_path / "missing") is None
    assert read_text(tmp_path / ("x" * 5000)) is None
    assert not path_exists(tmp_path / ("x" * 5000))
    assert not path_exists(tmp_path / "a\0b")


@pytest.mark.parametrize(
    "line",
    ["MemTotal: 8", "MemTotal: kB 8", "MemTotal: -8 kB", "MemTotalHuge: 8 kB", "MemTotal: x kB"],
)
def test_an_amount_needs_its_unit(tmp_path: Path, line: str) -> None:
    (tmp_path / "meminfo").write_text(line)
    assert read_size_bytes(tmp_path / "meminfo", "MemTotal") is None


def test_lines_that_are_no_pairs_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text(
        "usage_usec 5\nnr_throttled x\n\nthree words here\nnr_periods 7\n"
    )
    assert read_named_ints(tmp_path / "cpu.stat") == {"usage_usec": 5, "nr_periods": 7}


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "", None, "x"])
def test_only_finite_numbers(text: str | None) -> None:
    assert to_float(text) is None
