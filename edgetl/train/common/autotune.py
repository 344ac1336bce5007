"""Cached measurements, so that repeated runs on a machine make the same choices."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch

from edgetl.core.cache import get_cache_folder, read_cache_entry, write_cache_entry
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.info import collect_device_info


def cached_measurement(
    key: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return a measurement for `key`, from the cache or by calling `measure`.

    The CPU, its cores and PyTorch's version are added to the key. If the cache is not writable,
    every call measures.
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
        cached: dict[str, Any] = entry["found"]
        return cached
    measurement = measure()
    # A home directory that is not writable only costs a second per run.
    with contextlib.suppress(OSError):
        write_cache_entry(path, {**machine, **key, "found": measurement})
    return measurement
