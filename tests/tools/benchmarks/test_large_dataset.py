"""Large generated data set: number of images, distinct images, equal files for equal seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.core.files import sha256_file
from edgetl.device.runtime.images import load_image
from tools.benchmarks.large_dataset import appearances, main, write_set


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*.jpg")
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "set"
    main([str(folder), "--images", "200", "--size", "48"])
    return folder


def test_every_class_has_its_share_of_decodable_images(dataset: Path) -> None:
    counts = {
        split: {folder.name: len(list(folder.iterdir())) for folder in (dataset / split).iterdir()}
        for split in ("train", "val")
    }
    names = [appearance.name for appearance in appearances(10)]
    assert len(set(names)) == 10
    assert counts == {"train": dict.fromkeys(names, 19), "val": dict.fromkeys(names, 1)}
    assert {load_image(path).shape for path in dataset.rglob("*.jpg")} == {(48, 48, 3)}


def test_all_images_differ(dataset: Path) -> None:
    hashes = file_hashes(dataset).values()
    assert len(set(hashes)) == len(hashes) == 200


def test_files_depend_on_seed_but_not_on_workers(dataset: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "same", 200, size=48, workers=1)
    write_set(tmp_path / "other", 200, size=48, seed=1, workers=1)
    same = file_hashes(tmp_path / "same")
    other = file_hashes(tmp_path / "other")
    assert same == file_hashes(dataset)
    assert same.keys() == other.keys()
    assert not set(same.values()) & set(other.values())


def test_all_images_are_written_when_classes_are_unequal(tmp_path: Path) -> None:
    write_set(tmp_path / "set", 335, classes=3, size=16, workers=1)
    assert len(set(file_hashes(tmp_path / "set").values())) == 335
    assert [
        len(list((tmp_path / "set/val" / appearance.name).iterdir()))
        for appearance in appearances(3)
    ] == [2, 2, 2]


def test_progress_is_printed_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "set", 20, classes=2, size=16, workers=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "20 of 20 images" in captured.err


def test_nonempty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(SystemExit, match="not an empty folder"):
        main([str(tmp_path), "--images", "20"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "options",
    [["--images", "19"], ["--images", "20", "--classes", "1"], ["--images", "20", "--size", "4"]],
)
def test_out_of_range_options_are_refused(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit, match="--classes must be >= 2"):
        main([str(tmp_path / "set"), *options])
    assert not (tmp_path / "set").exists()
