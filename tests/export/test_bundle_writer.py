"""A bundle is written completely or not at all; tested with real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgetl.core.errors import BundleError
from edgetl.export.bundle_writer import new_bundle
from tests.conftest import ROOT

WRITER = """
import resource, signal, sys, time
from pathlib import Path
from edgetl.core.errors import BundleError
from edgetl.export.bundle_writer import new_bundle
limit = int(sys.argv[2])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with new_bundle(Path(sys.argv[1]), force=True) as directory:
        directory.variant("fp32").write_bytes(b"new" * 1000)
        print("inside", flush=True)
        if not limit:
            time.sleep(60)
        directory.manifest.write_text("{}")
except BundleError as error:
    print(error)
    sys.exit(1)
"""


def start_writer(path: Path, limit: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(limit)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


OLD_MANIFEST = '{"schema": 1, "kind": "bundle", "variants": [{"file": "fp32.onnx"}]}'


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "bundle.json").write_text(OLD_MANIFEST)
    (path / "fp32.onnx").write_bytes(b"old")
    return path


def is_old(path: Path) -> bool:
    manifest = (path / "bundle.json").read_text()
    return manifest == OLD_MANIFEST and (path / "fp32.onnx").read_bytes() == b"old"


def test_new_bundle_refuses_second_process(old: Path) -> None:
    process = start_writer(old)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        with (
            pytest.raises(BundleError, match="Another process is writing a bundle"),
            new_bundle(old, force=True),
        ):
            pytest.fail("not refused")
        assert is_old(old)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The lock of a killed process is released.
    with new_bundle(old, force=True) as directory:
        directory.manifest.write_text("{}")
    assert (old / "bundle.json").read_text() == "{}"
    assert not (old / "fp32.onnx").exists(), "old and new files are not mixed"


def test_new_bundle_succeeds_once_in_concurrent_threads(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    def attempt(_: int) -> bool:
        try:
            with new_bundle(path, force=False) as directory:
                directory.manifest.write_text("{}")
        except BundleError:
            return False
        return True

    for _ in range(30):
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 1
        assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]
        shutil.rmtree(path)


def test_full_disk_leaves_old_bundle_unchanged(old: Path) -> None:
    process = start_writer(old, limit=1000)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot be written" in output
    assert "The existing bundle is unchanged." in output
    assert is_old(old)
    assert [path.name for path in old.parent.iterdir()] == ["bundle"]


def fail_inside(path: Path) -> None:
    with new_bundle(path, force=True) as directory:
        directory.manifest.write_text("{}")
        raise ZeroDivisionError


def test_new_bundle_leaves_no_files_after_error(tmp_path: Path, old: Path) -> None:
    for path in (old, tmp_path / "fresh", tmp_path / "new" / "folder" / "fresh"):
        with pytest.raises(ZeroDivisionError):
            fail_inside(path)
    assert is_old(old)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_failed_rename_restores_old_bundle(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(5, "Input/output error")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with (
        pytest.raises(BundleError, match="Input/output error"),
        new_bundle(old, force=True) as directory,
    ):
        directory.manifest.write_text("{}")
    assert is_old(old)


@pytest.mark.parametrize(
    "manifest",
    [
        "{}",
        '{"schema": 1, "kind": "bench", "variants": []}',
        '{"schema": 2, "kind": "bundle"}',
        "[" * 100_000,
        "not json",
    ],
    ids=["empty", "other kind", "newer schema", "deeply nested", "not JSON"],
)
def test_force_refuses_folder_with_foreign_manifest(tmp_path: Path, manifest: str) -> None:
    path = tmp_path / "project"
    path.mkdir()
    (path / "bundle.json").write_text(manifest)
    (path / "precious.txt").write_text("precious")
    with pytest.raises(BundleError, match="is not a bundle"), new_bundle(path, force=True):
        pytest.fail("replaced")
    assert (path / "precious.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["notes.txt", ".git/HEAD", "golden/mine.jpg", "web/deep/er.html"])
def test_force_refuses_bundle_with_user_files(old: Path, name: str) -> None:
    file = old / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("precious")
    with pytest.raises(BundleError, match="did not write") as error, new_bundle(old, force=True):
        pytest.fail("replaced")
    assert name in str(error.value)
    assert file.read_text() == "precious"
    assert is_old(old)
