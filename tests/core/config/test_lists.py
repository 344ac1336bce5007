from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.config.options import parse_numbers, split_list
from edgetl.core.errors import ConfigError


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1))
def test_parse_numbers_keeps_order_without_duplicates(values: list[int]) -> None:
    assert parse_numbers("--batch", [", ".join(map(str, values))], int) == tuple(
        dict.fromkeys(values)
    )


@pytest.mark.parametrize("text", ["", ",", "one", "1;2", "1.5", "1,,x"])
def test_parse_numbers_rejects_other_text(text: str) -> None:
    with pytest.raises(ConfigError, match="--batch must be comma-separated numbers"):
        parse_numbers("--batch", [text], int)


def test_split_list_joins_repeated_options() -> None:
    assert split_list(["model, file", "model", " image ,"]) == ("model", "file", "image")
