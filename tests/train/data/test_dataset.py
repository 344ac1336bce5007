from __future__ import annotations

import csv
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.core.artifacts.split import SplitEntry, write_split
from edgetl.core.errors import DataError, RunError
from edgetl.core.paths import RunDirectory
from edgetl.train.data.dataset import SplitDataset, read_dataset
from edgetl.train.data.folders import RejectedFile, find_files
from edgetl.train.data.splits import write_rejected
from tests.helpers.runs import write_run
from tests.helpers.trained_runs import read_entries

MakeImages = Callable[..., Path]


def read(
    data: Path,
    val_split: float = 0.2,
    seed: int = 0,
    allow_leaks: bool = False,
    test_split: float = 0.0,
) -> SplitDataset:
    return read_dataset(data, val_split, test_split, seed, allow_leaks=allow_leaks)


def splits_by_path(data: SplitDataset) -> dict[str, str]:
    return {entry.path.relative_to(data.folder).as_posix(): entry.split for entry in data.entries}


def test_class_folders_are_split_per_class(make_images: MakeImages) -> None:
    data = read(make_images("data", ["b", "a"], count=10))
    assert data.labels == ["a", "b"]
    assert Counter((entry.label, entry.split) for entry in data.entries) == {
        ("a", "train"): 8,
        ("a", "val"): 2,
        ("b", "train"): 8,
        ("b", "val"): 2,
    }
    assert all(entry.path.is_absolute() for entry in data.entries)
    assert data.warnings == []


def test_split_depends_only_on_seed_and_pixels(make_images: MakeImages, tmp_path: Path) -> None:
    first = make_images("data", ["a", "b"], count=20)
    split = splits_by_path(read(first))
    assert splits_by_path(read(first)) == split
    assert splits_by_path(read(first, seed=1)) != split
    # The same images in another order, under other names: every image is in the same split.
    copy = tmp_path / "copy"
    files = sorted(first.rglob("*.png"))
    random.Random(3).shuffle(files)
    for number, file in enumerate(files):
        target = copy / file.parent.name / f"{number:03}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    renamed = {
        f"{file.parent.name}/{number:03}.png": split[f"{file.parent.name}/{file.name}"]
        for number, file in enumerate(files)
    }
    assert splits_by_path(read(copy)) == renamed


def test_exact_duplicates_are_in_one_split(make_images: MakeImages) -> None:
    folder = make_images("data", ["a", "b"], count=10)
    for original in list(folder.rglob("*.png")):
        # The same pixels in another file format under another name.
        Image.open(original).save(original.with_name(f"copy of {original.stem}.bmp"))
    for seed in range(5):
        splits = splits_by_path(read(folder, seed=seed))
        assert all(
            splits[name] == splits[str(Path(name).with_name(f"copy of {Path(name).stem}.bmp"))]
            for name in splits
            if name.endswith(".png")
        )
        assert sum(split == "val" for split in splits.values()) == 8


def test_contradictory_labels_stay_in_train_with_warning(make_images: MakeImages) -> None:
    folder = make_images("data", ["a", "b"], count=10)
    shutil.copy(folder / "a/0.png", folder / "b/same.png")
    for seed in range(6):
        data = read(folder, seed=seed)
        assert splits_by_path(data)["a/0.png"] == splits_by_path(data)["b/same.png"] == "train"
    assert any(
        "more than one label" in text and "a/0.png and b/same.png" in text for text in data.warnings
    )


def test_class_of_one_image_stays_in_train_with_warning(make_images: MakeImages) -> None:
    folder = make_images("data", ["a", "b"], count=5)
    for extra in list((folder / "b").iterdir())[1:]:
        extra.unlink()
    data = read(folder)
    assert {entry.split for entry in data.entries if entry.label == "b"} == {"train"}
    assert any(text.startswith("b: too few distinct images") for text in data.warnings)


def test_class_of_two_images_has_one_in_val(make_images: MakeImages) -> None:
    assert Counter(splits_by_path(read(make_images("data", ["a", "b"], count=2))).values()) == {
        "train": 2,
        "val": 2,
    }


