"""Device and precision of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.core.config.finetune import Device, FinetuneConfig, Precision
from edgetl.core.errors import ConfigError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.hardware.info import cpu_flags
from edgetl.train.common.autotune import best_duration_s

PrecisionName = Literal["fp32", "bf16", "fp16"]
Tensors = tuple[Tensor, ...]
TensorFunction = Callable[..., Tensors]
"""Function from the values at one cut to those at another; the first axis is the batch."""

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MIN_TENSOR_CORE_CAPABILITY = 7
"""Lowest CUDA compute capability with fast float16 (Volta, Turing; newer GPUs have bfloat16)."""


@dataclass(frozen=True)
class ComputeConfig:
    """Device and precision of the forward and backward passes."""

    device: torch.device
    precision: PrecisionName
    may_use_bf16: bool = False
    """Whether bfloat16 may be used if it is faster: the hardware has it and the user allows it."""

    @property
    def device_name(self) -> str:
        """Name of the device in metrics.json."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def autocast(self, cache_enabled: bool = True) -> AbstractContextManager[None]:
        """Autocast to the 16-bit type, if there is one; weights stay float32.

        Args:
            cache_enabled: False casts weights again at each use, which CUDA graphs require.
        """
        dtype = _AUTOCAST[self.precision]
        return torch.autocast(
            self.device.type,
            dtype or torch.bfloat16,
            enabled=dtype is not None,
            cache_enabled=cache_enabled,
        )

    def make_grad_scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler that scales the loss for float16 and does nothing otherwise.

        Source: Micikevicius et al., "Mixed Precision Training" (2018).
        """
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def synchronize(self) -> None:
        """Wait until the device is idle, to read a clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_gpu_memory_bytes(self) -> int | None:
        """Return the peak memory of PyTorch's tensors on the GPU so far; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def to_model_input(self, batch: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Convert uint8 [batch, S, S, 3] to normalized float32 [batch, 3, S, S], channels last."""
        moved = batch.to(self.device, non_blocking=True)
        images, height, width, _ = moved.shape
        # By rows of pixels: broadcasting over three channels is seven times slower.
        mean, factor = _normalization_row(preprocessing, width, self.device)
        scaled = moved.view(images, height, 3 * width).float().sub_(mean).mul_(factor)
        return scaled.view(images, height, width, 3).permute(0, 3, 1, 2)


@contextmanager
def cudnn_autotuning(enabled: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape inside the block.

    Sets `torch.backends.cudnn.benchmark`. Pays off for shapes that recur often. No effect with
    deterministic algorithms, because the fastest algorithm may differ between two runs.
    """
    previous = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = enabled and not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = previous


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device`; to a GPU from pinned memory, without blocking the host."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@lru_cache(maxsize=8)
def _normalization_row(
    preprocessing: Preprocessing, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Cached, because creating them would synchronize with the GPU at every batch.
    mean, std = (
        torch.tensor(values).repeat(width) * 255
        for values in (preprocessing.mean, preprocessing.std)
    )
    return mean.to(device), (1 / std).to(device)


def choose_compute_config(device: Device, precision: Precision) -> ComputeConfig:
    """Choose device and precision.

    `auto` is CUDA if available, with bfloat16, or with float16 on tensor cores without bfloat16. On
    a CPU, `auto` allows bfloat16 if it is later measured to be faster.

    Raises:
        ConfigError: the requested device or precision is not available; there is no fallback.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "{device} cuda: PyTorch sees no CUDA device. Run `edgetl doctor` to see why, "
            "or use {device} cpu.",
            FinetuneConfig,
        )
    if device == "cpu" or not torch.cuda.is_available():
        return _choose_cpu_config(precision)
    return _choose_cuda_config(precision)


def _choose_cpu_config(precision: Precision) -> ComputeConfig:
    device = torch.device("cpu")
    if precision == "fp16":
        raise ConfigError(
            "{precision} fp16 is for GPUs; CPUs emulate it. Use {precision} auto.", FinetuneConfig
        )
    if precision == "bf16":
        return ComputeConfig(device, "bf16", may_use_bf16=True)
    return ComputeConfig(device, "fp32", may_use_bf16=precision == "auto" and cpu_has_bf16())


