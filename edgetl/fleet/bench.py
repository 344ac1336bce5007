"""A bundle on several devices at once; what one of them cannot do, the others do not feel."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_json import read_bench_result
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError, ConfigError
from edgetl.core.files import write_json
from edgetl.core.paths import find_free_path
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.providers import CUDA_PROVIDERS
from edgetl.fleet.payload import Payload
from edgetl.fleet.ssh import RemoteError, SshHost


@dataclass(frozen=True)
class HostResult:
    """What became of one host."""

    host: str
    seconds: float
    status: int | None = None
    """The exit status of `edgetl bench` there; None where it never ran to its end."""
    result: BenchResult | None = None
    failure: str = ""
    """Why there is no result, or why it counts for nothing; empty otherwise."""
    leftover_folder: str = ""
    """A folder on the host that could not be removed."""

    def to_json(self) -> dict[str, Any]:
        """For `edgetl bench --host ... --json`."""
        return {
            "host": self.host,
            "seconds": self.seconds,
            "status": self.status,
            "failed": self.failure or None,
            "left": self.leftover_folder or None,
            "file": str(self.result.path)
            if self.result is not None and self.result.path is not None
            else None,
            "result": None if self.result is None else self.result.to_json(),
        }


class FleetProgress(Protocol):
    """Is told what happens on every host, from that host's thread."""

    def on_step(self, host: str, name: str) -> None:
        """copying, installing, measuring or cleaning begins."""

    def on_output(self, host: str, line: str) -> None:
        """The host's own words."""

    def on_host_end(self, outcome: HostResult) -> None:
        """Its last word."""


def bench_hosts(
    config: BenchConfig, hosts: Sequence[str], wheels: Path | None, watcher: FleetProgress
) -> list[HostResult]:
    """Copy the bundle to every host, install edgetl there, measure, and fetch the results.

    Args:
        config: what is measured on each; `output` is a folder, and gets a result for each host.
        hosts: as `ssh` takes them.
        wheels: a folder to install from; None takes each device's own index.

    Returns:
        One outcome for each host, in their order; results are written as they come.

    Raises:
        ConfigError: a host is named twice, or is none; or the configuration asks for what only this machine has.
        BundleError: there is no bundle.
        BenchError: nothing can be sent.
        KeyboardInterrupt: Ctrl-C; every connection was ended, and what had come is kept.
    """
    if twice := next((host for number, host in enumerate(hosts) if host in hosts[:number]), None):
        raise ConfigError(
            f"--host {twice} is named twice: two benches on one device would measure each other."
        )
    remotes = [SshHost(host) for host in hosts]
    if config.torch_modes not in ((), ("eager",)) or config.limits.min_speedup is not None:
        raise ConfigError(
            "--pytorch and --min-speedup want PyTorch, which devices do not have; leave them out beside --host."
        )
    if config.inputs is not None:
        raise ConfigError(
            "--inputs feeds a lone ONNX file; --host measures bundles, which bring their own images."
        )
    bundle = open_bundle(config.target)
    extra = "gpu" if any(provider in CUDA_PROVIDERS for provider in config.providers) else "cpu"
    parcel = Payload(bundle.directory, bench_arguments(config), extra, wheels, config.baseline)
    folder = config.output or find_free_path(Path("bench"), "hosts")
    folder.mkdir(parents=True, exist_ok=True)
    work = [_HostTask(remote, parcel, bundle, folder, watcher) for remote in remotes]
    threads = [threading.Thread(target=one.run, daemon=True) for one in work]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    except KeyboardInterrupt:
        for remote in remotes:
            remote.close()
        for thread in threads:
            thread.join(10)
        raise
    return [one.result for one in work]


