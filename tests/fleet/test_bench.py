"""Tests of `edgetl bench --host` with real ssh servers on the loopback interface."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console

from edgetl.cli.bench_hosts import LiveFleetProgress, run_hosts
from edgetl.core.artifacts.bench_json import read_result
from edgetl.core.config.bench import BenchConfig, Limits
from edgetl.core.config.options import build_config
from edgetl.core.config.presets import read_config_file
from edgetl.core.errors import BenchError, ConfigError
from edgetl.core.paths import BundleDirectory
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.runner import bench
from edgetl.device.runtime.images import load_image
from edgetl.fleet import bench as fleet_bench
from edgetl.fleet.bench import MEASURED_STATUSES, HostResult, bench_hosts
from edgetl.fleet.payload import Payload, build_edgetl_wheel
from edgetl.fleet.ssh import SSH_ENV_VAR, LineReader, SshHost
from tests.conftest import ROOT
from tests.helpers.bundles import colour_logits, colour_model, write_bundle, write_pictures
from tests.helpers.sshd import SSHD, Sshd

pytestmark = pytest.mark.skipif(SSHD is None, reason="no sshd")
BRIEF = BenchProtocol(
    block_seconds=0.01, block_runs=10, window_seconds=0.005, window_runs=3, max_windows=3
)
QUICK = ("--scope", "model", "--rounds", "2", "--threads", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "colours"
    pictures = write_pictures(folder / "golden")
    return write_bundle(
        folder,
        {"fp32": colour_model()},
        np.stack([colour_logits(load_image(path)) for path in pictures]),
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Download the wheels for a device without a network."""
    folder = tmp_path_factory.mktemp("wheels")
    requirements = ["numpy", "pillow", "rich", "typer<0.29", "onnxruntime"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--only-binary=:all:",
        "-d",
        str(folder),
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    subprocess.run([*command, *requirements], check=True)
    return folder


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sshd]]:
    """Start two hosts and one without Python; configure one that denies access, one unreachable."""
    folder = tmp_path_factory.mktemp("hosts")
    bare = folder / "bare-bin"
    bare.mkdir()
    for name in ("sh", "tar", "mktemp", "rm"):
        (bare / name).symlink_to(f"/bin/{name}")
    servers = {
        "pi": Sshd(folder / "pi"),
        "jetson": Sshd(folder / "jetson"),
        "bare": Sshd(folder / "bare", PATH=str(bare)),
    }
    aliases = [host.alias(name) for name, host in servers.items()] + [
        servers["pi"].alias("stranger", "host")
    ]
    aliases.append("Host nowhere\n HostName 127.0.0.1\n Port 1\n")
    (folder / "config").write_text("".join(aliases))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SSH_ENV_VAR, f"ssh -F {folder}/config")
        yield servers
    for host in servers.values():
        host.stop()


@pytest.fixture(autouse=True)
def _hosts_are_clean_afterwards(hosts: dict[str, Sshd]) -> Iterator[None]:
    yield
    try:
        wait_for(lambda: not any([*host.temporary.iterdir()] for host in hosts.values()), 30)
    except AssertionError:
        leftovers = [str(path) for host in hosts.values() for path in host.temporary.rglob("*")][
            :20
        ]
        for host in hosts.values():
            for path in host.temporary.iterdir():
                shutil.rmtree(path, ignore_errors=True)
        pytest.fail(f"Left on a host: {leftovers}")


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


class RecordingProgress:
    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []
        self.results: list[HostResult] = []

    def on_step(self, host: str, name: str) -> None:
        self.steps.append((host, name))

    def on_output(self, host: str, line: str) -> None:
        pass

    def on_host_end(self, result: HostResult) -> None:
        self.results.append(result)


