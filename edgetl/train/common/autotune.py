"""Choices made by a short measurement: made once on a machine, remembered, so that two runs compute alike."""

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
    facts: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `measure` found on this machine for these facts, now or earlier.

    The device, its cores and PyTorch's version belong to the facts. Where nothing can be kept, it is measured each time.
    """
    machine = {
        "cpu": collect_device_info().get("cpu"),
        "cores": available_cores(),
        "torch": torch.__version__,
    }
    name = hashlib.sha256(json.dumps({**machine, **facts}, sort_keys=True).encode()).hexdigest()[
        :32
    ]
    path = get_cache_folder() / "measured" / f"{name}.json"
    entry = read_cache_entry(path)
    if entry is not None:
        earlier: dict[str, Any] = entry["found"]
        return earlier
    found = measure()
    with contextlib.suppress(
        OSError
    ):  # a home that cannot be written costs a second at each run, no more
        write_cache_entry(path, {**machine, **facts, "found": found})
    return found