def bench_arguments(config: BenchConfig) -> list[str]:
    """What `edgetl bench BUNDLE` is given on the device."""
    limits = config.limits

    def given() -> Iterator[str]:
        lists = {
            "--scope": config.scopes, "--batch": config.batches, "--threads": config.threads, "--provider": config.providers,
            "--variant": config.variants, "--rate": config.rates,
            "--session": () if config.session_modes == ("default",) else config.session_modes,
        }  # fmt: skip
        for option, values in lists.items():
            if values:
                yield from (option, ",".join(map(str, values)))
        yield from ("--rounds", str(config.rounds))
        if config.sustained_s:
            yield from ("--sustained", f"{_format_decimal(config.sustained_s)}s")
        if config.baseline is not None:
            yield from ("--baseline", "baseline.json")
        if limits.max_regression is not None:
            yield from ("--max-regression", f"{_format_decimal(100 * limits.max_regression)}%")
        if limits.max_p99_ms is not None:
            yield from ("--max-p99", f"{_format_decimal(limits.max_p99_ms)}ms")
        flags = {
            "--profile": config.profile,
            "--any-model": config.any_model,
            "--force": config.force,
        }
        yield from (option for option, on in flags.items() if on)

    return list(given())


def _format_decimal(value: float) -> str:
    """Without an exponent, which options do not take."""
    return f"{value:.9f}".rstrip("0").rstrip(".")


class _HostTask:
    """One host's way, in a thread of its own."""

    def __init__(
        self, remote: SshHost, parcel: Payload, bundle: Bundle, folder: Path, watcher: FleetProgress
    ) -> None:
        self._host, self._payload, self._bundle, self._folder, self._progress = (
            remote,
            parcel,
            bundle,
            folder,
            watcher,
        )
        self._start_s = time.monotonic()
        self.result = HostResult(remote.address, 0.0, failure="It was not begun.")

    def run(self) -> None:
        self._start_s = time.monotonic()
        try:
            self.result = self._measure()
        except BenchError as error:
            self.result = self._make_host_result(failure=str(error))
        except Exception as error:  # a fault of one host's thread is that host's, and must be told
            self.result = self._make_host_result(failure=f"{type(error).__name__}: {error}")
        self._progress.on_host_end(self.result)

    def _measure(self) -> HostResult:
        host, remote = self._host.address, self._host
        self._progress.on_step(host, "copying")
        python, folder = remote.send(self._payload)
        try:
            said = remote.run(
                python,
                folder,
                lambda reply: (
                    self._progress.on_step(host, str(reply["step"])[:20])
                    if "step" in reply
                    else None
                ),
                lambda line: self._progress.on_output(host, line),
            )
        except RemoteError as error:
            self._progress.on_step(host, "cleaning")
            return self._make_host_result(
                failure=str(error), leftover_folder="" if remote.remove(folder) else folder
            )
        result = None if said["result"] is None else self._store_result(said["result"])
        words = said["words"][-1] if said["words"] else ""
        reason = f"edgetl bench failed there: {words}" if said["status"] not in (0, 4, 5) else ""
        return self._make_host_result(
            status=said["status"],
            result=result,
            failure=reason,
            leftover_folder=folder if said["left"] else "",
        )

    def _store_result(self, content: dict[str, Any]) -> BenchResult:
        stem = (
            re.sub(r"[^\w.@-]+", "-", self._host.address.removeprefix("ssh://")).strip("-.")
            or "host"
        )
        path = self._folder / f"{stem}.json"
        number = 1
        while path.exists():
            number += 1
            path = self._folder / f"{stem}-{number}.json"
        try:
            write_json(path, content)
        except OSError as cause:
            raise RemoteError(
                f"Its result cannot be written to {path} ({cause.strerror}). Make room, or choose another -o."
            ) from cause
        except ValueError as cause:
            raise RemoteError(f"Its result cannot be written: {cause}.") from cause
        try:
            result = read_bench_result(path)
            self._check_model(result)
        except BenchError:
            # Nobody may take it for a measurement of this bundle later.
            path.unlink()
            raise
        return result

    def _check_model(self, result: BenchResult) -> None:
        sent = {variant.sha256 for variant in self._bundle.variants}
        measured = {row.file_sha256 for row in result.rows}
        if result.model.get("run_id") != self._bundle.run_id or not measured <= sent:
            raise RemoteError("Its result is of another model than the bundle that was sent.")

    def _make_host_result(self, **what: Any) -> HostResult:
        return HostResult(self._host.address, time.monotonic() - self._start_s, **what)
