"""Where training runs and in which arithmetic."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from edgetl.core.errors import ConfigError
from edgetl.core.finetuning import Device, Precision
from edgetl.core.preprocessing import Preprocessing


@dataclass(frozen=True)
class Computing:
    """A device with the precision of its forward and backward passes."""

    device: torch.device
    precision: Literal["fp32", "bf16"]
    may_use_bf16: bool = False
    """Whether bfloat16 may be taken where it is measured faster: nothing else was asked for, and the hardware has it."""

    @property
    def name(self) -> str:
        """As it stands in metrics.json."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def arithmetic(self) -> AbstractContextManager[None]:
        """Autocast to bfloat16, or nothing; weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def network_input(self, batch: Tensor, preprocessing: Preprocessing) -> Tensor:
        """uint8 [batch, S, S, 3] to normalised float32 [batch, 3, S, S], channels last, on the device."""
        moved = batch.to(self.device, non_blocking=True)
        images, height, width, _ = moved.shape
        # In rows of pixels: broadcasting along three channels is seven times slower.
        mean, factor = _row(preprocessing, width, self.device)
        scaled = moved.view(images, height, 3 * width).float().sub_(mean).mul_(factor)
        return scaled.view(images, height, width, 3).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _row(preprocessing: Preprocessing, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept: making them anew would have a GPU wait at every batch.
    mean, std = (torch.tensor(values).repeat(width) * 255 for values in (preprocessing.mean, preprocessing.std))
    return mean.to(device), (1 / std).to(device)


def choose_computing(device: Device, precision: Precision) -> Computing:
    """`auto` takes CUDA where there is one, bfloat16 on CUDA devices that have it, and on CPUs that have it where it is measured faster.

    Raises:
        ConfigError: what was asked for explicitly is not there; nothing falls back silently.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device. `edgetl doctor` shows why; --device cpu trains without one.")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if chosen.type == "cpu":
        return Computing(chosen, "bf16" if precision == "bf16" else "fp32", precision == "bf16" or (precision == "auto" and cpu_has_bf16()))
    # float32 is what validation claims; cuDNN would round it to TF32.
    torch.backends.cudnn.allow_tf32 = False
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        raise ConfigError("--precision bf16: this GPU has no bfloat16. Take --precision fp32.")
    return Computing(chosen, "bf16" if precision != "fp32" and has_bf16 else "fp32")


def cpu_has_bf16(proc: Path = Path("/proc")) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512_BF16 or AMX on x86, BF16 on ARM); without that PyTorch emulates it."""
    try:
        lines = (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.partition(":")[2].split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
