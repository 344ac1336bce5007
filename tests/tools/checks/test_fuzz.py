"""A few dozen mutated files of each kind; `make fuzz` takes ten thousand."""

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


@pytest.mark.parametrize("target", TARGETS)
def test_every_mutated_file_is_read_or_refused(target: str, tmp_path: Path) -> None:
    outcome = fuzz(target, QUICK_CASES, 1, tmp_path / "failures")
    assert outcome.failures == []
    assert outcome.cases == QUICK_CASES
    assert outcome.counts["read"] > 0, "some mutations are to be harmless"
    assert not any((tmp_path / "failures").iterdir())


@pytest.mark.parametrize("target", ["images", "runs", "presets"])
def test_cases_are_seeded(target: str, tmp_path: Path) -> None:
    loaded, contents = load_target(target), []
    (tmp_path / "originals").mkdir()
    loaded.prepare(tmp_path / "originals")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        loaded.make_case(random.Random(seed), tmp_path / "originals", tmp_path / name)
        contents.append(
            {
                path.relative_to(tmp_path / name): path.read_bytes()
                for path in sorted((tmp_path / name).rglob("*.*"))
            }
        )
    assert contents[0] == contents[1] != contents[2]


def test_what_is_no_proper_answer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(case: Path) -> None:
        while True:
            pass

    def take_memory(case: Path) -> None:
        # Pages of its own: the allocator may hold freed ones of earlier tests, which are resident already.
        with mmap.mmap(-1, 96 * 2**20) as pages:
            pages.write(bytes(96 * 2**20))

    monkeypatch.setattr("tools.checks.fuzz.worker.LIMIT_S", 3)
    monkeypatch.setattr("tools.checks.fuzz.worker.LIMIT_BYTES", 64 * 2**20)
    uses = {
        "read": lambda case: None,
        "failed": lambda case: {}["a"],
        "memory": take_memory,
        "hung": hang,
    }
    for outcome, use in uses.items():
        target = Target(lambda folder: None, lambda generator, originals, case: None, use)
        assert use_case(target, tmp_path)["outcome"] == outcome


def test_a_process_that_dies_is_a_failed_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dying.py").write_text(
        "import os\nfrom tools.checks.fuzz.target import Target\n"
        "def make_case(generator, originals, case):\n    (case / 'a').write_text(str(generator.random() < 0.5))\n"
        "def use(case):\n    if (case / 'a').read_text() == 'True' and case.name == 'case':\n"
        "        os.abort()\n"
        "TARGET = Target(lambda folder: None, make_case, use)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    (tmp_path / "sitecustomize.py").write_text(
        "from tools.checks.fuzz.targets import TARGETS\nTARGETS['images'] = 'dying'\n"
    )
    outcome = fuzz("images", 6, 0, tmp_path / "failures")
    assert outcome.cases == 6
    assert outcome.counts["died"] == len(outcome.failures) > 0
    kept = [path for path in (tmp_path / "failures").iterdir() if path.is_dir()]
    assert len(kept) == outcome.counts["died"]
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