def test_val_split_0_has_no_validation_images(make_images: MakeImages) -> None:
    data = read(make_images("data", ["a", "b"]), val_split=0)
    assert data.entries_in("val") == []
    assert data.warnings == []


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_predefined_split_is_used(make_images: MakeImages, tmp_path: Path, name: str) -> None:
    make_images("data/train", ["a", "b"], count=4)
    make_images(f"data/{name}", ["a", "b"], count=3, seed=1)
    data = read(tmp_path / "data")
    assert Counter(entry.split for entry in data.entries) == {"train": 8, "val": 6}
    assert all(
        entry.path.relative_to(data.folder).parts[0].lower() in ("train", name.lower())
        for entry in data.entries
    )


def test_train_folder_without_val_is_split(make_images: MakeImages) -> None:
    data = read(make_images("data/train", ["a", "b"], count=10).parent)
    assert Counter(entry.split for entry in data.entries) == {"train": 16, "val": 4}
    assert data.labels == ["a", "b"]


def test_class_may_be_named_train(make_images: MakeImages) -> None:
    assert read(make_images("data", ["car", "train"])).labels == ["car", "train"]


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("train", "Testing"), ("Training", "Testing")]
)
def test_test_folder_leaves_the_other_splits_unchanged(
    make_images: MakeImages, tmp_path: Path, train: str, test: str
) -> None:
    make_images(f"data/{train}", ["a", "b"], count=10)
    before = splits_by_path(read(make_images("plain/train", ["a", "b"], count=10).parent))
    make_images(f"data/{test}", ["a", "b"], count=3, seed=1)
    data = read(tmp_path / "data")
    assert Counter(entry.split for entry in data.entries) == {"train": 16, "val": 4, "test": 6}
    others = {
        path.replace(train, "train"): split
        for path, split in splits_by_path(data).items()
        if not path.startswith(test)
    }
    assert others == before
    assert data.warnings == []
    assert data.summarize().counts["test"] == {"a": 3, "b": 3}


def test_test_folder_beside_val_is_used(make_images: MakeImages, tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "val", "test")):
        make_images(f"data/{name}", ["a", "b"], count=4, seed=seed)
    splits = splits_by_path(read(tmp_path / "data"))
    assert Counter(splits.values()) == {"train": 8, "val": 8, "test": 8}
    assert all(path.startswith(split) for path, split in splits.items())
    ignored = read(tmp_path / "data", val_split=0)
    assert Counter(entry.split for entry in ignored.entries) == {"train": 8, "test": 8}


@pytest.mark.parametrize(
    ("folders", "reason"),
    [(["elsewhere"], "none of its folders is a class of train/"), ([], "it has no class folders")],
)
def test_test_folder_without_classes_is_not_used(
    make_images: MakeImages, tmp_path: Path, folders: list[str], reason: str
) -> None:
    make_images("data/train", ["a", "b"], count=5)
    unlabeled = make_images("data/test", folders, seed=1)
    unlabeled.mkdir(exist_ok=True)
    Image.new("RGB", (9, 9)).save(unlabeled / "1.png")
    data = read(tmp_path / "data")
    assert data.entries_in("test") == []
    assert data.rejected == []
    assert data.warnings == [f"test/ is not used: {reason}."]
    assert "test" not in data.summarize().counts


def test_test_folder_of_other_classes_raises(make_images: MakeImages, tmp_path: Path) -> None:
    make_images("data/train", ["a", "b"], count=5)
    make_images("data/test", ["a", "c"], seed=1)
    with pytest.raises(DataError, match=r"test has folders that are no classes of .*train: c\."):
        read(tmp_path / "data")


def test_class_missing_in_test_is_a_warning(make_images: MakeImages, tmp_path: Path) -> None:
    make_images("data/train", ["a", "b", "c", "d"], count=5)
    make_images("data/test", ["a", "c"], count=2, seed=1)
    for file in (tmp_path / "data/test/c").iterdir():
        file.write_bytes(b"")
    (tmp_path / "data/test/d").mkdir()
    data = read(tmp_path / "data")
    assert Counter(entry.label for entry in data.entries_in("test")) == {"a": 2}
    assert any(text.startswith("b, c, d: no test images") for text in data.warnings)


def test_class_may_be_named_test(make_images: MakeImages) -> None:
    folder = make_images("data", ["car", "test"])
    (folder / "test/day 1").mkdir()
    shutil.move(folder / "test/0.png", folder / "test/day 1/0.png")
    assert read(folder).labels == ["car", "test"]


def test_test_folder_beside_classes_raises(make_images: MakeImages) -> None:
    make_images("data/test", ["a"])
    with pytest.raises(DataError, match="has test/ but no train/ with class folders"):
        read(make_images("data", ["a", "b"]))


