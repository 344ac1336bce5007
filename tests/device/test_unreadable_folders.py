"""Folders that cannot be listed raise an error: skipping them would silently drop their images."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.errors import DataError
from edgetl.device.predict import predict
from edgetl.device.runtime.images import list_images
from edgetl.train.data.folders import find_files


@pytest.fixture
def data_folder(make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return class folders, one with an unreadable subfolder.

    The error is simulated, because root ignores file modes.
    """
    folder = make_images("data", ["cat", "dog"], count=3)
    unreadable = folder / "dog/closed"
    unreadable.mkdir()
    (unreadable / "3.png").write_bytes((folder / "dog/0.png").read_bytes())
    real_scandir = os.scandir

    def fake_scandir(path: Any = ".") -> Any:
        if Path(path) == unreadable:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real_scandir(path)

    monkeypatch.setattr(os, "scandir", fake_scandir)
    return folder


def test_find_files_names_unreadable_folder(data_folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"Cannot read the folder .*dog/closed \(Permission denied\)"
    ):
        find_files(data_folder)


def test_list_images_names_unreadable_folder(
    data_folder: Path, make_bundle: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match=r"Cannot read the folder .*dog/closed"):
        list_images(data_folder)
    *cats, dogs = predict(make_bundle(), [data_folder / "cat", data_folder / "dog"])
    assert [prediction.error for prediction in cats] == [None] * 3
    assert dogs.path == data_folder / "dog"
    assert dogs.error is not None
    assert "Cannot read the folder" in dogs.error
    assert "dog/closed" in dogs.error
