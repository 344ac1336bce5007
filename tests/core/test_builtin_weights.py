from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.core import builtin_weights as builtin
from edgetl.core.builtin_weights import (
    CHECKSUMS_FILE,
    WEIGHTS_FILE,
    find_builtin_folders,
    find_builtin_weights,
    list_search_folders,
    write_checksums,
)
from edgetl.core.errors import WeightsError


def make_backbone(parent: Path, architecture: str, content: bytes = b"weights") -> Path:
    folder = parent / f"{architecture}-builtin"
    folder.mkdir(parents=True)
    (folder / WEIGHTS_FILE).write_bytes(content)
    write_checksums(folder)
    return folder


@pytest.fixture
def search_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    folders = tmp_path / "edgetl/_models", tmp_path / "models"
    monkeypatch.setattr(builtin, "list_search_folders", lambda: folders)
    return folders


def test_search_folders_of_package_and_checkout() -> None:
    installed, checkout = list_search_folders()
    assert installed.parts[-2:] == ("edgetl", "_models")
    assert (checkout.parent / "edgetl").is_dir()
    assert (checkout / "README.md").is_file()


def test_package_folder_takes_precedence(
    search_folders: tuple[Path, Path],
) -> None:
    assert find_builtin_folders() == {}
    make_backbone(search_folders[1], "a_net")
    make_backbone(search_folders[1], "b_net")
    packaged = make_backbone(search_folders[0], "a_net", b"other")
    (search_folders[1] / "c_net-builtin").mkdir()
    assert find_builtin_folders() == {
        "a_net": packaged,
        "b_net": search_folders[1] / "b_net-builtin",
    }
    assert find_builtin_weights("a_net").read_bytes() == b"other"


def test_missing_weights_name_available_ones(search_folders: tuple[Path, Path]) -> None:
    with pytest.raises(
        WeightsError,
        match=r"ships no weights for b_net\. Use weights auto, none, or a file\.$",
    ):
        find_builtin_weights("b_net")
    make_backbone(search_folders[1], "a_net")
    with pytest.raises(WeightsError, match=r"Use weights auto, none, or a file, or model a_net\.$"):
        find_builtin_weights("b_net")


@pytest.mark.parametrize("change", ["changed byte", "added byte", "no file", "no checksum"])
def test_altered_weights_are_rejected(search_folders: tuple[Path, Path], change: str) -> None:
    folder = make_backbone(search_folders[1], "a_net")
    file = folder / WEIGHTS_FILE
    if change == "no file":
        file.unlink()
    elif change == "no checksum":
        (folder / CHECKSUMS_FILE).write_text("")
    else:
        file.write_bytes(b"weighty" if change == "changed byte" else b"weights!")
    with pytest.raises(WeightsError, match=r"Install edgetl again\.$"):
        find_builtin_weights("a_net")