def test_test_split_leaves_validation_images_unchanged(make_images: MakeImages) -> None:
    folder = make_images("data", ["a", "b"], count=20)
    before = splits_by_path(read(folder))
    after = splits_by_path(read(folder, test_split=0.25))
    assert Counter(after.values()) == {"train": 22, "val": 8, "test": 10}
    assert Counter((path[0], split) for path, split in after.items())["a", "test"] == 5
    assert {path for path in before if before[path] == "val"} == {
        path for path in after if after[path] == "val"
    }
    assert splits_by_path(read(folder, test_split=0.25, seed=1)) != after


@pytest.mark.parametrize("val_split", [0, 0.2, 0.6])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_small_classes_are_in_as_many_splits_as_possible(
    make_images: MakeImages, val_split: float, count: int
) -> None:
    data = read(make_images("data", ["a", "b"], count=count), val_split, test_split=0.3)
    order = ["train", "val", "test"] if val_split else ["train", "test"]
    for label in ("a", "b"):
        splits = {entry.split for entry in data.entries if entry.label == label}
        assert splits == set(order[:count])


def test_test_split_divides_train_beside_val(make_images: MakeImages, tmp_path: Path) -> None:
    make_images("data/train", ["a", "b"], count=10)
    make_images("data/val", ["a", "b"], count=4, seed=1)
    splits = splits_by_path(read(tmp_path / "data", test_split=0.3))
    assert Counter(splits.values()) == {"train": 14, "val": 8, "test": 6}
    assert all(path.startswith("val") == (split == "val") for path, split in splits.items())


def test_test_split_beside_test_folder_is_a_warning(
    make_images: MakeImages, tmp_path: Path
) -> None:
    make_images("data/train", ["a", "b"], count=10)
    make_images("data/test", ["a", "b"], count=4, seed=1)
    data = read(tmp_path / "data", test_split=0.3)
    assert len(data.entries_in("test")) == 8
    assert any("--test-split has no effect" in text for text in data.warnings)


def test_duplicates_are_in_one_of_three_splits(make_images: MakeImages) -> None:
    folder = make_images("data", ["a", "b"], count=12)
    for original in list(folder.rglob("*.png")):
        Image.open(original).save(original.with_suffix(".bmp"))
    for seed in range(5):
        splits = splits_by_path(read(folder, seed=seed, test_split=0.25))
        assert Counter(splits.values()) == {"train": 28, "val": 8, "test": 12}
        assert all(
            splits[name] == splits[f"{name[:-3]}bmp"] for name in splits if name.endswith(".png")
        )


def test_leaks_raise_unless_allowed(make_images: MakeImages) -> None:
    make_images("data/train", ["a", "b"], count=4)
    folder = make_images("data/val", ["a", "b"], count=3, seed=1).parent
    shutil.copy(folder / "train/a/0.png", folder / "val/a/leak.png")
    with pytest.raises(
        DataError, match=r"train/a/0\.png and val/a/leak\.png.*use allow_leaks=True"
    ):
        read(folder)
    warnings = read(folder, allow_leaks=True).warnings
    assert any(
        "in both train and val" in text and "train/a/0.png and val/a/leak.png" in text
        for text in warnings
    )


@pytest.mark.parametrize(
    ("source", "targets", "message"),
    [
        ("train/a/0.png", ["test/a/x.png"], "in both train and test, .*: test accuracy is"),
        ("val/a/0.png", ["test/a/x.png"], "in both val and test, .*: test accuracy is"),
        (
            "train/a/0.png",
            ["val/a/x.png", "test/a/x.png"],
            "in train, val and test, .*: validation and test accuracy are",
        ),
    ],
)
def test_leaks_into_test_raise_unless_allowed(
    make_images: MakeImages, tmp_path: Path, source: str, targets: list[str], message: str
) -> None:
    folder = tmp_path / "data"
    for seed, name in enumerate(("train", "val", "test")):
        make_images(f"data/{name}", ["a", "b"], count=4, seed=seed)
    for target in targets:
        shutil.copy(folder / source, folder / target)
    with pytest.raises(DataError, match=rf"1 image is {message}.*use allow_leaks=True"):
        read(folder)
    (warning,) = read(folder, allow_leaks=True).warnings
    assert f"{source} and {targets[0]}" in warning


