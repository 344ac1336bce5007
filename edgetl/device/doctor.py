"""What this machine has, what it lacks, and the command that adds it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import edgetl
from edgetl import __version__
from edgetl.core.files import SCHEMA
from edgetl.device.hardware.cpu import available_cores, cgroup_cpu_quota
from edgetl.device.hardware.info import collect_device_info, installed_version
from edgetl.device.hardware.procfs import PROC, SYS
from edgetl.device.runtime.cuda_libraries import find_missing_library, suggest_remedy
from edgetl.device.runtime.providers import CUDA_PROVIDERS, PROVIDERS

PROBE_TIMEOUT_S = 120
# y = Relu(x) on one float, opset 17: the smallest thing that a provider can be asked to take.
_TINY_MODEL = "CAg6QgoOCgF4EgF5IgRSZWx1OgASBmFncmFwaFoTCgF4Eg4KDAgBEggKAggBCgIIAWITCgF5Eg4KDAgBEggKAggBCgIIAUIECgAQEQ=="
_LIST_PROVIDERS_SCRIPT = (
    "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
)
_START_SESSION_SCRIPT = f"""
import base64, json, sys
sys.path.append({{root!r}})
from edgetl.device.runtime.cuda_libraries import preload_cuda_libraries
import onnxruntime
if {{cuda}}:
    preload_cuda_libraries()
