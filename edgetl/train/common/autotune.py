"""Measurements and their cache, so that repeated runs on a machine make the same choices."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import TypeVar

import torch

from edgetl.core.cache import get_cache_folder, read_cache_entry, write_cache_entry
from edgetl.core.typed_json import parse_as, to_json
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.info import collect_device_info

T = TypeVar("T")


def cached_measurement(kind: type[T], key: Mapping[str, object], measure: Callable[[], T]) -> T:
    """Return a measurement for `key`, from the cache or by calling `measure`.

    Args:
        kind: Type of the measurement: a dataclass or a mapping, see `parse_as`.
        key: Everything that the result depends on, as JSON, except the CPU, its cores and
            PyTorch's version. If the cache is not writable, every call measures.
        measure: Makes the measurement.
    """
    machine = {
        "cpu": collect_device_info().cpu,
        "cores": available_cores(),
        "torch": torch.__version__,
    }
    text = json.dumps({**machine, **key}, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    path = get_cache_folder() / "measured" / f"{name}.json"
    entry = read_cache_entry(path)
    if entry is not None:
        return parse_as(kind, entry["found"], "found")
    measurement = measure()
    content: object = measurement
    if is_dataclass(measurement) and not isinstance(measurement, type):
        content = to_json(measurement)
    # A home directory that is not writable only costs a second per run.
    with contextlib.suppress(OSError):
        write_cache_entry(path, {**machine, **key, "found": content})
    return measurement


def best_duration_s(
    call: Callable[[], object], repeats: int, synchronize: Callable[[], None] = lambda: None
) -> float:
    """Return the shortest duration of `repeats` calls in seconds, including queued GPU work."""
    durations_s = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        durations_s.append(time.perf_counter() - start)
    return min(durations_s)