def test_find_files_follows_nested_folders_without_loops(make_images: MakeImages) -> None:
    folder = make_images("data", ["a", "b"], count=3)
    (folder / "a/day 1/left").mkdir(parents=True)
    shutil.move(folder / "a/0.png", folder / "a/day 1/left/0.png")
    (folder / "a/loop").symlink_to(folder / "a")
    dataset_files = find_files(folder)
    assert sum(file.label == "a" for file in dataset_files.files) == 3


def test_system_files_are_ignored_and_others_rejected(make_images: MakeImages) -> None:
    folder = make_images("data", ["a", "b"], count=4)
    for clutter in (
        ".DS_Store",
        "a/.DS_Store",
        "a/Thumbs.db",
        "a/desktop.ini",
        ".git/config",
        "__MACOSX/x.png",
        "a/.hidden/x.png",
    ):
        (folder / clutter).parent.mkdir(exist_ok=True)
        (folder / clutter).write_bytes(b"x")
    (folder / "a/notes.txt").write_text("x")
    (folder / "a/zero.jpg").write_bytes(b"")
    (folder / "a/text.jpg").write_text("no image")
    (folder / "loose.png").write_bytes((folder / "a/0.png").read_bytes())
    (folder / "a/half.png").write_bytes((folder / "a/0.png").read_bytes()[:-200])
    data = read(folder)
    reasons = {entry.path.relative_to(folder).as_posix(): entry.reason for entry in data.rejected}
    assert reasons.keys() == {"a/notes.txt", "a/zero.jpg", "a/text.jpg", "loose.png", "a/half.png"}
    assert "not an image by its name" in reasons["a/notes.txt"]
    assert "0 bytes" in reasons["a/zero.jpg"]
    assert "not a known image format" in reasons["a/text.jpg"]
    assert "class folder" in reasons["loose.png"]
    assert "cannot be decoded" in reasons["a/half.png"]
    assert not any(str(folder) in reason for reason in reasons.values())
    assert any("5 files were skipped" in text and "rejected.csv" in text for text in data.warnings)
    assert len(data.entries) == 8


def test_odd_files_are_rejected_or_used(shared: Path, make_images: MakeImages) -> None:
    folder = make_images("data", ["a", "b"], count=4)
    odd = shared / "data/odd"
    for file in odd.iterdir():
        shutil.copy(file, folder / "a" / file.name)
    data = read(folder)
    broken = {row["file"] for row in _read_notes(odd) if "Pillow FAILS" in row["state"]} - {
        ".DS_Store"
    }
    rejected = {entry.path.name for entry in data.rejected}
    assert {Path(name).name for name in rejected} == {"NOTES.tsv"} | {
        name for name in broken if (odd / name).exists()
    }
    used = {entry.path.name for entry in data.entries}
    assert {
        "pillow_pil_sample_cmyk.jpg",
        "pillow_transparent.webp",
        "rps_rgba_28x28.png",
        "exif_Portrait_5.jpg",
        "imageNotFound.gif",
    } <= used


def _read_notes(odd: Path) -> list[dict[str, str]]:
    lines = [line.split("\t") for line in (odd / "NOTES.tsv").read_text().splitlines()]
    return [{"file": line[0], "state": line[2]} for line in lines]


def test_fingerprint_depends_on_content_and_split(make_images: MakeImages) -> None:
    folder = make_images("data", ["a", "b"], count=10)
    before = read(folder).fingerprint
    assert read(folder).fingerprint == before
    assert read(folder, seed=1).fingerprint != before
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a/0.png")
    assert read(folder).fingerprint != before


