"""Benchmark a bundle on several hosts in parallel; a failing host does not affect the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_json import read_result
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.options import check, raise_config_errors
from edgetl.core.errors import BenchError, ConfigError
from edgetl.core.files import write_json
from edgetl.core.paths import find_free_path
from edgetl.core.typed_json import JsonObject
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.providers import CUDA_PROVIDERS
from edgetl.fleet.payload import BASELINE_FILE, AgentReply, Payload
from edgetl.fleet.ssh import RemoteError, SshHost

MEASURED_STATUSES = (0, 4, 5)
"""Exit codes of a completed bench: limits met, exceeded or undecided; see edgetl/cli/exit_codes.py."""


@dataclass(frozen=True)
class HostResult:
    """Outcome of one host."""

    host: str
    seconds: float
    """Duration of all steps."""
    status: int | None = None
    """Exit code of `edgetl bench` on the host; None if it did not finish."""
    result: BenchResult | None = None
    failure: str = ""
    """Why there is no valid result; empty on success."""
    leftover_folder: str = ""
    """Folder on the host that could not be removed; empty if there is none."""

    def to_json(self) -> JsonObject:
        """Return the JSON object of `edgetl bench --host ... --json`."""
        path = None if self.result is None else self.result.path
        return {
            "host": self.host,
            "seconds": self.seconds,
            "status": self.status,
            "failed": self.failure or None,
            "left": self.leftover_folder or None,
            "file": None if path is None else str(path),
            "result": None if self.result is None else self.result.to_json(),
        }


class FleetProgress(Protocol):
    """Progress callbacks, called from the thread of each host."""

    def on_step(self, host: str, name: str) -> None:
        """Report the start of a step: copying, installing, measuring or cleaning."""

    def on_output(self, host: str, line: str) -> None:
        """Report a line of output from the host."""

    def on_host_end(self, result: HostResult) -> None:
        """Report that a host has finished."""


def bench_hosts(
    config: BenchConfig, hosts: Sequence[str], wheels: Path | None, progress: FleetProgress
) -> list[HostResult]:
    """Copy the bundle to every host, install edgetl there, run the bench and fetch the results.

    Args:
        config: options of the bench; `output` is a folder for the results of all hosts.
        hosts: addresses as `ssh` takes them.
        wheels: a folder of wheels to install from; None means each device's own index.
        progress: callbacks for the steps and output of each host.

    Returns:
        One result per host, in their order. Result files are written as they arrive.

    Raises:
        ConfigError: a host is invalid or repeated, or an option cannot be used on hosts.
        BundleError: the bundle is not found.
        BenchError: the files to send cannot be prepared.
        KeyboardInterrupt: interrupted; all connections were closed and written results remain.
    """
    for index, host in enumerate(hosts):
        if host in hosts[:index]:
            raise ConfigError(
                f"--host {host} is repeated. Two benches on one device would disturb each other."
            )
    ssh_hosts = [SshHost(host) for host in hosts]
    _check_options(config)
    bundle = open_bundle(config.target)
    extra = "gpu" if any(provider in CUDA_PROVIDERS for provider in config.providers) else "cpu"
    payload = Payload(bundle.directory, _remote_config(config), extra, wheels, config.baseline)
    folder = config.output or find_free_path(Path("bench"), "hosts")
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [_HostTask(ssh_host, payload, bundle, folder, progress) for ssh_host in ssh_hosts]
    threads = [threading.Thread(target=task.run, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    except KeyboardInterrupt:
        for ssh_host in ssh_hosts:
            ssh_host.close()
        for thread in threads:
            thread.join(10)
        raise
    return [task.result for task in tasks]


def _check_options(config: BenchConfig) -> None:
    needs_torch = (
        config.torch_modes not in ((), ("eager",)) or config.limits.min_speedup is not None
    )
    raise_config_errors(
        [
            check(
                not needs_torch,
                "{torch_modes} and {min_speedup} need PyTorch, which is not installed on the "
                "hosts. Leave them out.",
            ),
            check(
                not config.save_recommendation,
                "{save_recommendation} would save it in a temporary copy of the bundle. Leave it "
                "out, and measure on the device.",
            ),
            check(
                config.inputs is None,
                "{inputs} needs a lone ONNX file, but hosts measure bundles. Leave it out.",
            ),
        ],
        BenchConfig,
    )


def _remote_config(config: BenchConfig) -> BenchConfig:
    """Return the options for the device, where the baseline lies next to the bundle."""
    baseline = None if config.baseline is None else Path(BASELINE_FILE)
    return replace(config, baseline=baseline, output=None)


class _HostTask:
    """All steps on one host, run in a thread of its own."""

    def __init__(
        self,
        host: SshHost,
        payload: Payload,
        bundle: Bundle,
        folder: Path,
        progress: FleetProgress,
    ) -> None:
        self._host = host
        self._payload = payload
        self._bundle = bundle
        self._folder = folder
        self._progress = progress
        self._start_s = time.monotonic()
        self.result = HostResult(host.address, 0.0, failure="It was not started.")

    def run(self) -> None:
        self._start_s = time.monotonic()
        try:
            self.result = self._measure()
        except BenchError as error:
            self.result = self._make_host_result(failure=str(error))
        except Exception as error:  # an error in one thread is reported as its host's failure
            self.result = self._make_host_result(failure=f"{type(error).__name__}: {error}")
        self._progress.on_host_end(self.result)

    def _measure(self) -> HostResult:
        address = self._host.address
        self._progress.on_step(address, "copying")
        python, folder = self._host.send(self._payload)

        def on_reply(reply: AgentReply) -> None:
            if reply.step is not None:
                self._progress.on_step(address, reply.step[:20])

        try:
            reply, lines = self._host.run(
                python, folder, on_reply, lambda line: self._progress.on_output(address, line)
            )
        except RemoteError as error:
            self._progress.on_step(address, "cleaning")
            leftover_folder = "" if self._host.remove(folder) else folder
            return self._make_host_result(failure=str(error), leftover_folder=leftover_folder)
        result = None if reply.result is None else self._store_result(reply.result)
        failure = ""
        if reply.status not in MEASURED_STATUSES:
            last_line = lines[-1] if lines else ""
            failure = f"edgetl bench failed on the host: {last_line}"
        return self._make_host_result(
            status=reply.status,
            result=result,
            failure=failure,
            leftover_folder=folder if reply.left else "",
        )

    def _store_result(self, content: Mapping[str, object]) -> BenchResult:
        path = find_free_path(self._folder, self._host.address.removeprefix("ssh://"), ".json")
        try:
            write_json(path, content)
        except OSError as cause:
            raise RemoteError(
                f"Cannot write its result to {path} ({cause.strerror}). "
                "Free some space, or choose another --output."
            ) from cause
        except ValueError as cause:
            raise RemoteError(f"Cannot write its result: {cause}.") from cause
        try:
            result = read_result(path)
            self._check_model(result)
        except BenchError:
            # Keep no file that could be mistaken for a measurement of this bundle.
            path.unlink()
            raise
        return result

    def _check_model(self, result: BenchResult) -> None:
        sent_hashes = {variant.sha256 for variant in self._bundle.variants}
        measured_hashes = {row.file_sha256 for row in result.rows}
        is_same_run = result.model.run_id == self._bundle.run_id
        if not is_same_run or not measured_hashes <= sent_hashes:
            raise RemoteError("Its result does not match the bundle that was sent.")

    def _make_host_result(self, **fields: Any) -> HostResult:
        return HostResult(self._host.address, time.monotonic() - self._start_s, **fields)
