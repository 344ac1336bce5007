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
def test_read_int_returns_none_for_malformed_file(
    tmp_path: Path, content: bytes, number: int | None
) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read_int(tmp_path / "file") == number


@pytest.mark.parametrize("digits", ["9" * 30, "9" * 5000])
def test_read_int_returns_none_for_too_many_digits(tmp_path: Path, digits: str) -> None:
    (tmp_path / "file").write_text(digits)
    assert read_int(tmp_path / "file") is None


def test_unreadable_paths_are_absent(tmp_path: Path) -> None:
    assert read_text(tmp_path) is None
    assert read_text(tmp_path / "missing") is None
    assert read_text(tmp_path / ("x" * 5000)) is None
    assert not path_exists(tmp_path / ("x" * 5000))
    assert not path_exists(tmp_path / "a\0b")


@pytest.mark.parametrize(
    "line",
    ["MemTotal: 8", "MemTotal: kB 8", "MemTotal: -8 kB", "MemTotalHuge: 8 kB", "MemTotal: x kB"],
)
def test_read_size_returns_none_for_malformed_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "meminfo").write_text(line)
    assert read_size_bytes(tmp_path / "meminfo", "MemTotal") is None


def test_read_named_ints_skips_other_lines(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text(
        "usage_usec 5\nnr_throttled x\n\nthree words here\nnr_periods 7\n"
    )
    assert read_named_ints(tmp_path / "cpu.stat") == {"usage_usec": 5, "nr_periods": 7}


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "", None, "x"])
def test_to_float_returns_none_for_non_finite_text(text: str | None) -> None:
    assert to_float(text) is None