def program(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgetl", "bench", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize(
    "measured", [("pi",), pytest.param(("pi", "jetson"), marks=pytest.mark.slow)], ids=len
)
def test_hosts_run_in_parallel_and_fail_independently(
    measured: tuple[str, ...], bundle: Path, wheels: Path, tmp_path: Path
) -> None:
    host_options = [
        part for host in (*measured, "bare", "stranger", "nowhere") for part in ("--host", host)
    ]
    process = program(
        bundle,
        *host_options,
        "--wheels",
        wheels,
        *QUICK,
        "--max-p99",
        "0.0001ms",
        "--json",
        "-o",
        tmp_path / "results",
    )
    stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 1, stderr
    assert stdout, stderr
    outcomes = {outcome["host"]: outcome for outcome in json.loads(stdout)["hosts"]}
    for host in measured:
        assert outcomes[host]["failed"] is None
        assert outcomes[host]["status"] in (4, 5), "no network is that fast"
        result = read_result(tmp_path / "results" / f"{host}.json")
        assert [row.variant for row in result.rows] == ["fp32"]
        assert all(len(row.rounds) == 2 and row.threads == 1 for row in result.rows)
    assert "apt install python3 python3-venv" in outcomes["bare"]["failed"]
    assert "ssh-copy-id stranger" in outcomes["stranger"]["failed"]
    assert "ssh nowhere true" in outcomes["nowhere"]["failed"]
    assert all(outcomes[host]["file"] is None for host in ("bare", "stranger", "nowhere"))
    assert [line for line in stderr.splitlines() if line.startswith("pi: ")][:3] == [
        "pi: copying",
        "pi: installing",
        "pi: measuring",
    ]
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_dying_host_does_not_affect_others(
    bundle: Path, wheels: Path, hosts: dict[str, Sshd], tmp_path: Path
) -> None:
    dying = Sshd(tmp_path / "dying")
    config = tmp_path / "config"
    config.write_text(dying.alias("dying") + hosts["pi"].alias("pi"))

    class KillingProgress(RecordingProgress):
        def on_step(self, host: str, name: str) -> None:
            super().on_step(host, name)
            if (host, name) == ("dying", "measuring"):
                dying.die()

    progress = KillingProgress()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SSH_ENV_VAR, f"ssh -F {config}")
        bench_config = BenchConfig(
            bundle, scopes=("model",), rounds=2, threads=(1,), output=tmp_path / "results"
        )
        failed, succeeded = bench_hosts(bench_config, ["dying", "pi"], wheels, progress)
    assert "Connection failed or lost" in failed.failure
    assert failed.leftover_folder.startswith(str(dying.temporary)), "removal cannot be verified"
    assert succeeded.failure == ""
    assert succeeded.result is not None
    assert succeeded.result.path == tmp_path / "results/pi.json"
    assert {result.host for result in progress.results} == {"dying", "pi"}
    # The agent ends with its connection and cleans up.
    wait_for(lambda: not [*dying.temporary.iterdir()], 20)


