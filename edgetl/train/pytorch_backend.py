"""PyTorch backend of the benchmark: the full model as the baseline.

It runs in inference mode, with as many threads as ONNX Runtime and with the faster memory format on
this device. Eager mode is the model as trained, without fusion or compilation. The other modes are
measured on request, see `edgetl.core.config.torch_modes`.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter_ns
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.artifacts.run_metrics import read_trained_run
from edgetl.core.artifacts.session import OperatorProfile, SessionRecord
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
    """Model from uint8 [batch, R, R, 3] to logits, like an ONNX variant with input `image`.

    Its input is already resized.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        memory_format: torch.memory_format,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        self.memory_format = memory_format
        self.dtype = dtype
        mean = torch.tensor(preprocessing.mean).view(1, 3, 1, 1)
        std = torch.tensor(preprocessing.std).view(1, 3, 1, 1)
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Crop and normalize the pixels, then run the model."""
        size = self.preprocessing.crop
        top, left = self.preprocessing.compute_crop_offset(pixels.shape[1], pixels.shape[2])
        cropped = pixels[:, top : top + size, left : left + size].permute(0, 3, 1, 2)
        scaled = cropped.to(torch.float32, memory_format=self.memory_format)
        normalized = torch.addcmul(self.shift, scaled, self.scale)  # type: ignore[arg-type]
        logits: torch.Tensor = self.model(
            normalized.to(self.dtype, memory_format=self.memory_format)
        )
        return logits


class PyTorchBackend:
    """Backend that runs the model of a run directory on numpy arrays."""

    def __init__(self, source: ModelSource) -> None:
        torch.set_num_threads(source.threads)
        if torch.get_num_interop_threads() != 1:  # can be set only once per process
            torch.set_num_interop_threads(1)
        self.provider = "cuda" if source.provider in CUDA_PROVIDERS else "cpu"
        self._device = torch.device(self.provider)
        self._mode_name = source.settings.get("mode", "eager")
        self._mode = TORCH_MODES[self._mode_name]
        self._dtype: torch.dtype = getattr(torch, self._mode.dtype)
        if self._mode.gpu_only and self._device.type == "cpu":
            raise BenchError(
                f"The PyTorch mode {self._mode_name} requires a GPU. "
                "Add --provider cuda, or remove it from --pytorch."
            )
        if self._device.type == "cuda":
            if not torch.cuda.is_available():
                raise ProviderError(
                    "PyTorch sees no CUDA device, so it cannot run the baseline on the GPU. "
                    "Run `edgetl doctor` for details."
                )
            torch.backends.cudnn.benchmark = True
            # TF32, the default of ONNX Runtime's CUDA provider.
            torch.set_float32_matmul_precision("high")
        loaded = load_run_model(read_trained_run(RunDirectory.open(source.model)))
        self._preprocessing = loaded.preprocessing
        self._batch_size = source.batch
        self._model = loaded.model.eval().to(self._device, self._dtype)
        self._set_memory_format(source.settings.get("memory_format", CONTIGUOUS))

    def _set_memory_format(self, memory_format: str) -> None:
        self._memory_format = _FORMATS[memory_format]
        self._model.to(memory_format=self._memory_format)
        arguments = self._mode.get_compile_arguments(self._device.type)
        self._tensor_model = self._model if arguments is None else _compile(self._model, arguments)
        self._image_model = self._make_image_model(self._tensor_model)
        if arguments is not None and self._device.type == "cuda":
            # Compiled with scaling and normalization, which need kernel launches too.
            self._image_model = _compile(self._make_image_model(self._model), arguments)
        self._graph_runner = (
            CudaGraphRunner(self._forward, self._device) if self._mode.uses_cuda_graph else None
        )

    def _make_image_model(self, model: nn.Module) -> nn.Module:
        image_model = PixelsToLogits(model, self._preprocessing, self._memory_format, self._dtype)
        return image_model.eval().to(self._device)

    def infer(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Return logits for uint8 [batch, R, R, 3] or float32 [batch, 3, S, S]."""
        return self._download(self._compute(self._upload(batch)))

    def infer_confidence(self, batch: NDArray[Any]) -> None:
        """Return None: the PyTorch model computes only logits."""

    def stages(self) -> list[Stage]:
        """Return the timed stages: one on a CPU; on a GPU the copies are separate."""
        if self._device.type == "cpu":
            return [("inference", self.infer)]
        return [
            ("to device", self._upload),
            ("inference", self._compute),
            ("to host", self._download),
        ]

    def _upload(self, batch: NDArray[Any]) -> torch.Tensor:
        values = torch.from_numpy(batch)
        runner = self._graph_runner
        values = values.to(self._device) if runner is None else runner.upload(values)
        self._synchronize()
        return values

    def _compute(self, values: torch.Tensor) -> torch.Tensor:
        runner = self._graph_runner
        logits = self._forward(values) if runner is None else runner.run(values)
        self._synchronize()
        return logits

    def _forward(self, values: torch.Tensor) -> torch.Tensor:
        """Launch the model on uint8 [batch, R, R, 3] or float32 [batch, 3, S, S]; do not wait."""
        with torch.inference_mode():
            if values.dtype == torch.uint8:
                return cast(torch.Tensor, self._image_model(values))
            return cast(
                torch.Tensor,
                self._tensor_model(values.to(self._dtype, memory_format=self._memory_format)),
            )

    @staticmethod
    def _download(logits: torch.Tensor) -> NDArray[np.float32]:
        output: NDArray[np.float32] = logits.float().cpu().numpy()
        return output

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def preprocess_image(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Resize and crop with Pillow; normalization is faster in torch."""
        return np.array(resize_and_crop(image, self._preprocessing)[None])

    def prepare_batch(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return the batch unchanged."""
        return batch

    def make_inputs(self, count: int) -> list[NDArray[Any]]:
        """Return random images of the size after the resize."""
        shape = (self._batch_size, self._preprocessing.resize, self._preprocessing.resize, 3)
        generator = np.random.default_rng(0)
        return [generator.integers(0, 256, shape, np.uint8) for _ in range(count)]

    def autotune(self, batch: NDArray[Any]) -> dict[str, str]:
        """Choose the faster memory format.

        The formats take turns and are compared by their best turn, which other processes disturb
        least. A compiled model chooses its own layouts, so it is only run once.

        Raises:
            BenchError: the model cannot be compiled on this machine.
        """
        if self._mode.uses_compile:
            try:
                self.infer(batch)
            except Exception as cause:
                # Errors of the compiler and of a missing C++ compiler have no common base class.
                error = str(cause).strip() or type(cause).__name__
                raise BenchError(_compile_error_message(error)) from cause
            return {"memory_format": CONTIGUOUS}
        runs = 8
        turns = 5
        medians: dict[str, list[float]] = {name: [] for name in _FORMATS}
        for _ in range(turns):
            for name, values in medians.items():
                self._set_memory_format(name)
                self.infer(batch)
                values.append(median(self._latency_ns(batch) for _ in range(runs)))
        best = min(medians, key=lambda name: min(medians[name]))
        self._set_memory_format(best)
        return {"memory_format": best}

    def _latency_ns(self, batch: NDArray[Any]) -> int:
        start = perf_counter_ns()
        self.infer(batch)
        return perf_counter_ns() - start

    def profile(self, batch: NDArray[Any], runs: int) -> OperatorProfile:
        """Profile operators with PyTorch's profiler: self times on the GPU, or on the CPU."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(runs):
                self.infer(batch)
        return operator_profile(profiler.key_averages(), runs, self.provider)

    def describe(self, batch: NDArray[Any]) -> SessionRecord:
        """Return the settings that affect the latency."""
        return SessionRecord(
            torch=torch.__version__,
            mode=f"{self._mode_name}, inference_mode",
            dtype=self._mode.dtype,
            tf32=self._device.type == "cuda" and self._dtype == torch.float32,
            cuda_graph=self._mode.uses_cuda_graph,
            compile_arguments=self._mode.get_compile_arguments(self._device.type),
            intra_op_threads=torch.get_num_threads(),
            inter_op_threads=torch.get_num_interop_threads(),
            device=torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu",
            mkldnn=bool(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
            capability=torch.backends.cpu.get_cpu_capability(),
        )


def _compile_error_message(error: str) -> str:
    if "No working C++ compiler" in error:
        return (
            "torch.compile needs a C++ compiler. Install one with `sudo apt install g++`, "
            "or remove `compile` from --pytorch."
        )
    return (
        f"torch.compile does not work here: {error.splitlines()[0].rstrip('.')}. "
        "Remove `compile` from --pytorch."
    )


def _compile(module: nn.Module, arguments: dict[str, str]) -> nn.Module:
    return cast(nn.Module, torch.compile(module, **arguments))  # type: ignore[call-overload]
