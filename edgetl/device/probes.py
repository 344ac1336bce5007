"""Trying heavy packages in processes of their own: one that crashes or hangs is a finding, not the end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import edgetl
from edgetl.device.cuda_libraries import missing_library
from edgetl.device.providers import CUDA_PROVIDERS, PROVIDERS

PROBE_SECONDS = 120
# y = Relu(x) on one float, opset 17: the smallest thing that a provider can be asked to take.
_TINY_MODEL = "CAg6QgoOCgF4EgF5IgRSZWx1OgASBmFncmFwaFoTCgF4Eg4KDAgBEggKAggBCgIIAWITCgF5Eg4KDAgBEggKAggBCgIIAUIECgAQEQ=="
_LIST = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
_START = f"""
import base64, json, sys
sys.path.append({{root!r}})
from edgetl.device.cuda_libraries import preload_cuda_libraries
import onnxruntime
if {{cuda}}:
    preload_cuda_libraries()
session = onnxruntime.InferenceSession(base64.b64decode({_TINY_MODEL!r}), providers=[{{name!r}}], enable_fallback=0)
print(json.dumps(session.get_providers()[0]))
"""
_CUDA = tuple(PROVIDERS[name] for name in CUDA_PROVIDERS)
_TORCH = """
import json, torch, torchvision
gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
print(json.dumps({"gpus": gpus, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}))
"""


def list_providers() -> tuple[list[str], str | None]:
    """(onnxruntime's execution providers, None), or ([], why it cannot be imported)."""
    answer, words = _ask(_LIST)
    return (answer, None) if answer is not None else ([], _last_line(words))


def try_provider(name: str) -> str | None:
    """None if a session starts on this provider, else what it lacks: being listed says only that the package knows it."""
    answer, words = _ask(
        _START.format(name=name, root=str(Path(edgetl.__file__).parents[1]), cuda=name in _CUDA)
    )
    if answer == name:
        return None
    library = missing_library(words)
    if library is not None:
        return f"{library} is missing"
    reason = re.search(r"with error: ([^\n]*?)(?:: No such file[^\n]*)?$", words, re.MULTILINE)
    return (
        reason.group(1).strip()
        if reason
        else "onnxruntime fell back to another provider"
        if answer
        else _last_line(words)
    )


def try_torch() -> tuple[dict[str, Any] | None, str | None]:
    """({"gpus", "cuda", "threads"}, None), or (None, why torch and torchvision cannot be imported)."""
    answer, words = _ask(_TORCH)
    return (answer, None) if answer is not None else (None, _last_line(words))


def _ask(program: str) -> tuple[Any, str]:
    """What `program` printed last, as JSON, and its words on standard error; None if it failed."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [sys.executable, "-P", "-c", program]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env=environment,
            check=False,
        )
        if done.returncode != 0:
            return None, done.stderr or f"ended with status {done.returncode}"
        return json.loads(done.stdout.splitlines()[-1]), done.stderr
    except (subprocess.TimeoutExpired, ValueError, IndexError) as cause:
        return None, str(cause)


def _last_line(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