def _choose_cuda_config(precision: Precision) -> ComputeConfig:
    device = torch.device("cuda")
    # Validation is specified as float32; cuDNN would round it to TF32.
    torch.backends.cudnn.allow_tf32 = False
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        raise ConfigError(
            "{precision} bf16: this GPU has no bfloat16. Use {precision} fp16 or fp32.",
            FinetuneConfig,
        )
    if precision != "auto":
        return ComputeConfig(device, precision)
    has_fast_fp16 = torch.cuda.get_device_capability(device)[0] >= _MIN_TENSOR_CORE_CAPABILITY
    if has_bf16:
        return ComputeConfig(device, "bf16")
    return ComputeConfig(device, "fp16" if has_fast_fp16 else "fp32")


def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware; otherwise PyTorch emulates it.

    The instructions are AVX512_BF16 or AMX on x86 and BF16 on ARM.
    """
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def keep_slow_kernels_in_float32(model: nn.Module) -> None:
    """Compute strided grouped convolutions in float32 under CPU autocast.

    oneDNN has no fast backward kernel for them in bfloat16 (PyTorch 2.11 and 2.15): one such layer
    took half of a step of MobileNetV2's last five blocks, 3.5 ms per image instead of 1.9.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1:
            module.forward = partial(_forward_in_float32, module)  # type: ignore[method-assign]


def _forward_in_float32(module: nn.Conv2d, values: Tensor) -> Tensor:
    under_autocast = torch.is_autocast_enabled(values.device.type)
    with torch.autocast(values.device.type, enabled=False):
        inputs = values.float() if under_autocast else values
        output: Tensor = module._conv_forward(inputs, module.weight, module.bias)
    return output


def measure_step_ms(
    model: nn.Module,
    forward: Callable[..., Tensor],
    values: Tensors,
    labels: Tensor,
    compute_config: ComputeConfig,
) -> dict[PrecisionName, float]:
    """Return the time of a forward and backward pass in each allowed precision.

    The state of the model does not change.
    """
    precisions: list[PrecisionName] = [compute_config.precision]
    if compute_config.may_use_bf16:
        precisions = ["fp32", "bf16"]
    with preserve_model_state(model), cudnn_autotuning(True):
        return {
            precision: _time_step_ms(
                forward, values, labels, replace(compute_config, precision=precision)
            )
            for precision in precisions
        }


def _time_step_ms(
    forward: Callable[..., Tensor], values: Tensors, labels: Tensor, compute_config: ComputeConfig
) -> float:
    def run_step() -> None:
        with compute_config.autocast():
            loss = F.cross_entropy(forward(*values).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    run_step()  # builds the kernels
    return best_duration_s(run_step, 2, compute_config.synchronize) * 1e3


@contextmanager
def preserve_model_state(model: nn.Module) -> Iterator[None]:
    """Restore buffers, gradients (to None) and random generators after the block.

    Only the generators of the CPU and of the model's GPU are saved: saving those of every GPU would
    create a CUDA context on each.
    """
    buffers = list(model.buffers())
    saved = [buffer.clone() for buffer in buffers]
    gpus = {
        tensor.device for tensor in (*model.parameters(), *buffers) if tensor.device.type == "cuda"
    }
    gpu_indices = [torch.cuda.current_device() if gpu.index is None else gpu.index for gpu in gpus]
    try:
        with torch.random.fork_rng(devices=gpu_indices, device_type="cuda"):
            yield
    finally:
        with torch.no_grad():
            # One kernel launch per dtype: lists of several dtypes are copied tensor by tensor.
            for dtype in {buffer.dtype for buffer in buffers}:
                pairs = [
                    pair for pair in zip(buffers, saved, strict=True) if pair[0].dtype == dtype
                ]
                torch._foreach_copy_([buffer for buffer, _ in pairs], [copy for _, copy in pairs])
        model.zero_grad(set_to_none=True)
