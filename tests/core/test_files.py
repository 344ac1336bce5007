"""Strict parsing of JSON from regular files of limited size."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgetl.core.errors import RunError
from edgetl.core.files import parse_json, read_json, read_regular_file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 1, "x": NaN}', "NaN is not a JSON number"),
        ('{"schema": 1, "x": -Infinity}', "-Infinity is not a JSON number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"schema": 1, "x": "\\ud800"}', "surrogates not allowed"),
        (b'{"schema": 1, "x": "\xff"}', "invalid start byte"),
        ('{"schema": 1, "x": ' + "9" * 5000 + "}", "digits"),
        ("", "Expecting value"),
    ],
    ids=["nan", "infinity", "deep", "unpaired surrogate", "latin-1", "too many digits", "empty"],
)
def test_invalid_json_is_rejected(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match=message):
        read_json(path, RunError, "The configuration")


def test_surrogate_pair_is_accepted() -> None:
    assert parse_json('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
    assert parse_json(json.dumps("\\ud800")) == "\\ud800"


def test_named_pipe_is_rejected_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(RunError, match="not a regular file"):
        read_json(tmp_path / "config.json", RunError, "The configuration")


def test_read_regular_file_enforces_size_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(11))
    assert read_regular_file(tmp_path / "x", 11) == bytes(11)
    with pytest.raises(OSError, match="more than"):
        read_regular_file(tmp_path / "x", 10)
