"""The large generated set: as many images as asked, all different, the same at every call."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.core.files import sha256_file
from edgetl.device.runtime.images import load_image
from tools.benchmarks.large_dataset import appearances, main, write_set


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*.jpg")
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "set"
    main([str(folder), "--images", "200", "--size", "48"])
    return folder


def test_as_many_as_asked_in_every_class_and_all_decodable(made: Path) -> None:
    counts = {
        split: {folder.name: len(list(folder.iterdir())) for folder in (made / split).iterdir()}
        for split in ("train", "val")
    }
    names = [appearance.name for appearance in appearances(10)]
    assert len(set(names)) == 10
    assert counts == {"train": dict.fromkeys(names, 19), "val": dict.fromkeys(names, 1)}
    assert {load_image(path).shape for path in made.rglob("*.jpg")} == {(48, 48, 3)}


def test_all_images_differ(made: Path) -> None:
    hashes = contents(made).values()
    assert len(set(hashes)) == len(hashes) == 200


def test_equal_seeds_give_equal_files_whatever_the_processes(made: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "same", 200, size=48, workers=1)
    write_set(tmp_path / "other", 200, size=48, seed=1, workers=1)
    same, other = contents(tmp_path / "same"), contents(tmp_path / "other")
    assert same == contents(made)
    assert same.keys() == other.keys()
    assert not set(same.values()) & set(other.values())


def test_images_that_do_not_divide_into_classes_and_chunks_are_all_written(tmp_path: Path) -> None:
    write_set(tmp_path / "set", 335, classes=3, size=16, workers=1)
    assert len(set(contents(tmp_path / "set").values())) == 335
    assert [
        len(list((tmp_path / "set/val" / appearance.name).iterdir()))
        for appearance in appearances(3)
    ] == [2, 2, 2]


def test_progress_is_told_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "set", 20, classes=2, size=16, workers=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "20 of 20 images" in captured.err


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not an empty folder"):
        main([str(tmp_path), "--images", "20"])
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    "wrong",
    [["--images", "19"], ["--images", "20", "--classes", "1"], ["--images", "20", "--size", "4"]],
)
def test_a_set_that_cannot_be_made_is_refused(tmp_path: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="A set needs"):
        main([str(tmp_path / "set"), *wrong])
    assert not (tmp_path / "set").exists()
