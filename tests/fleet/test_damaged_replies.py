"""Tests of damaged replies from hosts: each is reported in a sentence, not as an exception."""

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
    sys.stdout.buffer.write(open({reply_file!r}, "rb").read())
"""


class NullFleetProgress:
    def on_step(self, host: str, name: str) -> None:
        pass

    def on_output(self, host: str, line: str) -> None:
        pass

    def on_host_end(self, result: HostResult) -> None:
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
def reply_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace ssh by a host that prints the content of a file, and return the file."""
    (tmp_path / "ssh.py").write_text(SSH.format(reply_file=str(tmp_path / "reply_file")))
    monkeypatch.setenv("EDGETL_SSH", f"{sys.executable} {tmp_path}/ssh.py")
    return tmp_path / "reply_file"


def run_damaged_host(bundle: Path, folder: Path) -> HostResult:
    (outcome,) = bench_hosts(
        BenchConfig(bundle, output=folder), ["device"], None, NullFleetProgress()
    )
    assert not EXCEPTION.match(outcome.failure), outcome.failure
    return outcome


def test_mutated_replies_are_accepted_or_reported(
    bundle: Path, reply_file: Path, tmp_path: Path
) -> None:
    bench(
        BenchConfig(
            bundle, scopes=("model",), rounds=2, threads=(1,), output=tmp_path / "local.json"
        ),
        protocol=BRIEF,
    )
    result = json.loads((tmp_path / "local.json").read_text())
    accepted = 0
    for seed in range(40):
        generator = random.Random(seed)
        reply: dict[str, Any] = {"edgetl": True, "status": 0, "result": result, "left": False}
        if seed:
            part = generator.choice([*result, "status", "result"])
            if part in reply:
                reply = {**reply, part: mutate_json(reply[part], generator)}
            else:
                mutated = mutate_json(result[part], generator)
                reply = {**reply, "result": {**result, part: mutated}}
        reply_file.write_text(json.dumps(reply) + "\n")
        outcome = run_damaged_host(bundle, tmp_path / f"results-{seed}")
        accepted += outcome.result is not None
        assert (outcome.result is None) <= bool(outcome.failure or outcome.status)
    assert 1 <= accepted < 40


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
def test_invalid_replies_are_reported(
    bundle: Path, reply_file: Path, tmp_path: Path, content: bytes
) -> None:
    reply_file.write_bytes(content)
    assert run_damaged_host(bundle, tmp_path / "results").failure


def test_unwritable_result_is_reported(
    bundle: Path, reply_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgetl.fleet.bench.write_json", refuse)
    reply_file.write_text('{"edgetl": true, "status": 0, "result": {}}\n')
    assert "Cannot write its result to" in run_damaged_host(bundle, tmp_path / "results").failure


@pytest.mark.parametrize(
    "job",
    [
        "",
        pytest.param("[]", marks=pytest.mark.slow),
        "{}",
        pytest.param("[" * 100_000, marks=pytest.mark.slow),
        pytest.param('{"wheel": "x", "extra": 2, "wheels": {}}', marks=pytest.mark.slow),
    ],
)
def test_damaged_job_is_reported(tmp_path: Path, job: str) -> None:
    """The agent reports the error and removes its folder."""
    folder = tmp_path / "sent"
    folder.mkdir()
    (folder / "agent.py").write_bytes(Path(agent.__file__).read_bytes())
    (folder / "job.json").write_text(job)
    # The agent runs while its standard input is open.
    read_end, write_end = os.pipe()
    try:
        completed = subprocess.run(
            [sys.executable, str(folder / "agent.py")],
            stdin=read_end,
            capture_output=True,
            text=True,
            timeout=100,
        )
    finally:
        os.close(read_end)
        os.close(write_end)
    last_reply = json.loads(completed.stdout.splitlines()[-1])
    assert "failed" in last_reply
    assert "Traceback" not in completed.stderr
    assert not folder.exists()
