"""A few dozen mutated files per format; `make fuzz` runs ten thousand cases."""

from __future__ import annotations

import mmap
import random
from pathlib import Path

import numpy as np
import pytest

from tools.checks.fuzz.__main__ import QUICK_CASES, fuzz, main
from tools.checks.fuzz.mutation import mutate_bytes
from tools.checks.fuzz.target import Target
from tools.checks.fuzz.targets import TARGETS, load_target
from tools.checks.fuzz.worker import use_case

SLOW = ("runs", "checkpoints", "weights", "caches")
"""Targets that train or load models; `make fuzz` and `make test-slow` cover them."""


@pytest.mark.parametrize(
    "target",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in TARGETS],
)
def test_every_mutated_file_is_read_or_refused(target: str, tmp_path: Path) -> None:
    result = fuzz(target, QUICK_CASES, 1, tmp_path / "failures")
    assert result.failures == []
    assert result.cases == QUICK_CASES
    assert result.counts["read"] > 0, "some mutations are harmless"
    assert not any((tmp_path / "failures").iterdir())


@pytest.mark.parametrize("target", ["images", "runs", "presets"])
def test_cases_are_seeded(target: str, tmp_path: Path) -> None:
    fuzz_target = load_target(target)
    contents = []
    (tmp_path / "originals").mkdir()
    fuzz_target.prepare(tmp_path / "originals")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        folder = tmp_path / name
        fuzz_target.make_case(random.Random(seed), tmp_path / "originals", folder)
        paths = sorted(folder.rglob("*.*"))
        contents.append({path.relative_to(folder): path.read_bytes() for path in paths})
    assert contents[0] == contents[1] != contents[2]


def test_outcome_of_failing_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(case: Path) -> None:
        while True:
            pass

    def allocate(case: Path) -> None:
        # Map new pages: the allocator may reuse resident pages that earlier tests have freed.
        with mmap.mmap(-1, 96 * 2**20) as pages:
            pages.write(bytes(96 * 2**20))

    monkeypatch.setattr("tools.checks.fuzz.worker.LIMIT_S", 3)
    monkeypatch.setattr("tools.checks.fuzz.worker.LIMIT_BYTES", 64 * 2**20)
    uses = {
        "read": lambda case: None,
        "failed": lambda case: {}["a"],
        "memory": allocate,
        "hung": hang,
    }
    for outcome, use in uses.items():
        target = Target(lambda folder: None, lambda generator, originals, case: None, use)
        assert use_case(target, tmp_path)["outcome"] == outcome


def test_crash_of_worker_is_a_failed_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crashing.py").write_text(
        "import os\nfrom tools.checks.fuzz.target import Target\n"
        "def make_case(generator, originals, case):\n    (case / 'a').write_text(str(generator.random() < 0.5))\n"
        "def use(case):\n    if (case / 'a').read_text() == 'True' and case.name == 'case':\n"
        "        os.abort()\n"
        "TARGET = Target(lambda folder: None, make_case, use)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    (tmp_path / "sitecustomize.py").write_text(
        "from tools.checks.fuzz.targets import TARGETS\nTARGETS['images'] = 'crashing'\n"
    )
    result = fuzz("images", 6, 0, tmp_path / "failures")
    assert result.cases == 6
    assert result.counts["died"] == len(result.failures) > 0
    saved = [path for path in (tmp_path / "failures").iterdir() if path.is_dir()]
    assert len(saved) == result.counts["died"]
    with pytest.raises(SystemExit, match="cases failed"):
        main(["--target", "images", "--cases", "6", "--failures", str(tmp_path / "again")])
    assert "died" in capsys.readouterr().out


def test_mutated_bytes_differ() -> None:
    original = bytes(range(256)) * 8
    changed = [
        mutate_bytes(original, original, np.random.default_rng(seed)) != original
        for seed in range(50)
    ]
    assert sum(changed) > 40
