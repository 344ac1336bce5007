"""A folder that cannot be listed is named, not passed over: its images would be missing in silence."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.errors import DataError
from edgetl.device.predict import expand_paths
from edgetl.device.runtime.images import list_images
from edgetl.train.data.folders import find_files


@pytest.fixture
def data(make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders of which one has a folder below it that cannot be read (root reads whatever its mode says)."""
    folder = make_images("data", ["cat", "dog"], count=3)
    closed = folder / "dog/closed"
    closed.mkdir()
    (closed / "3.png").write_bytes((folder / "dog/0.png").read_bytes())
    scan = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return folder


def test_training_data(data: Path) -> None:
    with pytest.raises(DataError, match=r"dog/closed cannot be read \(Permission denied\)"):
        find_files(data)


def test_images_to_label(data: Path) -> None:
    with pytest.raises(DataError, match="dog/closed cannot be read"):
        list_images(data)
    files, problems = expand_paths([str(data / "cat"), str(data / "dog")])
    assert len(files) == 3
    assert "dog/closed cannot be read" in problems[0]
