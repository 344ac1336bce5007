"""PyTorch baselines of the benchmark: the modes of `--pytorch`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BF16_TOLERANCE = 0.05
"""Tolerance relative to the largest |logit|: bfloat16 has 8 bits, and rounding errors accumulate
over the layers."""
FP16_TOLERANCE = 0.01
"""Tolerance for float16, which has 11 bits, and for TF32, which multiplies with the same number."""


@dataclass(frozen=True)
class TorchMode:
    """Mode of running the model in PyTorch, from uint8 pixels to logits."""

    variant: str
    """Variant in the rows of the result."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """dtype of weights and activations, by its name in torch."""
    uses_compile: bool = False
    """Whether the model is compiled with torch.compile."""
    uses_cuda_graph: bool = False
    """Whether a CUDA graph is captured once and replayed."""
    gpu_only: bool = False

    def get_compile_arguments(self, device: str) -> dict[str, str] | None:
        """Return the arguments of torch.compile on `cpu` or `cuda`, or None if not compiled.

        On a GPU, `reduce-overhead` replays CUDA graphs; on a CPU it has no effect.
        """
        if not self.uses_compile:
            return None
        return {"mode": "reduce-overhead"} if device == "cuda" else {}

    def relative_tolerance(self, device: str) -> float:
        """Return the allowed logit difference as a share of the largest |logit|.

        float32 uses TF32 on a GPU, as ONNX Runtime's CUDA provider does by default.
        """
        if self.dtype == "bfloat16":
            return BF16_TOLERANCE
        if self.dtype == "float16" or device == "cuda":
            return FP16_TOLERANCE
        return 0.0


TORCH_MODES: Mapping[str, TorchMode] = {
    "eager": TorchMode("fp32"),
    "bf16": TorchMode("bf16", "bfloat16"),
    "fp16": TorchMode("fp16", "float16", gpu_only=True),
    "compile": TorchMode("compile", uses_compile=True),
    "cuda-graph": TorchMode("cuda-graph", uses_cuda_graph=True, gpu_only=True),
    "fp16-cuda-graph": TorchMode("fp16-cuda-graph", "float16", uses_cuda_graph=True, gpu_only=True),
}
"""Modes by the names of `--pytorch`."""
