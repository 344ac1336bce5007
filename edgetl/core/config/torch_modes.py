"""PyTorch baselines of the benchmark: what each mode of `--pytorch` means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BF16_TOLERANCE = 0.05
"""Share of the largest |logit|: bfloat16 keeps 8 bits, and its roundings add up over the layers."""
FP16_TOLERANCE = 0.01
"""The same for float16, which keeps 11 bits, and for TF32, which multiplies with as many."""


@dataclass(frozen=True)
class TorchMode:
    """One way to run the network, from uint8 pixels to logits."""

    variant: str
    """Name of its rows' variant."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and activations, by torch's name."""
    uses_compile: bool = False
    """Whether torch.compile makes it."""
    uses_cuda_graph: bool = False
    """Whether a CUDA graph is captured once and replayed."""
    gpu_only: bool = False

    def get_compile_arguments(self, device: str) -> dict[str, str] | None:
        """Return the arguments of torch.compile on `cpu` or `cuda`; None where it isn't compiled.

        On a GPU, `reduce-overhead` replays CUDA graphs; on a CPU it would change nothing.
        """
        if not self.uses_compile:
            return None
        return {"mode": "reduce-overhead"} if device == "cuda" else {}

    def relative_tolerance(self, device: str) -> float:
        """Return the allowed logit difference as a share of the largest |logit|.

        float32 multiplies in TF32 on a GPU, as ONNX Runtime's CUDA provider does by default.
        """
        if self.dtype == "bfloat16":
            return BF16_TOLERANCE
        return FP16_TOLERANCE if self.dtype == "float16" or device == "cuda" else 0.0


TORCH_MODES: Mapping[str, TorchMode] = {
    "eager": TorchMode("fp32"),
    "bf16": TorchMode("bf16", "bfloat16"),
    "fp16": TorchMode("fp16", "float16", gpu_only=True),
    "compile": TorchMode("compile", uses_compile=True),
    "cuda-graph": TorchMode("cuda-graph", uses_cuda_graph=True, gpu_only=True),
    "fp16-cuda-graph": TorchMode("fp16-cuda-graph", "float16", uses_cuda_graph=True, gpu_only=True),
}
"""By the names that `--pytorch` takes."""