session = onnxruntime.InferenceSession(base64.b64decode({_TINY_MODEL!r}), providers=[{{name!r}}], enable_fallback=0)
print(json.dumps(session.get_providers()[0]))
"""
_CUDA_PROVIDER_NAMES = tuple(PROVIDERS[name] for name in CUDA_PROVIDERS)
_TORCH_SCRIPT = """
import json, torch, torchvision
gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
print(json.dumps({"gpus": gpus, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}))
"""


def list_providers() -> tuple[list[str], str | None]:
    """(onnxruntime's execution providers, None), or ([], why it cannot be imported)."""
    answer, words = _run_probe(_LIST_PROVIDERS_SCRIPT)
    return (answer, None) if answer is not None else ([], _last_line(words))


def try_provider(name: str) -> str | None:
    """None if a session starts on this provider, else what it lacks: being listed says only that the package knows it."""
    answer, words = _run_probe(
        _START_SESSION_SCRIPT.format(
            name=name, root=str(Path(edgetl.__file__).parents[1]), cuda=name in _CUDA_PROVIDER_NAMES
        )
    )
    if answer == name:
        return None
    library = find_missing_library(words)
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
    answer, words = _run_probe(_TORCH_SCRIPT)
    return (answer, None) if answer is not None else (None, _last_line(words))


def _run_probe(program: str) -> tuple[Any, str]:
    """What `program` printed last, as JSON, and its words on standard error; None if it failed."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [sys.executable, "-P", "-c", program]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
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


ONNXRUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
DEVICE_PACKAGES = ("numpy", "pillow", "typer", "rich")
TRAIN_PACKAGES = (
    "torch",
    "torchvision",
    "albumentations",
    "safetensors",
    "onnx",
    "onnxscript",
    "ml-dtypes",
    "matplotlib",
)


@dataclass(frozen=True)
class DoctorFinding:
    """Something that is not there or not right."""

    what: str
    effect: str
    """Which commands do without."""
    remedy: str
    """The command that mends it."""
    fatal: bool
    """Whether even a device's own commands (predict, bench) cannot work."""


@dataclass(frozen=True)
class Environment:
    """This machine as edgetl sees it."""

    python: str
    executable: str
    system: str
    cpu: str | None
    cores: Mapping[str, Any]
    """{"logical", "available", "quota"}."""
    memory_bytes: int | None
    gpus: tuple[str, ...]
    """NVIDIA GPUs that the driver shows."""
    packages: Mapping[str, str | None]
    """Versions; None where not installed."""
    providers: Mapping[str, str | None]
    """What onnxruntime lists, the one it prefers first: None where it starts here, else why not."""
    torch: Mapping[str, Any] | None
    """{"gpus", "cuda", "threads"}; None where torch is missing or cannot be imported."""
    findings: tuple[DoctorFinding, ...]

    @property
    def fatal_findings(self) -> list[DoctorFinding]:
        """What stops even predict and bench."""
        return [finding for finding in self.findings if finding.fatal]

    def to_json(self) -> dict[str, Any]:
        """What `edgetl doctor --json` prints."""
        return {"schema": SCHEMA, "kind": "doctor", **asdict(self)}


def inspect_environment(proc: Path = PROC, sys_root: Path = SYS) -> Environment:
    """Look at this machine. Heavy packages are tried in processes of their own: one that crashes is a finding, not the end."""
    versions: dict[str, str | None] = {"edgetl": __version__}
    versions |= {
        name: installed_version(name)
        for name in (*DEVICE_PACKAGES, *ONNXRUNTIME_PACKAGES, *TRAIN_PACKAGES)
    }
    findings = [*_runtime_findings(versions), *_package_findings(versions)]
    facts = collect_device_info(proc, sys_root)
    providers: dict[str, str | None] = {}
    if any(versions[name] for name in ONNXRUNTIME_PACKAGES):
        listed, problem = list_providers()
        providers = {name: try_provider(name) for name in listed}
        cuda = providers.get("CUDAExecutionProvider")
        if cuda and facts["gpus"]:
            what = f"{facts['gpus'][0]} is here, but CUDAExecutionProvider does not start: {cuda}"
            findings.append(DoctorFinding(what, "--provider cuda", suggest_remedy(cuda), False))
        if problem:
            command = 'pip install --force-reinstall "edgetl[cpu]"'
            findings.append(
                DoctorFinding(
                    f"onnxruntime cannot be imported: {problem}", "predict, bench", command, True
                )
            )
    torch: dict[str, Any] | None = None
    if versions["torch"] and versions["torchvision"]:
        torch, problem = try_torch()
        if problem:
            command = "pip install --upgrade torch torchvision   (the pair from one resolution)"
            findings.append(
                DoctorFinding(
                    f"torch and torchvision cannot be imported: {problem}",
                    "finetune, export",
                    command,
                    False,
                )
            )
    return Environment(
        python=platform.python_version(),
        executable=sys.executable,
        system=f"{facts['system']} {facts['machine']}",
        cpu=facts["cpu"],
        cores={
            "logical": os.cpu_count(),
            "available": available_cores(proc, sys_root),
            "quota": cgroup_cpu_quota(proc, sys_root),
        },
        memory_bytes=facts["memory_bytes"],
        gpus=tuple(facts["gpus"]),
        packages=versions,
        providers=providers,
        torch=torch,
        findings=tuple(sorted(findings, key=lambda finding: not finding.fatal)),
    )


def _runtime_findings(versions: Mapping[str, str | None]) -> list[DoctorFinding]:
    both = [f"{name} {versions[name]}" for name in ONNXRUNTIME_PACKAGES if versions[name]]
    if len(both) == 2:
        command = 'pip uninstall --yes onnxruntime onnxruntime-gpu && pip install "edgetl[gpu]"   (or "edgetl[cpu]")'
        what = f"{' and '.join(both)} are both installed and overwrite each other's files"
        return [DoctorFinding(what, "predict, bench", command, True)]
    if not both:
        return [
            DoctorFinding(
                "onnxruntime is not installed",
                "predict, bench, export",
                'pip install "edgetl[cpu]"   (or "edgetl[gpu]")',
                True,
            )
        ]
    return []


def _package_findings(versions: Mapping[str, str | None]) -> list[DoctorFinding]:
    base = [name for name in DEVICE_PACKAGES if versions[name] is None]
    train = [name for name in TRAIN_PACKAGES if versions[name] is None]
    findings = []
    if base:
        findings.append(
            DoctorFinding(
                f"{', '.join(base)} not installed", "everything", "pip install edgetl", True
            )
        )
    if train:
        effect = "finetune, export, PyTorch's rows of bench; a device does without"
        findings.append(
            DoctorFinding(
                f"{', '.join(train)} not installed", effect, 'pip install "edgetl[train]"', False
            )
        )
    return findings + _outdated_findings(versions)


def _outdated_findings(versions: Mapping[str, str | None]) -> list[DoctorFinding]:
    """Installed packages older than edgetl's own metadata asks for; silent where edgetl runs from a checkout."""
    try:
        requirements = metadata.requires("edgetl") or []
    except metadata.PackageNotFoundError:
        return []
    findings = {}
    for requirement in requirements:
        name, separator, least = requirement.partition(";")[0].partition(">=")
        name, least = name.split("[")[0].strip(), least.split(",")[0].strip()
        installed = versions.get(name)
        if separator and installed and _version_tuple(installed) < _version_tuple(least):
            device = name in (*DEVICE_PACKAGES, *ONNXRUNTIME_PACKAGES)
            effect = "predict, bench" if device else "finetune, export"
            findings[name] = DoctorFinding(
                f"{name} {installed} is older than {least}",
                effect,
                f'pip install --upgrade "{name}>={least}"',
                device,
            )
    return list(findings.values())


def _version_tuple(version: str) -> tuple[int, ...]:
    release = version.partition("+")[0].split(".")
    return tuple(int(part) for part in release if part.isdecimal())
