"""Where training runs and in which arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.core.config.finetune import Device, Precision
from edgetl.core.errors import ConfigError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.hardware.info import cpu_flags

PrecisionName = Literal["fp32", "bf16", "fp16"]
Tensors = tuple[Tensor, ...]
TensorFunction = Callable[..., Tensors]
"""Takes the values at one cut, gives those at another; the first axis is the batch."""

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MIN_TENSOR_CORE_CAPABILITY = 7
"""CUDA compute capability from which on float16 is faster than float32 (Volta, Turing; newer GPUs have bfloat16)."""


@dataclass(frozen=True)
class ComputeConfig:
    """A device with the precision of its forward and backward passes."""

    device: torch.device
    precision: PrecisionName
    may_use_bf16: bool = False
    """Whether bfloat16 may be taken where it is measured faster: nothing else was asked for, and the hardware has it."""

    @property
    def device_name(self) -> str:
        """As it stands in metrics.json."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def autocast(self, cache_enabled: bool = True) -> AbstractContextManager[None]:
        """Autocast to a 16-bit type, or nothing; weights stay float32.

        Args:
            cache_enabled: False casts weights anew at each use, as a CUDA graph must.
        """
        dtype = _AUTOCAST[self.precision]
        return torch.autocast(
            self.device.type,
            dtype or torch.bfloat16,
            enabled=dtype is not None,
            cache_enabled=cache_enabled,
        )

    def make_grad_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss where gradients would vanish in float16 (Micikevicius et al., 2018); does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def synchronize(self) -> None:
        """Until the device has done what it was given: before reading a clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_gpu_memory_bytes(self) -> int | None:
        """The most that PyTorch's tensors have taken of the GPU so far; None without one."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def to_model_input(self, batch: Tensor, preprocessing: Preprocessing) -> Tensor:
        """uint8 [batch, S, S, 3] to normalised float32 [batch, 3, S, S], channels last, on the device."""
        moved = batch.to(self.device, non_blocking=True)
        images, height, width, _ = moved.shape
        # In rows of pixels: broadcasting along three channels is seven times slower.
        mean, factor = _normalization_row(preprocessing, width, self.device)
        scaled = moved.view(images, height, 3 * width).float().sub_(mean).mul_(factor)
        return scaled.view(images, height, width, 3).permute(0, 3, 1, 2)


@contextmanager
def cudnn_autotuning(enabled: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape inside the block (`torch.backends.cudnn.benchmark`).

    Pays off for shapes that come again many times. Which algorithm wins may differ between two runs, so nothing is
    timed where deterministic algorithms are asked for.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = enabled and not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device`; to a GPU from pinned memory, so that the host does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@lru_cache(maxsize=8)
def _normalization_row(
    preprocessing: Preprocessing, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Kept: making them anew would have a GPU wait at every batch.
    mean, std = (
        torch.tensor(values).repeat(width) * 255
        for values in (preprocessing.mean, preprocessing.std)
    )
    return mean.to(device), (1 / std).to(device)


def choose_compute_config(device: Device, precision: Precision) -> ComputeConfig:
    """`auto` takes CUDA where there is one; there bfloat16, or float16 on tensor cores without it; on CPUs bfloat16 if measured faster.

    Raises:
        ConfigError: what was asked for explicitly is not there; nothing falls back silently.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: PyTorch sees no CUDA device. `edgetl doctor` shows why; --device cpu trains without one."
        )
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if chosen.type == "cpu":
        if precision == "fp16":
            raise ConfigError(
                "--precision fp16 is for GPUs; CPUs emulate it. Take --precision auto."
            )
        return ComputeConfig(
            chosen,
            "bf16" if precision == "bf16" else "fp32",
            precision == "bf16" or (precision == "auto" and cpu_has_bf16()),
        )
    # float32 is what validation claims; cuDNN would round it to TF32.
    torch.backends.cudnn.allow_tf32 = False
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        raise ConfigError(
            "--precision bf16: this GPU has no bfloat16. Take --precision fp16 or fp32."
        )
    if precision == "auto":
        has_fp16 = torch.cuda.get_device_capability(chosen)[0] >= _MIN_TENSOR_CORE_CAPABILITY
        return ComputeConfig(chosen, "bf16" if has_bf16 else "fp16" if has_fp16 else "fp32")
    return ComputeConfig(chosen, precision)


def cpu_has_bf16(proc: Path = Path("/proc")) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512_BF16 or AMX on x86, BF16 on ARM); without that PyTorch emulates it."""
    return bool(cpu_flags(proc) & {"avx512_bf16", "amx_bf16", "bf16"})


def keep_slow_kernels_in_float32(network: nn.Module) -> None:
    """Strided grouped convolutions compute in float32 under autocast on a CPU.

    oneDNN has no fast backward kernel for them in bfloat16 (seen with PyTorch 2.11 and 2.15): that one layer took half of a step of
    MobileNetV2's last five blocks, 3.5 ms an image instead of 1.9.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1:
            module.forward = partial(_forward_in_float32, module)  # type: ignore[method-assign]


def _forward_in_float32(module: nn.Conv2d, values: Tensor) -> Tensor:
    under_autocast = torch.is_autocast_enabled(values.device.type)
    with torch.autocast(values.device.type, enabled=False):
        given = values.float() if under_autocast else values
        computed: Tensor = module._conv_forward(given, module.weight, module.bias)
    return computed


def measure_step_ms(
    network: nn.Module,
    forward: Callable[..., Tensor],
    values: Tensors,
    labels: Tensor,
    computing: ComputeConfig,
) -> dict[str, float]:
    """Time of a forward and backward pass in each arithmetic that may be chosen; the network is left as it was."""
    names: list[PrecisionName] = (
        ["fp32", "bf16"] if computing.may_use_bf16 else [computing.precision]
    )
    with preserve_model_state(network), cudnn_autotuning(True):
        return {
            name: _time_step_ms(forward, values, labels, replace(computing, precision=name))
            for name in names
        }


def _time_step_ms(
    forward: Callable[..., Tensor], values: Tensors, labels: Tensor, computing: ComputeConfig
) -> float:
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        with computing.autocast():
            loss = F.cross_entropy(forward(*values).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        computing.synchronize()
        taken.append(time.perf_counter() - started)
    # The first builds the kernels.
    return min(taken[1:]) * 1e3


@contextmanager
def preserve_model_state(network: nn.Module) -> Iterator[None]:
    """Restore buffers, gradients (to None) and random generators after the block, so that a measurement leaves no trace.

    Only the generators of the CPU and of the GPU that holds the network are saved: asking for every GPU's would make a
    CUDA context on each of them.
    """
    buffers = list(network.buffers())
    saved = [buffer.clone() for buffer in buffers]
    gpus = {
        tensor.device
        for tensor in (*network.parameters(), *buffers)
        if tensor.device.type == "cuda"
    }
    current = [torch.cuda.current_device() if gpu.index is None else gpu.index for gpu in gpus]
    try:
        with torch.random.fork_rng(devices=current, device_type="cuda"):
            yield
    finally:
        with torch.no_grad():
            # One launch for each type: lists of several types are copied tensor by tensor.
            for dtype in {buffer.dtype for buffer in buffers}:
                pairs = [
                    pair for pair in zip(buffers, saved, strict=True) if pair[0].dtype == dtype
                ]
                torch._foreach_copy_([buffer for buffer, _ in pairs], [copy for _, copy in pairs])
        network.zero_grad(set_to_none=True)
