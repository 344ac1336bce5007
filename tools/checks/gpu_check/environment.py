"""Package versions, ONNX Runtime provider startup, and peak matmul and copy rates."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tools.checks.gpu_check.clock import device_ms
from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.wheels import nvidia_libraries

PACKAGES = (
    "torch", "torchvision", "onnxruntime-gpu", "onnxruntime", "onnx", "numpy", "pillow",
    "albumentations", "opencv-python-headless", "nvidia-ml-py",
)  # fmt: skip
_OPEN_SESSION = """
import sys
from pathlib import Path
from edgetl.device.runtime.session import create_session
session = create_session(Path(sys.argv[1]), sys.argv[2])
assert "torch" not in sys.modules
print(session.get_providers()[0])
"""


def check_environment(settings: Settings, record: Record) -> None:
    """Run step `environment`: versions, the execution provider, and peak rates."""
    device = settings.device
    packages = {name: _version(name) for name in PACKAGES}
    record.measure(
        python=platform.python_version(), packages=packages, torch_cuda=torch.version.cuda
    )
    if device == "cuda":
        record.measure(gpu=_gpu_facts(), driver=_driver())
    _check_provider(settings, record)
    side = 256 if settings.rehearsal else 8192
    values = torch.randn(side, side, device=device).to(torch.bfloat16)
    matmul_ms = device_ms(lambda: values @ values, 20, device)
    record.measure(bf16_matmul_tflops=2 * side**3 / matmul_ms / 1e9)
    finite = bool(torch.isfinite(values @ values).all())
    record.require("a bf16 matrix product is finite", finite)
    _measure_copies(settings, record)


def _check_provider(settings: Settings, record: Record) -> None:
    # Use a process without PyTorch, like `edgetl predict`: PyTorch would load the CUDA libraries.
    model = write_addition(settings.folder / "addition.onnx")
    command = [sys.executable, "-c", _OPEN_SESSION, str(model), settings.device]
    # Remove the folders that --wheels adds for other steps: edgetl must find the libraries itself.
    library_path = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    remaining = [folder for folder in library_path if folder not in nvidia_libraries()]
    variables = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(remaining)}
    process = subprocess.run(command, capture_output=True, text=True, env=variables)
    last_line = (process.stdout.strip() or process.stderr.strip()).rpartition("\n")[2]
    expected = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[settings.device]
    started = process.returncode == 0 and last_line == expected
    text = "ONNX Runtime's provider starts in a process without PyTorch"
    record.require(text, started, last_line)


def _measure_copies(settings: Settings, record: Record) -> None:
    device = settings.device
    count = 2**18 if settings.rehearsal else 2**28
    source = torch.zeros(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy_ms = device_ms(lambda: target.copy_(source), 20, device)
    record.measure(copy_on_device_gb_per_s=2 * source.nbytes / copy_ms / 1e6)
    if device == "cuda":
        host = torch.empty(2**26, dtype=torch.float32, pin_memory=True)
        part = target[: len(host)]
        upload_ms = device_ms(lambda: part.copy_(host, non_blocking=True), 5, device)
        download_ms = device_ms(lambda: host.copy_(part, non_blocking=True), 5, device)
        record.measure(copy_to_device_gb_per_s=host.nbytes / upload_ms / 1e6)
        record.measure(copy_to_host_gb_per_s=host.nbytes / download_ms / 1e6)
    equal = torch.equal(source, target) if device == "cpu" else bool((target[2**26 :] == 0).all())
    record.require("copies keep the values", equal)


def write_addition(path: Path) -> Path:
    """Write an ONNX file that adds 1 to a float32 vector."""
    import onnx
    from onnx import TensorProto, helper

    vector = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    addend = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    node = helper.make_node("Add", ["x", "one"], ["y"])
    graph = helper.make_graph([node], "addition", vector[:1], vector[1:], [addend])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(path))
    return path


def _gpu_facts() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        process = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown: cannot run nvidia-smi"
    return process.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
