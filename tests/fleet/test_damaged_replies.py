"""Hosts whose answers are damaged: each outcome is a sentence, and none is the name of a Python exception."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.core.config.bench import BenchConfig
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.runner import bench
from edgetl.device.runtime.images import load_image
from edgetl.fleet import agent
from edgetl.fleet.bench import HostResult, bench_hosts
from tests.helpers.bundles import colour_logits, colour_model, write_bundle, write_pictures
from tools.checks.fuzz.mutation import mutate_json

BRIEF = BenchProtocol(
    block_seconds=0.01, block_runs=10, window_seconds=0.005, window_runs=3, max_windows=3
)
EXCEPTION = re.compile(r"^\w*Error: ")
SSH = """import sys
script = sys.argv[-1]
if "tar -xf" in script:
    sys.stdin.buffer.read()
    print("python3 /nowhere")
elif "agent.py" in script:
    sys.stdout.buffer.write(open({answer!r}, "rb").read())
"""


class Quiet:
    def on_step(self, host: str, name: str) -> None:
        pass

    def on_output(self, host: str, line: str) -> None:
        pass

    def on_host_end(self, outcome: HostResult) -> None:
        pass


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    pictures = write_pictures(folder / "golden")
    return write_bundle(
        folder,
        {"fp32": colour_model()},
        np.stack([colour_logits(load_image(path)) for path in pictures]),
    )


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of what a host prints that answers in place of a device."""
    (tmp_path / "ssh.py").write_text(SSH.format(answer=str(tmp_path / "answer")))
    monkeypatch.setenv("EDGETL_SSH", f"{sys.executable} {tmp_path}/ssh.py")
    return tmp_path / "answer"


def outcome_of(bundle: Path, folder: Path) -> HostResult:
    (outcome,) = bench_hosts(BenchConfig(bundle, output=folder), ["device"], None, Quiet())
    assert not EXCEPTION.match(outcome.failure), outcome.failure
    return outcome


def test_mutated_results_are_kept_or_refused(bundle: Path, answer: Path, tmp_path: Path) -> None:
    bench(
        BenchConfig(
            bundle, scopes=("model",), rounds=2, threads=(1,), output=tmp_path / "whole.json"
        ),
        protocol=BRIEF,
    )
    result = json.loads((tmp_path / "whole.json").read_text())
    kept = 0
    for seed in range(40):
        generator = random.Random(seed)
        said: dict[str, Any] = {"edgetl": True, "status": 0, "result": result, "left": False}
        if seed:
            part = generator.choice([*result, "status", "result"])
            holder = said if part in said else result
            mutated = mutate_json(holder[part], generator)
            said = (
                {**said, part: mutated}
                if holder is said
                else {**said, "result": {**result, part: mutated}}
            )
        answer.write_text(json.dumps(said) + "\n")
        outcome = outcome_of(bundle, tmp_path / f"results-{seed}")
        kept += outcome.result is not None
        assert (outcome.result is None) <= bool(outcome.failure or outcome.status)
    assert 1 <= kept < 40


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"edgetl": true, "status": NaN}\n',
        b'{"edgetl": true}\n',
    ],
)
def test_answers_that_are_none(bundle: Path, answer: Path, tmp_path: Path, content: bytes) -> None:
    answer.write_bytes(content)
    assert outcome_of(bundle, tmp_path / "results").failure


def test_results_that_cannot_be_kept(
    bundle: Path, answer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgetl.fleet.bench.write_json", refuse)
    answer.write_text('{"edgetl": true, "status": 0, "result": {}}\n')
    assert "cannot be written to" in outcome_of(bundle, tmp_path / "results").failure


@pytest.mark.parametrize(
    "job",
    ["", "[]", "{}", "[" * 100_000, '{"wheel": 1, "extra": 2, "wheels": false, "arguments": 3}'],
)
def test_a_damaged_job_is_one_answer(tmp_path: Path, job: str) -> None:
    """As the device's side prints it, which then removes its folder."""
    folder = tmp_path / "sent"
    folder.mkdir()
    (folder / "agent.py").write_bytes(Path(agent.__file__).read_bytes())
    (folder / "job.json").write_text(job)
    # Its standard input stays open as long as somebody waits.
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, str(folder / "agent.py")],
            stdin=reading,
            capture_output=True,
            text=True,
            timeout=100,
        )
    finally:
        os.close(reading)
        os.close(writing)
    last = json.loads(done.stdout.splitlines()[-1])
    assert "failed" in last
    assert "Traceback" not in done.stderr
    assert not folder.exists()
