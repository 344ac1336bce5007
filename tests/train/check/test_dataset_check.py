"""`edgetl check` on data sets with known faults."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgetl.cli.exit_codes import ExitCode
from edgetl.core.errors import DataError
from edgetl.core.files import sha256_file
from edgetl.train.check.dataset_check import DatasetReport, check, worst_files
from edgetl.train.check.near_duplicates import group_near_duplicates
from edgetl.train.check.review import LIST_FILE_NAME, copy_problem_files, draw_worst_files

Run = Callable[..., subprocess.CompletedProcess[str]]


def make_image(seed: int, side: int = 96) -> Image.Image:
    """Return an image of large color blots, similar only to itself at other sizes."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (6, 6, 3), np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def write_image(path: Path, seed: int, side: int = 96, quality: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": quality} if path.suffix == ".jpg" else {}
    make_image(seed, side).save(path, **options)
    return path


def write_bomb(path: Path, width: int = 50_000, height: int = 50_000) -> Path:
    """Write a small PNG that declares width x height pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    path.write_bytes(content)
    return path


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    for part, start in (("train", 0), ("val", 1000)):
        for label, offset in (("cat", 0), ("dog", 100)):
            for number in range(6):
                write_image(
                    tmp_path / "data" / part / label / f"{number}.jpg", start + offset + number
                )
    return tmp_path / "data"


def severities_by_kind(report: DatasetReport) -> dict[str, str]:
    return {finding.kind: finding.severity for finding in report.findings}


def test_clean_set_has_no_findings(clean: Path, forked: Run, tmp_path: Path) -> None:
    before = {path: (sha256_file(path), path.stat().st_mtime_ns) for path in clean.rglob("*.jpg")}
    report = check(clean)
    assert report.findings == []
    assert report.image_count == 24
    assert report.counts == {"train": {"cat": 6, "dog": 6}, "val": {"cat": 6, "dog": 6}}
    assert report.shorter_sides == (96, 96, 96)
    result = forked("check", clean, "--sheet", tmp_path / "sheet.png")
    assert result.returncode == 0
    assert "No problems found." in result.stdout
    assert Image.open(tmp_path / "sheet.png").format == "PNG"
    assert {
        path: (sha256_file(path), path.stat().st_mtime_ns) for path in clean.rglob("*.jpg")
    } == before


@pytest.fixture
def faulty(clean: Path) -> Path:
    train, val = clean / "train", clean / "val"
    (train / "cat/empty.jpg").write_bytes(b"")
    (train / "cat/cut.jpg").write_bytes((train / "cat/0.jpg").read_bytes()[:900])
    write_bomb(train / "cat/bomb.png")
    (train / "cat/again.png").write_bytes(_png(train / "cat/1.jpg"))
    (val / "cat/leak.png").write_bytes(_png(train / "cat/2.jpg"))
    (train / "dog/other.png").write_bytes(_png(train / "cat/3.jpg"))
    make_image(104, 64).save(val / "dog/smaller.jpg", quality=60)
    write_image(train / "dog/tiny.png", 500, side=20)
    rotated, exif = make_image(501), Image.Exif()
    exif[0x0112] = 6
    rotated.save(train / "dog/rotated.jpg", exif=exif)
    frames = [make_image(502 + number, 48) for number in range(3)]
    frames[0].save(train / "dog/frames.gif", save_all=True, append_images=frames[1:])
    (train / "dog/notes.txt").write_text("mine")
    (train / "bird").mkdir()
    return clean


def _png(path: Path) -> bytes:
    stream = io.BytesIO()
    Image.open(path).save(stream, "PNG")
    return stream.getvalue()


FAULTS = {
    "folders": "error",
    "empty": "error",
    "duplicates across splits": "error",
    "duplicates with contradictory labels": "error",
    "duplicates in a class": "warning",
    "near duplicates across splits": "warning",
    "unreadable": "warning",
    "bombs": "warning",
    "tiny": "warning",
    "strays": "note",
    "orientation": "note",
    "animated": "note",
    "modes": "note",
}


def test_check_reports_exactly_the_faults(faulty: Path) -> None:
    report = check(faulty)
    assert severities_by_kind(report) == FAULTS
    by_kind = {
        finding.kind: [[report.display_path(path) for path in group] for group in finding.groups]
        for finding in report.findings
    }
    assert by_kind["duplicates across splits"] == [["train/cat/2.jpg", "val/cat/leak.png"]]
    assert by_kind["duplicates with contradictory labels"] == [
        ["train/cat/3.jpg", "train/dog/other.png"]
    ]
    assert by_kind["duplicates in a class"] == [["train/cat/1.jpg", "train/cat/again.png"]]
    assert by_kind["near duplicates across splits"] == [["train/dog/4.jpg", "val/dog/smaller.jpg"]]
    assert sorted(by_kind["unreadable"]) == [["train/cat/cut.jpg"], ["train/cat/empty.jpg"]]
    assert by_kind["bombs"] == [["train/cat/bomb.png"]]
    assert report.worst_severity == "error"


def test_command_writes_json_sheet_and_quarantine(
    faulty: Path, forked: Run, tmp_path: Path
) -> None:
    result = forked(
        "check",
        faulty,
        "--json",
        "--quarantine",
        tmp_path / "apart",
        "--sheet",
        tmp_path / "sheet.png",
    )
    assert result.returncode == ExitCode.FAILED_CHECK
    content = json.loads(result.stdout)
    assert {finding["kind"]: finding["severity"] for finding in content["findings"]} == FAULTS
    with (tmp_path / "apart" / LIST_FILE_NAME).open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["kind"] for row in rows} == {
        kind for kind, severity in FAULTS.items() if severity != "note"
    } - {"folders", "empty"}
    assert all(
        Path(row["copy"]).read_bytes() == (faulty / row["file"]).read_bytes() for row in rows
    )
    assert Image.open(tmp_path / "sheet.png").size[0] > 600
    printed = forked("check", faulty)
    assert printed.returncode == ExitCode.FAILED_CHECK
    assert "both train and val: validation accuracy is too optimistic" in printed.stdout
    assert "train/cat/2.jpg  =  val/cat/leak.png" in printed.stdout


def test_test_images_are_counted_and_checked_for_leaks(clean: Path) -> None:
    test = clean / "test"
    for number in range(3):
        write_image(test / "cat" / f"{number}.jpg", 2000 + number)
    (test / "cat/seen.png").write_bytes(_png(clean / "train/cat/2.jpg"))
    (test / "cat/chosen.png").write_bytes(_png(clean / "val/cat/2.jpg"))
    make_image(4, 64).save(test / "cat/smaller.jpg", quality=60)
    report = check(clean)
    assert report.counts["test"] == {"cat": 6, "dog": 0}
    messages = {finding.message.partition(" Keep")[0]: finding for finding in report.findings}
    assert {message: finding.severity for message, finding in messages.items()} == {
        "1 group of identical images in both train and test: test accuracy is too optimistic.": (
            "error"
        ),
        "1 group of identical images in both val and test: test accuracy is too optimistic.": (
            "error"
        ),
        "1 group of similar images in both train and test: test accuracy is too optimistic.": (
            "warning"
        ),
        "Class dog of test/ has no readable image. The test figures leave it out. Add some.": (
            "warning"
        ),
    }


def test_leak_into_all_splits_is_one_finding(clean: Path) -> None:
    for split in ("val", "test"):
        (clean / split / "cat").mkdir(parents=True, exist_ok=True)
        (clean / split / "cat/leak.png").write_bytes(_png(clean / "train/cat/2.jpg"))
    findings = [finding for finding in check(clean).findings if finding.kind.startswith("dup")]
    assert [finding.message for finding in findings] == [
        "1 group of identical images in train, val and test: validation and test accuracy are too "
        "optimistic. Keep those of each group in one split only."
    ]


def test_unused_test_folder_is_a_warning(clean: Path) -> None:
    write_image(clean / "test/1.jpg", 2000)
    report = check(clean)
    assert [(finding.severity, finding.message) for finding in report.findings] == [
        ("warning", "test/ is not used: it has no class folders.")
    ]
    assert report.image_count == 24


def test_exit_status_depends_on_severity(clean: Path, forked: Run) -> None:
    (clean / "train/cat/cut.jpg").write_bytes(b"no image")
    assert forked("check", clean).returncode == ExitCode.UNDECIDED
    (clean / "train/cat/cut.jpg").rename(clean / "train/cat/cut.txt")
    assert forked("check", clean).returncode == 0, "a stray file is a note"


def test_quarantine_raises_unless_folder_is_new(faulty: Path, tmp_path: Path) -> None:
    report = check(faulty)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("keep")
    for folder, reason in (
        (tmp_path / "mine", "not empty"),
        (faulty / "apart", "inside the data folder"),
    ):
        with pytest.raises(DataError, match=reason):
            copy_problem_files(report, folder)
    assert (tmp_path / "mine/file").read_text() == "keep"


def test_imbalance_is_reported(tmp_path: Path) -> None:
    for label, count in (("common", 30), ("rare", 3)):
        for number in range(count):
            write_image(tmp_path / "data" / label / f"{number}.jpg", 7919 * number + len(label))
    (finding,) = check(tmp_path / "data").findings
    assert (finding.kind, finding.severity) == ("imbalance", "warning")
    assert "common has 30 training images, rare 3" in finding.message


def test_unusual_names_and_links_are_handled(clean: Path, forked: Run, tmp_path: Path) -> None:
    folder = clean / "train/cat"
    write_image(folder / "with\nnewline.jpg", 600)
    write_image(folder / "x.jpg", 601).rename(folder / os.fsdecode(b"\xff\xfe.jpg"))
    (folder / "loop").symlink_to(clean / "train")
    (folder / "nowhere.jpg").symlink_to(tmp_path / "gone")
    report = check(clean)
    unreadable = next(finding for finding in report.findings if finding.kind == "unreadable")
    assert len(unreadable.files) == 2, "the name of invalid UTF-8, and the broken link"
    result = forked("check", clean, "--quarantine", tmp_path / "apart")
    assert result.returncode == ExitCode.FAILED_CHECK
    assert "Traceback" not in result.stderr
    draw_worst_files(report, tmp_path / "sheet.png")


def test_animation_of_10000_frames_is_fast(clean: Path) -> None:
    frames = [Image.new("L", (8, 8), number % 256) for number in range(10_000)]
    frames[0].save(
        clean / "train/cat/long.gif", save_all=True, append_images=frames[1:], optimize=False
    )
    started = time.perf_counter()
    assert severities_by_kind(check(clean))["animated"] == "note"
    assert time.perf_counter() - started < 20


def test_check_raises_when_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Data folder not found"):
        check(tmp_path / "nowhere")


def test_worst_files_are_sorted_by_severity(faulty: Path) -> None:
    examples = worst_files(check(faulty), 8)
    assert len(examples) == 8
    severities = [finding.severity for finding, _ in examples]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert {finding.kind for finding, _ in examples} >= {
        "duplicates across splits",
        "duplicates with contradictory labels",
    }


def inspected_files(hashes: list[int], thumbnails: NDArray[np.uint8]) -> list[object]:
    from edgetl.train.check.inspect_files import InspectedFile
    from edgetl.train.data.folders import LabeledFile

    file = LabeledFile(Path("a.jpg"), "a", None)
    return [
        InspectedFile(file, 9, 9, "RGB", "JPEG", 1, False, str(number), value, thumbnail)
        for number, (value, thumbnail) in enumerate(zip(hashes, thumbnails, strict=True))
    ]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(0, 2**32))
def test_groups_equal_pairwise_comparison(hashes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    thumbnail = generator.integers(0, 256, (16, 16), np.uint8)
    # Every third hash differs from the previous one in one bit.
    close = [
        value if number % 3 else hashes[max(0, number - 1)] ^ (1 << (value % 64))
        for number, value in enumerate(hashes)
    ]
    groups = group_near_duplicates(
        inspected_files(close, np.repeat(thumbnail[None], len(close), 0))
    )  # type: ignore[arg-type]
    near = {
        (i, j)
        for i in range(len(close))
        for j in range(len(close))
        if i != j and (close[i] ^ close[j]).bit_count() <= 6
    }
    grouped = {index for group in groups for index in group}
    assert grouped == {index for pair in near for index in pair}
    assert all(any((i, j) in near for j in group) for group in groups for i in group)
    for first, second in near:
        assert any(first in group and second in group for group in groups)


def test_equal_hashes_need_similar_thumbnails() -> None:
    generator = np.random.default_rng(0)
    thumbnails = generator.integers(0, 256, (2, 16, 16), np.uint8)
    assert group_near_duplicates(inspected_files([5, 5], thumbnails)) == []  # type: ignore[arg-type]
    flat = np.full((2, 16, 16), 90, np.uint8)
    assert group_near_duplicates(inspected_files([5, 5], flat)) == []  # type: ignore[arg-type]
