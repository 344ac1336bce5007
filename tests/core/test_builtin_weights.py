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


def ship(place: Path, architecture: str, content: bytes = b"weights") -> Path:
    folder = place / f"{architecture}-builtin"
    folder.mkdir(parents=True)
    (folder / WEIGHTS_FILE).write_bytes(content)
    write_checksums(folder)
    return folder


@pytest.fixture
def two_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    found = tmp_path / "edgetl/_models", tmp_path / "models"
    monkeypatch.setattr(builtin, "list_search_folders", lambda: found)
    return found


def test_search_folders_of_package_and_checkout() -> None:
    installed, checkout = list_search_folders()
    assert installed.parts[-2:] == ("edgetl", "_models")
    assert (checkout.parent / "edgetl").is_dir()
    assert (checkout / "README.md").is_file()


def test_package_folder_takes_precedence(
    two_places: tuple[Path, Path],
) -> None:
    assert find_builtin_folders() == {}
    ship(two_places[1], "a_net"), ship(two_places[1], "b_net")
    inside = ship(two_places[0], "a_net", b"other")
    (two_places[1] / "c_net-builtin").mkdir()
    assert find_builtin_folders() == {"a_net": inside, "b_net": two_places[1] / "b_net-builtin"}
    assert find_builtin_weights("a_net").read_bytes() == b"other"


def test_missing_weights_name_available_ones(two_places: tuple[Path, Path]) -> None:
    with pytest.raises(
        WeightsError,
        match=r"ships no weights for b_net, for none in this version: give --weights imagenet, none, or a file",
    ):
        find_builtin_weights("b_net")
    ship(two_places[1], "a_net")
    with pytest.raises(
        WeightsError, match=r"only for a_net: choose it with --model, or give --weights imagenet"
    ):
        find_builtin_weights("b_net")


@pytest.mark.parametrize("change", ["byte", "more", "gone", "no sum"])
def test_altered_weights_are_rejected(
    two_places: tuple[Path, Path], change: str
) -> None:
    folder = ship(two_places[1], "a_net")
    file = folder / WEIGHTS_FILE
    if change == "gone":
        file.unlink()
    elif change == "no sum":
        (folder / CHECKSUMS_FILE).write_text("")
    else:
        file.write_bytes(b"weighty" if change == "byte" else b"weights!")
    with pytest.raises(WeightsError, match=r"Install edgetl again\.$"):
        find_builtin_weights("a_net")
