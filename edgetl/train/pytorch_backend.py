"""The full PyTorch model as a benchmark backend: the baseline at its honest best.

In inference mode, with the threads that ONNX Runtime gets; the memory format is the faster one on this device.
Eager is the model as it was trained: nothing is fused or compiled. The other modes are measured where they are asked for,
see `edgetl.core.config.torch_modes`.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter_ns
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.config.torch_modes import TORCH_MODES
from edgetl.core.errors import BenchError, ProviderError
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.bench.backend import ModelSource, Stage
from edgetl.device.runtime.preprocessing import resize_and_crop
from edgetl.device.runtime.providers import CUDA_PROVIDERS
from edgetl.train.common.cuda_graph import CudaGraphRunner
from edgetl.train.common.operator_profile import operator_profile
from edgetl.train.model.factory import load_run_model

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}


class PixelsToLogits(nn.Module):
    """uint8 [batch, R, R, 3] to logits: what an ONNX variant with input `image` does once its resize is the identity."""

    def __init__(
        self,
        network: nn.Module,
        contract: Preprocessing,
        memory_format: torch.memory_format,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.model, self.preprocessing, self.memory_format, self.dtype = (
            network,
            contract,
            memory_format,
            dtype,
        )
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (contract.mean, contract.std)
        )
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Crop, scale, normalise, network."""
        top, left = self.preprocessing.compute_crop_offset(pixels.shape[1], pixels.shape[2])
        cropped = pixels[
            :, top : top + self.preprocessing.crop, left : left + self.preprocessing.crop
        ].permute(0, 3, 1, 2)
        scaled = cropped.to(torch.float32, memory_format=self.memory_format)
        normalised = torch.addcmul(self.shift, scaled, self.scale)  # type: ignore[arg-type]
        logits: torch.Tensor = self.model(
            normalised.to(self.dtype, memory_format=self.memory_format)
        )
        return logits


