"""`edgetl doctor`: inspect the environment and suggest a command for each problem."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import edgetl
from edgetl import __version__
from edgetl.core.files import SCHEMA
from edgetl.core.paths import StrPath
from edgetl.core.registry import install_command
from edgetl.core.runtimes import ONNXRUNTIME, RUNTIMES
from edgetl.core.typed_json import JsonObject, parse_as, to_json
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.hardware.info import collect_device_info, installed_version
from edgetl.device.hardware.procfs import PROC, SYS
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.cuda_libraries import find_missing_library, suggest_remedy
from edgetl.device.runtime.providers import CUDA_PROVIDERS, PROVIDERS

PROBE_TIMEOUT_S = 120
# y = Relu(x) on one float, opset 17: a minimal model for starting a session.
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
_COUNT_NODES_SCRIPT = """
import json, sys
sys.path.append({root!r})
from pathlib import Path
from edgetl.device.runtime.node_counts import count_nodes
print(json.dumps(count_nodes(Path({model!r}), {provider!r}, {precision!r})))
"""
_IMPORT_SCRIPT = """
import sys
sys.path.append({root!r})
import {module}
print("true")
"""
_CUDA_PROVIDER_NAMES = tuple(PROVIDERS[name] for name in CUDA_PROVIDERS)
_TORCH_SCRIPT = """
import json, torch, torchvision
gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
print(json.dumps({"gpus": gpus, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}))
"""


def list_providers() -> tuple[list[str], str | None]:
    """Return (onnxruntime's execution providers, None), or ([], the reason of the import error)."""
    providers, stderr = _run_probe(_LIST_PROVIDERS_SCRIPT)
    if providers is None:
        return [], _last_line(stderr)
    return providers, None


def try_provider(name: str) -> str | None:
    """Start a session on a provider. Return None if it starts, else the reason.

    onnxruntime lists every provider that it was built with, also those that cannot start.
    """
    script = _START_SESSION_SCRIPT.format(
        name=name, root=_import_root(), cuda=name in _CUDA_PROVIDER_NAMES
    )
    provider, stderr = _run_probe(script)
    if provider == name:
        return None
    library = find_missing_library(stderr)
    if library is not None:
        return f"{library} is missing"
    reason = re.search(r"with error: ([^\n]*?)(?:: No such file[^\n]*)?$", stderr, re.MULTILINE)
    if reason:
        return reason.group(1).strip()
    return "onnxruntime fell back to another provider" if provider else _last_line(stderr)


def place_nodes(bundle: Bundle, provider: str) -> list[NodePlacement]:
    """Count the nodes of a bundle's ONNX variants by execution provider.

    Args:
        bundle: the bundle.
        provider: onnxruntime's name of the provider that is asked to run them.

    Raises:
        BundleError: a file is missing or altered.
    """
    short_name = next((name for name, item in PROVIDERS.items() if item == provider), None)
    if short_name in (None, "cpu"):
        return []
    placements = []
    for variant in bundle.variants:
        if variant.runtime != ONNXRUNTIME:
            continue
        script = _COUNT_NODES_SCRIPT.format(
            root=_import_root(),
            model=str(bundle.variant_paths(variant)[0].resolve()),
            provider=short_name,
            precision=variant.precision,
        )
        reply, stderr = _run_probe(script)
        nodes, problem = ({}, _last_line(stderr)) if reply is None else reply
        placements.append(NodePlacement(variant.name, provider, nodes, problem))
    return placements


def try_runtime(name: str) -> str | None:
    """Import what sessions of a runtime need. Return None if it works, else the reason."""
    session = RUNTIMES[name].session
    module = RUNTIMES[name].module if session is None else session.partition(":")[0]
    imported, stderr = _run_probe(_IMPORT_SCRIPT.format(root=_import_root(), module=module))
    return None if imported else _last_line(stderr)


def try_torch() -> tuple[TorchInfo | None, str | None]:
    """Import torch and torchvision. Return (facts, None), or (None, the import error's reason)."""
    facts, stderr = _run_probe(_TORCH_SCRIPT)
    if facts is None:
        return None, _last_line(stderr)
    return parse_as(TorchInfo, facts, "torch"), None


def _import_root() -> str:
    return str(Path(edgetl.__file__).parents[1])


def _run_probe(script: str) -> tuple[Any, str]:
    """Run a script and return (JSON in its last line of output or None if it failed, stderr)."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [sys.executable, "-P", "-c", script]
    try:
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            env=environment,
            check=False,
        )
        if process.returncode != 0:
            return None, process.stderr or f"exit status {process.returncode}"
        return json.loads(process.stdout.splitlines()[-1]), process.stderr
    except (subprocess.TimeoutExpired, ValueError, IndexError) as cause:
        return None, str(cause)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no error message"


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
    """Problem with the environment."""

    what: str
    """Description of the problem."""
    effect: str
    """Affected commands."""
    remedy: str
    """Command that fixes it."""
    fatal: bool
    """Whether the device commands (predict, bench) cannot run."""


@dataclass(frozen=True)
class CoreCounts:
    """Numbers of CPU cores."""

    logical: int | None
    available: int
    """Cores that this process may use."""
    quota: float | None
    """CPU quota of its cgroups, in cores."""


@dataclass(frozen=True)
class TorchInfo:
    """GPUs and threads of the installed PyTorch."""

    gpus: tuple[str, ...]
    cuda: str | None
    """CUDA version that it was built for; None without CUDA."""
    threads: int


@dataclass(frozen=True)
class NodePlacement:
    """Nodes of a variant's graph by execution provider."""

    variant: str
    provider: str
    """Provider that is asked to run them, by onnxruntime's name."""
    nodes: Mapping[str, int]
    """Number of nodes by onnxruntime's provider; empty if there is a problem."""
    problem: str | None
    """Reason if the provider did not take all compute nodes."""


@dataclass(frozen=True)
class RuntimeInfo:
    """Installed or missing runtime of `edgetl.core.runtimes.RUNTIMES`."""

    title: str
    version: str | None
    """Version of its package; None if not installed."""
    install: str
    """Command that installs it."""
    problem: str | None = None
    """Reason why it cannot be imported."""

    @property
    def works(self) -> bool:
        """Whether it is installed and can be imported."""
        return self.version is not None and self.problem is None


@dataclass(frozen=True)
class Environment:
    """Software and hardware of this machine, with the problems found."""

    python: str
    executable: str
    system: str
    cpu: str | None
    cores: CoreCounts
    memory_bytes: int | None
    gpus: tuple[str, ...]
    """NVIDIA GPUs reported by the driver."""
    packages: Mapping[str, str | None]
    """Versions; None if not installed."""
    providers: Mapping[str, str | None]
    """onnxruntime's providers in its order of preference: None if it starts, else the reason."""
    runtimes: Mapping[str, RuntimeInfo]
    """Runtimes of edgetl by name."""
    torch: TorchInfo | None
    """None if torch is missing or cannot be imported."""
    findings: tuple[DoctorFinding, ...]
    placements: tuple[NodePlacement, ...] = ()
    """Nodes of the bundle's variants on every provider that starts, except the CPU's."""

    @property
    def fatal_findings(self) -> list[DoctorFinding]:
        """Findings that prevent predict and bench from running."""
        return [finding for finding in self.findings if finding.fatal]

    def to_json(self) -> JsonObject:
        """Return the output of `edgetl doctor --json`."""
        return {"schema": SCHEMA, "kind": "doctor", **to_json(self)}


def inspect_environment(
    proc: Path = PROC, sys_root: Path = SYS, bundle: StrPath | None = None
) -> Environment:
    """Inspect this machine.

    Heavy packages are imported in subprocesses, so that a crash is reported as a finding.

    Args:
        proc: mount point of procfs.
        sys_root: mount point of sysfs.
        bundle: a bundle or run whose variants are opened on every provider; None opens none.

    Raises:
        BundleError: the bundle is missing, or a file is altered.
    """
    opened_bundle = None if bundle is None else open_bundle(bundle)
    versions: dict[str, str | None] = {"edgetl": __version__}
    versions |= {
        name: installed_version(name)
        for name in (*DEVICE_PACKAGES, *ONNXRUNTIME_PACKAGES, *TRAIN_PACKAGES)
    }
    facts = collect_device_info(proc, sys_root)
    providers: dict[str, str | None] = {}
    problem: str | None = None
    if any(versions[name] for name in ONNXRUNTIME_PACKAGES):
        names, problem = list_providers()
        providers = {name: try_provider(name) for name in names}
    runtimes = _inspect_runtimes(versions, problem)
    placements: list[NodePlacement] = []
    if opened_bundle is not None:
        for name, problem in providers.items():
            placements += [] if problem else place_nodes(opened_bundle, name)
    findings = [*_runtime_findings(versions, runtimes), *_package_findings(versions)]
    cuda_problem = providers.get("CUDAExecutionProvider")
    if cuda_problem and facts.gpus:
        findings.append(_cuda_finding(facts.gpus[0], cuda_problem))
    torch: TorchInfo | None = None
    if versions["torch"] and versions["torchvision"]:
        torch, problem = try_torch()
        if problem:
            findings.append(_torch_import_finding(problem))
    return Environment(
        python=platform.python_version(),
        executable=sys.executable,
        system=f"{facts.system} {facts.machine}",
        cpu=facts.cpu,
        cores=CoreCounts(facts.cores, available_cores(proc, sys_root), facts.cpu_quota),
        memory_bytes=facts.memory_bytes,
        gpus=facts.gpus,
        packages=versions,
        providers=providers,
        runtimes=runtimes,
        torch=torch,
        findings=tuple(sorted(findings, key=lambda finding: not finding.fatal)),
        placements=tuple(placements),
    )


def _cuda_finding(gpu: str, problem: str) -> DoctorFinding:
    return DoctorFinding(
        what=f"{gpu} is present, but CUDAExecutionProvider does not start: {problem}",
        effect="--provider cuda",
        remedy=suggest_remedy(problem),
        fatal=False,
    )


def _torch_import_finding(problem: str) -> DoctorFinding:
    return DoctorFinding(
        what=f"torch and torchvision cannot be imported: {problem}",
        effect="finetune, export",
        remedy="pip install --upgrade torch torchvision   (both in one command)",
        fatal=False,
    )


def _inspect_runtimes(
    versions: Mapping[str, str | None], onnxruntime_problem: str | None
) -> dict[str, RuntimeInfo]:
    """Return the runtimes by name. Installed ones other than ONNX Runtime are imported."""
    runtimes = {}
    for name, runtime in RUNTIMES.items():
        if name == ONNXRUNTIME:
            version = next(filter(None, map(versions.get, ONNXRUNTIME_PACKAGES)), None)
            problem = onnxruntime_problem
        else:
            # The package has the name of the module, apart from hyphens.
            version = installed_version(runtime.module.replace("_", "-"))
            problem = None if version is None else try_runtime(name)
        command = install_command(runtime.module)
        runtimes[name] = RuntimeInfo(runtime.title, version, command, problem)
    return runtimes


def _runtime_findings(
    versions: Mapping[str, str | None], runtimes: Mapping[str, RuntimeInfo]
) -> list[DoctorFinding]:
    working = [f"{item.title} {item.version}" for item in runtimes.values() if item.works]
    findings = [
        DoctorFinding(
            what=f"{item.title} {item.version} cannot be imported: {item.problem}",
            effect=f"predict and bench with {item.title}",
            remedy=item.install.replace("install", "install --force-reinstall"),
            fatal=not working,
        )
        for item in runtimes.values()
        if item.problem is not None
    ]
    packages = [f"{name} {versions[name]}" for name in ONNXRUNTIME_PACKAGES if versions[name]]
    if len(packages) == 2:
        finding = DoctorFinding(
            what=f"{' and '.join(packages)} are both installed and overwrite each other's files",
            effect="predict, bench",
            remedy="pip uninstall --yes onnxruntime onnxruntime-gpu && "
            'pip install "edgetl[gpu]"   (or "edgetl[cpu]")',
            fatal=True,
        )
        findings.append(finding)
    if not packages:
        effect = "predict, bench, export"
        if working:
            effect = f"export, predict and bench with ONNX Runtime; not with {', '.join(working)}"
        finding = DoctorFinding(
            what="onnxruntime is not installed",
            effect=effect,
            remedy=f'{runtimes[ONNXRUNTIME].install}   (or "edgetl[gpu]")',
            fatal=not working,
        )
        findings.append(finding)
    return findings


def _package_findings(versions: Mapping[str, str | None]) -> list[DoctorFinding]:
    missing_base = [name for name in DEVICE_PACKAGES if versions[name] is None]
    missing_train = [name for name in TRAIN_PACKAGES if versions[name] is None]
    findings = []
    if missing_base:
        finding = DoctorFinding(
            what=f"{', '.join(missing_base)} not installed",
            effect="all commands",
            remedy="pip install edgetl",
            fatal=True,
        )
        findings.append(finding)
    if missing_train:
        finding = DoctorFinding(
            what=f"{', '.join(missing_train)} not installed",
            effect="finetune, export, PyTorch rows of bench; not needed on a device",
            remedy='pip install "edgetl[train]"',
            fatal=False,
        )
        findings.append(finding)
    return findings + _outdated_findings(versions)


def _outdated_findings(versions: Mapping[str, str | None]) -> list[DoctorFinding]:
    """Return packages older than edgetl's metadata requires; none if edgetl is not installed."""
    try:
        requirements = metadata.requires("edgetl") or []
    except metadata.PackageNotFoundError:
        return []
    findings = {}
    for requirement in requirements:
        requirement_name, separator, bounds = requirement.partition(";")[0].partition(">=")
        name = requirement_name.split("[")[0].strip()
        minimum = bounds.split(",")[0].strip()
        version = versions.get(name)
        if separator and version and _version_tuple(version) < _version_tuple(minimum):
            is_device_package = name in (*DEVICE_PACKAGES, *ONNXRUNTIME_PACKAGES)
            findings[name] = DoctorFinding(
                what=f"{name} {version} is older than {minimum}",
                effect="predict, bench" if is_device_package else "finetune, export",
                remedy=f'pip install --upgrade "{name}>={minimum}"',
                fatal=is_device_package,
            )
    return list(findings.values())


def _version_tuple(version: str) -> tuple[int, ...]:
    release = version.partition("+")[0].split(".")
    return tuple(int(part) for part in release if part.isdecimal())
