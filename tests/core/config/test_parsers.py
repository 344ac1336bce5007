from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgetl.core.config.parsers import parse_duration, parse_size, split_list
from edgetl.core.errors import ConfigError

UNITS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
counts = st.integers(0, 10**9)


@given(st.integers(0, 10**15 - 1), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_parse_size_is_exact_for_integers(count: int, unit: str, space: str) -> None:
    assert parse_size(f"{count}{space}{unit}") == count * UNITS[unit]


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(["kB", "MB", "GB", "TB"]))
@example(2, 10, "MB")
def test_parse_size_is_exact_for_decimals(integer: int, thousandths: int, unit: str) -> None:
    assert (
        parse_size(f"{integer}.{thousandths:03d}{unit}")
        == (1000 * integer + thousandths) * UNITS[unit] // 1000
    )


def test_parse_size_rounds_down() -> None:
    assert parse_size("1.5") == 1
    assert parse_size(" 1.5gib ") == 3 * 2**29


@given(counts, counts, counts)
def test_parse_duration_adds_units(hours: int, minutes: int, seconds: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == 3600 * hours + 60 * minutes + seconds
    assert parse_duration(f"{hours}h") == 3600 * hours
    assert parse_duration(f"{minutes}M") == 60 * minutes
    assert parse_duration(f"{hours}h{seconds}s") == 3600 * hours + seconds
    assert parse_duration(f" {seconds} ") == parse_duration(f"{seconds}s") == seconds


@given(
    st.integers(0, 10**6), st.integers(0, 999), st.sampled_from([("h", 3600), ("m", 60), ("s", 1)])
)
def test_parse_duration_accepts_decimals(
    integer: int, thousandths: int, unit: tuple[str, int]
) -> None:
    exact = Fraction(1000 * integer + thousandths, 1000) * unit[1]
    assert parse_duration(f"{integer}.{thousandths:03d}{unit[0]}") == float(exact)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "m",
        "1d",
        "-5m",
        "1h30",
        "30m1h",
        "1m1m",
        "1.m",
        ".5h",
        "1e3",
        "inf",
        "1h,30m",
        "5 m",
        "٣m",
        "9" * 400,
    ],
)
def test_parse_duration_rejects_other_text(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "2XB", "1,5GB", "1e9", "2GB4", "inf", "nan", "٣GB", "9" * 5000]
)
def test_parse_size_rejects_other_text(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


@given(st.text(st.sampled_from("0123456789.hmskgibt -"), max_size=12) | st.text(max_size=12))
def test_parsers_return_number_or_config_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        with suppress(ConfigError):
            assert 0 <= parse(text) < math.inf


def test_split_list_joins_repeated_options() -> None:
    assert split_list(["model, file", "model", " image ,"]) == ("model", "file", "image")