class PyTorchBackend:
    """A run's network, fed with numpy arrays and answering with them."""

    def __init__(self, source: ModelSource) -> None:
        torch.set_num_threads(source.threads)
        if torch.get_num_interop_threads() != 1:  # may be set once in a process only
            torch.set_num_interop_threads(1)
        self.provider = "cuda" if source.provider in CUDA_PROVIDERS else "cpu"
        self._device = torch.device(self.provider)
        self._mode_name = str(source.settings.get("mode", "eager"))
        self._mode = TORCH_MODES[self._mode_name]
        self._dtype: torch.dtype = getattr(torch, self._mode.dtype)
        if self._mode.gpu_only and self._device.type == "cpu":
            raise BenchError(
                f"The PyTorch mode {self._mode_name} runs on a GPU only: add --provider cuda, or leave it out of --pytorch."
            )
        if self._device.type == "cuda":
            if not torch.cuda.is_available():
                raise ProviderError(
                    "PyTorch sees no CUDA device, so there is no baseline on the GPU. `edgetl doctor` shows what it sees."
                )
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision(
                "high"
            )  # TF32, as ONNX Runtime's CUDA provider does by default
        loaded = load_run_model(RunDirectory.open(source.model))
        self._preprocessing, self._batch_size = loaded.preprocessing, source.batch
        self._model = loaded.model.eval().to(self._device, self._dtype)
        self._set_memory_format(str(source.settings.get("memory_format", CONTIGUOUS)))

    def _set_memory_format(self, memory_format: str) -> None:
        self._memory_format = _FORMATS[memory_format]
        self._model.to(memory_format=self._memory_format)
        arguments = self._mode.get_compile_arguments(self._device.type)
        self._tensor_model = self._model if arguments is None else _compile(self._model, arguments)
        self._image_model: nn.Module = (
            PixelsToLogits(
                self._tensor_model, self._preprocessing, self._memory_format, self._dtype
            )
            .eval()
            .to(self._device)
        )
        if arguments is not None and self._device.type == "cuda":
            # As a whole: scaling and normalization are launches too.
            whole = (
                PixelsToLogits(self._model, self._preprocessing, self._memory_format, self._dtype)
                .eval()
                .to(self._device)
            )
            self._image_model = _compile(whole, arguments)
        self._graph_runner = (
            CudaGraphRunner(self._forward, self._device) if self._mode.uses_cuda_graph else None
        )

    def infer(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Logits for uint8 [batch, R, R, 3] or float32 [batch, 3, S, S]."""
        return self._download(self._compute(self._upload(batch)))

    def stages(self) -> list[Stage]:
        """One call on a CPU; on a GPU the copies apart."""
        if self._device.type == "cpu":
            return [("inference", self.infer)]
        return [
            ("to device", self._upload),
            ("inference", self._compute),
            ("to host", self._download),
        ]

    def _upload(self, batch: NDArray[Any]) -> torch.Tensor:
        given = torch.from_numpy(batch)
        given = (
            given.to(self._device)
            if self._graph_runner is None
            else self._graph_runner.upload(given)
        )
        self._synchronize()
        return given

    def _compute(self, given: torch.Tensor) -> torch.Tensor:
        logits = (
            self._forward(given) if self._graph_runner is None else self._graph_runner.run(given)
        )
        self._synchronize()
        return logits

    def _forward(self, given: torch.Tensor) -> torch.Tensor:
        """Launch the computation from uint8 [batch, R, R, 3] or float32 [batch, 3, S, S] to logits; don't wait for it."""
        with torch.inference_mode():
            if given.dtype == torch.uint8:
                return cast(torch.Tensor, self._image_model(given))
            return cast(
                torch.Tensor,
                self._tensor_model(given.to(self._dtype, memory_format=self._memory_format)),
            )

    @staticmethod
    def _download(logits: torch.Tensor) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = logits.float().cpu().numpy()
        return answer

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def preprocess_image(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Pillow's resize and crop; the rest is faster in torch."""
        return np.array(resize_and_crop(image, self._preprocessing)[None])

    def make_inputs(self, count: int) -> list[NDArray[Any]]:
        """Random pictures of the length after resize."""
        shape = (self._batch_size, self._preprocessing.resize, self._preprocessing.resize, 3)
        generator = np.random.default_rng(0)
        return [generator.integers(0, 256, shape, np.uint8) for _ in range(count)]

    def autotune(self, batch: NDArray[Any]) -> dict[str, Any]:
        """The faster memory format: both take turns, and each is judged by its best turn, which other processes spoil least.

        A compiled network chooses its own layouts; it is only tried.

        Raises:
            BenchError: it cannot be compiled here.
        """
        if self._mode.uses_compile:
            try:
                self.infer(batch)
            except Exception as cause:  # the compiler's own errors and those of a missing C++ compiler share no base class
                raise BenchError(
                    _compile_error_message(str(cause).strip() or type(cause).__name__)
                ) from cause
            return {"memory_format": CONTIGUOUS}
        runs, turns = 8, 5
        medians: dict[str, list[float]] = {name: [] for name in _FORMATS}
        for _ in range(turns):
            for name, found in medians.items():
                self._set_memory_format(name)
                self.infer(batch)
                found.append(median(self._latency_ns(batch) for _ in range(runs)))
        best = min(medians, key=lambda name: min(medians[name]))
        self._set_memory_format(best)
        return {"memory_format": best}

    def _latency_ns(self, batch: NDArray[Any]) -> int:
        start = perf_counter_ns()
        self.infer(batch)
        return perf_counter_ns() - start

    def profile(self, batch: NDArray[Any], runs: int) -> dict[str, Any]:
        """Return PyTorch's operators by its own profiler: time on the GPU, or on a CPU the host's, each without those it calls."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(runs):
                self.infer(batch)
        return operator_profile(profiler.key_averages(), runs, self.provider)

    def describe(self, batch: NDArray[Any]) -> dict[str, Any]:
        """What shapes the latency."""
        return {
            "torch": torch.__version__,
            "mode": f"{self._mode_name}, inference_mode",
            "dtype": self._mode.dtype,
            "tf32": self._device.type == "cuda" and self._dtype == torch.float32,
            "cuda_graph": self._mode.uses_cuda_graph,
            "compile_arguments": self._mode.get_compile_arguments(self._device.type),
            "intra_op_threads": torch.get_num_threads(),
            "inter_op_threads": torch.get_num_interop_threads(),
            "device": torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu",
            "mkldnn": bool(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
            "capability": torch.backends.cpu.get_cpu_capability(),
        }


def _compile_error_message(words: str) -> str:
    if "No working C++ compiler" in words:
        return "torch.compile needs a C++ compiler, and there is none: `sudo apt install g++` adds it, or leave `compile` out of --pytorch."
    return f"torch.compile does not work here: {words.splitlines()[0].rstrip('.')}. Leave `compile` out of --pytorch."


def _compile(module: nn.Module, arguments: dict[str, str]) -> nn.Module:
    return cast(nn.Module, torch.compile(module, **arguments))  # type: ignore[call-overload]