def unusable_folder(tmp_path: Path, make_images: MakeImages, kind: str) -> Path:
    if kind == "missing":
        return tmp_path / "nowhere"
    if kind == "file":
        (tmp_path / "file").write_text("x")
        return tmp_path / "file"
    if kind == "empty":
        (tmp_path / "empty").mkdir()
        return tmp_path / "empty"
    if kind == "one class":
        return make_images("data", ["only"])
    if kind == "loose images":
        return make_images("data", ["a"]) / "a"
    if kind in ("empty class", "undecodable class"):
        folder = make_images("data", ["a", "b"])
        (folder / "c").mkdir()
        if kind == "undecodable class":
            (folder / "c/broken.jpg").write_bytes(b"")
        return folder
    make_images("data/train", ["a", "b"])
    folder = make_images("data/val", ["a", "c"] if kind == "differ" else ["a", "b"], seed=1).parent
    if kind == "empty val class":
        shutil.rmtree(folder / "val/b")
        (folder / "val/b").mkdir()
    if kind == "undecodable val class":
        for file in (folder / "val/b").iterdir():
            file.write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "Data folder not found"),
        ("file", "must be a folder, got a file"),
        ("empty", "is empty: no class folders"),
        ("one class", "one class only, only"),
        ("loose images", "holds images but no class folders"),
        ("empty class", r"class folder .*c holds no images"),
        ("undecodable class", r"Cannot read any image of the class c.*0 bytes"),
        ("differ", r"differ: b is only in train/; c is only in val/"),
        ("empty val class", r"class folder .*b holds no images"),
        ("undecodable val class", r"Cannot read any image of the class b of val/"),
    ],
)
def test_read_dataset_raises_for_unusable_folder(
    tmp_path: Path, make_images: MakeImages, kind: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(unusable_folder(tmp_path, make_images, kind))


def test_split_csv_round_trip(tmp_path: Path) -> None:
    data = tmp_path / "data"
    run = write_run(tmp_path / "run", ('a "class"', "b"), ((1, 0), (0, 1)), data=data)
    entries = [
        SplitEntry(data / 'a "class"/x, y.png', 'a "class"', "train"),
        SplitEntry(data / "b/ä\n.png", "b", "val"),
        SplitEntry(data / "b/c.png", "b", "test"),
    ]
    write_split(run, data, entries)
    assert read_entries(run) == entries
    with run.split.open(newline="") as stream:
        assert next(csv.DictReader(stream)) == {
            "path": 'a "class"/x, y.png',
            "label": 'a "class"',
            "split": "train",
        }


def test_file_name_of_invalid_utf8_is_rejected(make_images: MakeImages, tmp_path: Path) -> None:
    folder = make_images("data", ["a", "b"], count=3)
    try:
        (folder / "a" / "\udcff.png").write_bytes((folder / "a/0.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes only valid names")
    data = read(folder)
    assert [
        entry.reason.startswith("the file's name is not valid UTF-8") for entry in data.rejected
    ] == [True]
    run = RunDirectory(tmp_path / "run")
    write_rejected(run, data.folder, data.rejected)
    assert "\\udcff.png" in run.rejected_files.read_text()


def test_write_rejected_writes_no_file_when_empty(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    write_rejected(run, tmp_path, [])
    assert not run.rejected_files.exists()
    write_rejected(run, tmp_path, [RejectedFile(tmp_path / "a", "why")])
    assert run.rejected_files.read_text() == "path,reason\na,why\n"


def test_read_split_raises_when_file_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(RunError, match="Cannot read the split"):
        read_entries(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no images"),
        ("path,label,split\n", "lists no images"),
        ("path,label\na,daisy\n", "no column 'split'"),
        (
            "path,label,split\na,weeds,train\n",
            "the class 'weeds' of 'a' is not listed in config.json",
        ),
        (f"path,label,split\na,{'x' * 5000},train\n", "the class 'x{100}' of"),
        ("path,label,split\na,daisy,holdout\n", "must be train, val or test, got 'holdout'"),
        ("path,label,split\n../../etc/passwd,daisy,val\n", "not a path inside the data folder"),
        ("path,label,split\n/etc/passwd,daisy,val\n", "not a path inside the data folder"),
        ("path,label,split\n,daisy,val\n", "not a path inside the data folder"),
        ("path,label,split\na\0b,daisy,val\n", "split.csv is invalid"),
        ("\x1f\u008b", "split.csv is invalid"),
    ],
)
def test_read_split_raises_when_file_is_invalid(tmp_path: Path, content: str, message: str) -> None:
    run = write_run(tmp_path / "run")
    run.split.write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        read_entries(run)


def test_find_files_raises_when_val_is_empty(
    make_images: MakeImages,
) -> None:
    data = make_images("data", ["train/a", "train/b"])
    (data / "val").mkdir()
    with pytest.raises(DataError, match="val has no class folders"):
        find_files(data)


def test_find_files_raises_when_train_is_missing(make_images: MakeImages) -> None:
    with pytest.raises(DataError, match="no train/"):
        find_files(make_images("data", ["val/a", "val/b"]))