@pytest.mark.parametrize("pattern", ["env/bin/python", "tmp/tmp*/pip-*.whl"])
def test_interrupt_leaves_nothing_on_host(
    pattern: str, bundle: Path, wheels: Path, hosts: dict[str, Sshd], tmp_path: Path
) -> None:
    process = program(
        bundle, "--host", "pi", "--wheels", wheels, *QUICK, "-o", tmp_path / "results"
    )
    wait_for(lambda: bool([*hosts["pi"].temporary.glob(f"edgetl-*/{pattern}")]))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_cli_prints_results_of_hosts(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = bench(
        BenchConfig(bundle, scopes=("model",), rounds=2, threads=(1,), output=tmp_path / "pi.json"),
        protocol=BRIEF,
    )
    monkeypatch.setitem(sys.modules, "jinja2", None)  # absent with only the `cpu` extra
    results = [
        HostResult("pi", 61.0, 5, result),
        HostResult(
            "nano", 3.0, failure="The connection was lost.", leftover_folder="/tmp/edgetl-x"
        ),
    ]
    monkeypatch.setattr(fleet_bench, "bench_hosts", lambda *arguments: results)
    with pytest.raises(typer.Exit) as caught:
        run_hosts(BenchConfig(bundle), ["pi", "nano"], None, False)
    assert caught.value.exit_code == 1
    stdout = capsys.readouterr().out
    assert re.search(r"^pi .* fp32 +model +1 +1 +[\d.]+ ", stdout, re.MULTILINE)
    assert re.search(r"^pi +measured, a limit is undecided +61 s", stdout, re.MULTILINE)
    assert "nano: The connection was lost." in stdout
    assert "nano: /tmp/edgetl-x may not have been removed" in stdout
    for status in MEASURED_STATUSES:
        monkeypatch.setattr(
            fleet_bench,
            "bench_hosts",
            lambda *arguments, status=status: [HostResult("pi", 1.0, status, result)],
        )
        assert exit_status(bundle) == status


def exit_status(bundle: Path) -> int:
    try:
        run_hosts(BenchConfig(bundle), ["pi"], None, True)
    except typer.Exit as error:
        return error.exit_code
    return 0


def test_live_progress_shows_hosts() -> None:
    table = LiveFleetProgress(["pi", "nano"])
    table.on_step("pi", "measuring")
    table.on_output("pi", "round 1 of 2: onnxruntime fp32")
    table.on_host_end(HostResult("nano", 3.0, failure="The connection was lost."))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table)
    lines = console.export_text().splitlines()
    assert re.match(r"pi +0\.0 s +measuring +round 1 of 2", lines[1])
    assert re.match(r"nano +3\.0 s +failed", lines[2])


@pytest.mark.slow
def test_unsuitable_wheels_fail_host(bundle: Path, hosts: dict[str, Sshd], tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/nothing-1-py3-none-any.whl").write_bytes(b"")
    (host_result,) = bench_hosts(
        BenchConfig(bundle, output=tmp_path / "results"),
        ["pi"],
        tmp_path / "wheels",
        RecordingProgress(),
    )
    assert host_result.failure.startswith("pip cannot install edgetl on the device.")
    assert host_result.leftover_folder == ""


@pytest.mark.parametrize("name", ["-oProxyCommand=touch /tmp/x", "", "a b", "pi\nrm"])
def test_invalid_host_is_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match="--host must be an alias"):
        SshHost(name)


def test_conflicting_options_are_rejected(bundle: Path, tmp_path: Path) -> None:
    config = BenchConfig(bundle, output=tmp_path / "results")
    with pytest.raises(ConfigError, match="--host pi is repeated"):
        bench_hosts(config, ["pi", "pi"], None, RecordingProgress())
    with pytest.raises(ConfigError, match="torch_modes and min_speedup need PyTorch"):
        bench_hosts(
            BenchConfig(bundle, limits=Limits(min_speedup=2.0)), ["pi"], None, RecordingProgress()
        )
    with pytest.raises(BenchError, match="No wheels found"):
        bench_hosts(config, ["pi"], tmp_path / "none", RecordingProgress())
    assert not (tmp_path / "results").exists()


