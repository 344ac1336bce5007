"""The full PyTorch model as a benchmark backend: the baseline at its honest eager best.

Eager, in inference mode, with the threads that ONNX Runtime gets; the memory format is the faster one on this device.
Nothing is fused or compiled: that would be another model than the one that was trained.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.errors import ProviderError
from edgetl.core.layout import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.backends import Source
from edgetl.device.preprocessing import resize_and_crop
from edgetl.train.models import load_run_model

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}
_CUDA_PROVIDERS = ("cuda", "tensorrt")


class PixelsToLogits(nn.Module):
    """uint8 [batch, R, R, 3] to logits: what an ONNX variant with input `image` does once its resize is the identity."""

    def __init__(self, network: nn.Module, contract: Preprocessing, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.network, self.contract, self.memory_format = network, contract, memory_format
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (contract.mean, contract.std))
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Crop, scale, normalise, network."""
        top, left = self.contract.crop_box(pixels.shape[1], pixels.shape[2])
        cropped = pixels[:, top : top + self.contract.crop, left : left + self.contract.crop].permute(0, 3, 1, 2)
        scaled = cropped.to(torch.float32, memory_format=self.memory_format)
        normalised = torch.addcmul(self.shift, scaled, self.scale)  # type: ignore[arg-type]
        logits: torch.Tensor = self.network(normalised.contiguous(memory_format=self.memory_format))
        return logits


class PyTorchBackend:
    """A run's network, fed with numpy arrays and answering with them."""

    def __init__(self, source: Source) -> None:
        torch.set_num_threads(source.threads)
        if torch.get_num_interop_threads() != 1:  # may be set once in a process only
            torch.set_num_interop_threads(1)
        self.provider = "cuda" if source.provider in _CUDA_PROVIDERS else "cpu"
        self._device = torch.device(self.provider)
        if self._device.type == "cuda":
            if not torch.cuda.is_available():
                raise ProviderError("PyTorch sees no CUDA device, so there is no baseline on the GPU. `edgetl doctor` shows what it sees.")
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # TF32, as ONNX Runtime's CUDA provider does by default
        loaded = load_run_model(RunDirectory.open(source.model))
        self._contract = loaded.preprocessing
        self._network = loaded.network.eval().to(self._device)
        self._arrange(str(source.settings.get("memory_format", CONTIGUOUS)))

    def _arrange(self, memory_format: str) -> None:
        self._format = _FORMATS[memory_format]
        self._network.to(memory_format=self._format)
        self._pixels = PixelsToLogits(self._network, self._contract, self._format).eval().to(self._device)

    def infer(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Logits for uint8 [batch, R, R, 3] or float32 [batch, 3, S, S]; on a GPU the copy back waits for the answer."""
        with torch.inference_mode():
            given = torch.from_numpy(batch).to(self._device)
            if given.dtype == torch.uint8:
                answer: NDArray[np.float32] = self._pixels(given).cpu().numpy()
            else:
                answer = self._network(given.contiguous(memory_format=self._format)).cpu().numpy()
            return answer

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Pillow's resize and crop; the rest is faster in torch."""
        return np.array(resize_and_crop(image, self._contract)[None])

    def inputs(self, count: int) -> list[NDArray[Any]]:
        """Random pictures of the length after resize."""
        shape = (1, self._contract.resize, self._contract.resize, 3)
        generator = np.random.default_rng(0)
        return [generator.integers(0, 256, shape, np.uint8) for _ in range(count)]

    def settle(self, batch: NDArray[Any]) -> dict[str, Any]:
        """The faster memory format: both take turns, and each is judged by its best turn, which other processes spoil least."""
        runs, turns = 8, 5
        medians: dict[str, list[float]] = {name: [] for name in _FORMATS}
        for _ in range(turns):
            for name, found in medians.items():
                self._arrange(name)
                self.infer(batch)
                found.append(median(self._latency_ns(batch) for _ in range(runs)))
        best = min(medians, key=lambda name: min(medians[name]))
        self._arrange(best)
        return {"memory_format": best}

    def _latency_ns(self, batch: NDArray[Any]) -> int:
        start = perf_counter_ns()
        self.infer(batch)
        return perf_counter_ns() - start

    def describe(self, batch: NDArray[Any]) -> dict[str, Any]:
        """What shapes the latency."""
        return {
            "torch": torch.__version__,
            "mode": "eager, inference_mode",
            "intra_op_threads": torch.get_num_threads(),
            "inter_op_threads": torch.get_num_interop_threads(),
            "device": torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu",
            "mkldnn": bool(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
