"""Images of DATA: class folders, splits, runs and CSV files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.split import SplitEntry, write_split
from edgetl.core.config.evaluate import EvaluateConfig
from edgetl.core.config.split_names import SplitName
from edgetl.core.errors import ConfigError, DataError, EdgetlError
from edgetl.core.paths import RunDirectory
from edgetl.device.evaluation.images import ImageList, list_evaluated_images
from tests.helpers.runs import write_run

LABELS = ("cat", "dog", "fox")


@pytest.fixture
def touch(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that creates empty files in a folder `data`."""

    def create(*names: str) -> Path:
        for name in names:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "data"

    return create


def list_images(data: Path, **options: Any) -> ImageList:
    return list_evaluated_images(EvaluateConfig("bundle", data, **options), LABELS)


def read_rows(images: ImageList, folder: Path) -> list[tuple[str, str]]:
    """Return path relative to the folder, and class."""
    return [
        (os.path.relpath(path, folder), LABELS[label])
        for path, label in zip(images.paths, images.labels.tolist(), strict=True)
    ]


def test_class_folders_are_listed_in_order(touch: Callable[..., Path]) -> None:
    data = touch("dog/b.jpg", "dog/a.PNG", "cat/deep/x.jpg", "cat/notes.txt", "cat/._x.jpg")
    images = list_images(data)
    assert read_rows(images, data) == [
        ("cat/deep/x.jpg", "cat"),
        ("dog/a.PNG", "dog"),
        ("dog/b.jpg", "dog"),
    ]
    assert (images.split, images.description) == (None, str(data))


@pytest.mark.parametrize(
    ("folders", "requested", "split", "folder"),
    [
        (("train", "val", "test"), None, "test", "test"),
        (("train", "Validation"), None, "val", "Validation"),
        (("train", "val", "test"), "train", "train", "train"),
        (("train", "val", "testing"), "val", "val", "val"),
    ],
)
def test_split_is_selected(
    touch: Callable[..., Path], folders: tuple[str, ...], requested: Any, split: str, folder: str
) -> None:
    data = touch(*(f"{name}/cat/{name}.jpg" for name in folders))
    images = list_images(data, split=requested)
    assert images.split == split
    assert read_rows(images, data) == [(f"{folder}/cat/{folder}.jpg", "cat")]
    assert images.description == str(data / folder)


def test_class_named_as_split_is_a_class(touch: Callable[..., Path]) -> None:
    data = touch("test/a.jpg", "other/b.jpg")
    images = list_evaluated_images(EvaluateConfig("bundle", data), ("other", "test"))
    assert images.split is None
    assert images.labels.tolist() == [0, 1]


def test_other_classes_are_rejected_or_ignored(touch: Callable[..., Path]) -> None:
    data = touch("cat/a.jpg", "bird/b.jpg", "bird/c.jpg", "empty/notes.txt")
    with pytest.raises(DataError, match=r"labels: bird \(2 images\)\. The labels are: cat, dog"):
        list_images(data)
    images = list_images(data, ignore_other_classes=True)
    assert read_rows(images, data) == [("cat/a.jpg", "cat")]
    assert images.ignored_classes == {"bird": 2}


def test_groups_are_folders_below_the_class(touch: Callable[..., Path]) -> None:
    data = touch("cat/north/1/a.jpg", "cat/b.jpg", "dog/south/c.jpg")
    images = list_images(data, group_by=("1", "2"))
    assert {key: values.tolist() for key, values in images.groups.items()} == {
        "folder level 1": ["", "north", "south"],
        "folder level 2": ["", "1", ""],
    }


def test_table_lists_paths_relative_to_itself(touch: Callable[..., Path]) -> None:
    data = touch("images/a.jpg", "images/b.jpg")
    table = data / "images.csv"
    absolute = data / "images/b.jpg"
    table.write_text(
        f"label,path,site,day\ndog,images/a.jpg,north,1\ncat,{absolute},south,2\n", encoding="utf-8"
    )
    images = list_images(table, group_by=("site",))
    assert read_rows(images, data) == [("images/a.jpg", "dog"), ("images/b.jpg", "cat")]
    assert images.groups["site"].tolist() == ["north", "south"]


@pytest.mark.parametrize(
    ("content", "group_by", "message"),
    [
        ("path,class\na.jpg,cat\n", (), "must have the columns path and label, got path, class"),
        ("", (), "got none"),
        ("path,label\na.jpg,cat,1\n", (), "cannot be read as a CSV file"),
        ("path,label\na.jpg,cat\n", ("site",), "has no column 'site' for group_by"),
        ("path,label\na.jpg,cow\n", (), r"cow \(1 image\)"),
    ],
)
def test_invalid_table_is_rejected(
    tmp_path: Path, content: str, group_by: tuple[str, ...], message: str
) -> None:
    table = tmp_path / "images.csv"
    table.write_text(content, encoding="utf-8")
    with pytest.raises(EdgetlError, match=message):
        list_images(table, group_by=group_by)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["train/cat/a.jpg"], {}, "has no test or val images. Splits: train. Choose split"),
        (["val/cat/a.jpg"], {"split": "test"}, "has no test images. Splits: val"),
        (["cat/a.jpg"], {"split": "test"}, "has no test images. Splits: none"),
        (["a.jpg"], {}, "has no class folders"),
        (["cat/notes.txt"], {}, "No images of the bundle's classes"),
        (["cat/a.jpg"], {"group_by": ("site",)}, "must be a level from 1 on"),
        (["cat/a.jpg"], {"group_by": ("0",)}, "must be a level from 1 on"),
    ],
)
def test_unusable_folder_is_rejected(
    touch: Callable[..., Path], names: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EdgetlError, match=message):
        list_images(touch(*names), **options)


def test_missing_data_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found\. Give a folder with one folder of images"):
        list_images(tmp_path / "nowhere")


def write_run_with_split(tmp_path: Path, *splits: SplitName) -> RunDirectory:
    data = tmp_path / "photos"
    run = write_run(tmp_path / "run", LABELS, ((1, 0, 0), (0, 1, 0), (0, 0, 1)), data=data)
    entries = [
        SplitEntry(data / f"{split}/cat/north/{split}.jpg", "cat", split) for split in splits
    ]
    write_split(run, data, entries)
    return run


def test_run_lists_images_of_its_split(tmp_path: Path) -> None:
    run = write_run_with_split(tmp_path, "train", "val", "test")
    (tmp_path / "photos").mkdir()
    images = list_images(run.path, group_by=("1",))
    assert (images.split, images.description) == ("test", f"the run {run}, split test")
    assert images.paths == [str(tmp_path / "photos/test/cat/north/test.jpg")]
    assert images.groups["folder level 1"].tolist() == ["north"]
    images = list_images(run.path, split="train")
    assert images.paths == [str(tmp_path / "photos/train/cat/north/train.jpg")]


def test_run_without_test_images_lists_validation_images(tmp_path: Path) -> None:
    run = write_run_with_split(tmp_path, "train", "val")
    with pytest.raises(DataError, match=r"are not at .*photos\. Copy them there"):
        list_images(run.path)
    (tmp_path / "photos").mkdir()
    assert list_images(run.path).split == "val"
    with pytest.raises(ConfigError, match=r"has no test images\. Splits: train, val"):
        list_images(run.path, split="test")