def test_payload_contains_all_options(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = tmp_path / "old.json"
    baseline.write_text("{}")
    limits = Limits(max_regression=0.05, max_p99_ms=30.0)
    config = BenchConfig(
        bundle, ("model", "image"), (1, 4), (1, 2), ("cpu",), ("int8",), torch_modes=(),
        rates=(7.5,), rounds=3, sustained_s=600, profile=True, baseline=baseline, limits=limits,
        output=tmp_path / "results", force=True,
    )  # fmt: skip
    sent = io.BytesIO()
    monkeypatch.setattr(SshHost, "send", lambda host, payload: payload.write(sent))
    bench_hosts(config, ["pi"], None, RecordingProgress())
    sent.seek(0)
    with tarfile.open(fileobj=sent) as archive:
        archive.extractall(tmp_path / "device", filter="data")
    options = read_config_file(tmp_path / "device/config.json", BenchConfig)
    received = build_config(BenchConfig, target=bundle, **options)
    assert received == replace(config, baseline=Path("baseline.json"), output=None)
    assert (tmp_path / "device/baseline.json").read_text() == "{}"


def test_wheel_contains_package_without_weights(tmp_path: Path) -> None:
    name, content = build_edgetl_wheel()
    (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / name) as archive:
        names = archive.namelist()
        record = archive.read(next(entry for entry in names if entry.endswith("/RECORD"))).decode()
    assert "edgetl/device/bench/worker.py" in names
    assert not [
        entry for entry in names if entry.startswith("edgetl/_models") or "__pycache__" in entry
    ]
    assert len(record.splitlines()) == len(names)
    assert len(content) < 2_000_000


def fake_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Replace `ssh` by a Python script that is called with ssh's arguments."""
    program = folder / "fake_ssh.py"
    program.write_text(script)
    monkeypatch.setenv(SSH_ENV_VAR, f"{sys.executable} {program}")


PRINTS_BEFORE_IT_READS = """
import sys
sys.stdout.write("noise\\n" * 200_000)
sys.stderr.write("x" * 3_000_000)
sys.stdout.flush()
sys.stderr.flush()
sys.stdin.buffer.read()
print("python3 /tmp/edgetl-here")
"""


def test_host_printing_before_reading_does_not_hang(
    bundle: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ssh(tmp_path, monkeypatch, PRINTS_BEFORE_IT_READS)
    payload = Payload(BundleDirectory(bundle), BenchConfig(bundle), "cpu", wheels)
    assert SshHost("loud").send(payload) == ("python3", "/tmp/edgetl-here")


def test_line_reader_bounds_lines() -> None:
    reader = LineReader(io.BytesIO(b"a" * 10_000_000 + b"\n" + b"b\n" * 5000))
    reader.join()
    assert len(reader.last_lines) == 1000
    assert set(reader.last_lines) == {"b"}
    longest = LineReader(io.BytesIO(b"a" * 10_000_000 + b"\nend\n"))
    longest.join()
    assert [len(line) for line in longest.last_lines] == [4096, 3]


@pytest.mark.parametrize("reply", ["", "\xff\xfe", "Welcome to the board!", "python3 relative"])
def test_invalid_folder_reply_is_reported(
    bundle: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: str
) -> None:
    fake_ssh(
        tmp_path,
        monkeypatch,
        f"import sys; sys.stdin.buffer.read(); sys.stdout.buffer.write({reply.encode('latin-1')!r})",
    )
    config = BenchConfig(bundle, rounds=2, output=tmp_path / "results")
    (outcome,) = bench_hosts(config, ["odd"], wheels, RecordingProgress())
    assert "instead of the folder's path" in outcome.failure
    assert outcome.result is None


def test_result_of_other_model_is_rejected(
    bundle: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = bench(
        BenchConfig(
            bundle, scopes=("model",), rounds=2, threads=(1,), output=tmp_path / "local.json"
        ),
        protocol=BRIEF,
    )
    content = result.to_json()
    content["model"] = {**content["model"], "run_id": "another"}
    (tmp_path / "reply.json").write_text(
        json.dumps({"edgetl": True, "status": 0, "result": content, "left": False})
    )
    fake_ssh(
        tmp_path,
        monkeypatch,
        f"""
import sys
if "agent.py" in sys.argv[-1]:
    print(open({str(tmp_path / "reply.json")!r}).read())
else:
    sys.stdin.buffer.read()
    print("python3 /tmp/edgetl-here")
""",
    )
    config = BenchConfig(bundle, rounds=2, output=tmp_path / "results")
    (outcome,) = bench_hosts(config, ["host"], wheels, RecordingProgress())
    assert "does not match the bundle" in outcome.failure
    assert not [*(tmp_path / "results").iterdir()]
