"""Where training runs and in which arithmetic."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgetl.core.config import Device, Precision
from edgetl.core.errors import ConfigError
from edgetl.core.preprocessing import Preprocessing


@dataclass(frozen=True)
class Computing:
    """A device with the precision of its forward and backward passes."""

    device: torch.device
    precision: Literal["fp32", "bf16"]

    @property
    def name(self) -> str:
        """As it stands in metrics.json."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def arithmetic(self) -> AbstractContextManager[None]:
        """Autocast to bfloat16, or nothing; weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def network_input(self, batch: Tensor, preprocessing: Preprocessing) -> Tensor:
        """uint8 [batch, S, S, 3] to normalised float32 [batch, 3, S, S], channels last, on the device."""
        moved = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        return moved.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def choose_computing(device: Device, precision: Precision) -> Computing:
    """`auto` takes CUDA where there is one, and bfloat16 on CUDA devices that have it.

    Raises:
        ConfigError: what was asked for explicitly is not there; nothing falls back silently.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device. `edgetl doctor` shows why; --device cpu trains without one.")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    has_bf16 = chosen.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        raise ConfigError("--precision bf16: this GPU has no bfloat16. Take --precision fp32.")
    return Computing(chosen, "bf16" if precision == "bf16" or (precision == "auto" and chosen.type == "cuda" and has_bf16) else "fp32")
