"""Configuration of `edgetl export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetl.core.config.options import check, check_choice, check_minimum, raise_config_errors
from edgetl.core.registry import QUANTIZERS

InputKind = Literal["image", "tensor"]
GoldenKind = Literal["validation", "generated"]
OptimizationGoal = Literal["latency", "size"]
SearchMode = Literal["thorough", "quick"]
FIXED_SIZE_RANGE = (16, 8192)
"""Smallest and largest side of a fixed input size, pixels."""


@dataclass(frozen=True)
class ExportConfig:
    """Options of `edgetl export`."""

    output: Path | None = None
    """Bundle to write; None is RUN/bundle, or bundles/<architecture> for a stock model."""
    input: InputKind = "image"
    """Input of the graph: `image` is uint8 of any size, with preprocessing in the graph; `tensor`
    is float32 [batch, 3, S, S]."""
    opset: int = 18
    """ONNX opset; 18 is the first whose Resize is antialiased."""
    network_tolerance: float = 1e-3
    """Largest absolute logit difference between PyTorch and ONNX Runtime on identical tensors."""
    path_tolerance: float = 0.05
    """Largest absolute logit difference from decoded image to logits."""
    fixed_size: tuple[int, int] | None = None
    """(height, width) in pixels of an additional variant for images of this size only, without
    control flow, for TensorRT and CUDA graphs."""
    golden: GoldenKind = "validation"
    """Source of the golden images."""
    force: bool = False
    """Whether to replace an existing bundle."""
    variants: tuple[str, ...] = ("fp32",)
    """Variants of the bundle, see QUANTIZERS in edgetl.core.registry; fp32, the baseline of the
    others, is always included."""
    max_accuracy_drop: float = 1.0
    """Largest loss of top-1 accuracy against PyTorch, percentage points."""
    max_latency_ms: float | None = None
    """Largest p50 of the recommended variant on this machine for one image, model only."""
    optimise: OptimizationGoal = "latency"
    """Criterion for the recommended variant among those within the two limits."""
    search: SearchMode = "thorough"
    """Search for int8: `thorough` tries all ways to quantize and repairs variants that lose too
    much accuracy; `quick` tries those chosen most often."""
    ort_format: bool = False
    """Whether to write each variant in ORT format as well, for minimal builds."""
    web: bool = False
    """Whether to write a web page that runs the model in a browser: fp32, or the recommended
    variant if it is optimized for size."""

    def __post_init__(self) -> None:
        choices = ("fp32", *QUANTIZERS)
        unknown = [name for name in self.variants if name not in choices]
        raise_config_errors(
            [
                check(
                    not unknown,
                    f"--variants must be among {', '.join(choices)}, "
                    f"got {', '.join(map(repr, unknown))}.",
                ),
                check_choice("--optimise", self.optimise, OptimizationGoal),
                check_choice("--search", self.search, SearchMode),
                check(
                    0 <= self.max_accuracy_drop <= 100,
                    f"--max-accuracy-drop must be 0 to 100 points, got {self.max_accuracy_drop:g}.",
                ),
                check(
                    self.max_latency_ms is None or self.max_latency_ms > 0,
                    f"--max-latency must be > 0, got {self.max_latency_ms} ms.",
                ),
                check_choice("--input", self.input, InputKind),
                check_choice("--golden", self.golden, GoldenKind),
                *self._check_fixed_size(),
                check(
                    not self.web or self.input != "tensor",
                    "--web needs a graph that takes photos: remove --input tensor.",
                ),
                check_minimum("--opset", self.opset, 18, "antialiased Resize"),
                check(
                    self.network_tolerance > 0 and self.path_tolerance > 0,
                    f"--tolerance must be > 0, got {self.network_tolerance:g} and "
                    f"{self.path_tolerance:g}.",
                ),
            ]
        )

    def _check_fixed_size(self) -> list[str | None]:
        if self.fixed_size is None:
            return []
        low, high = FIXED_SIZE_RANGE
        size = "x".join(map(str, self.fixed_size))
        return [
            check(
                all(low <= side <= high for side in self.fixed_size),
                f"--fixed-size must have sides of {low} to {high} pixels, got {size}.",
            ),
            check(
                self.input != "tensor",
                "--fixed-size needs preprocessing in the graph: remove --input tensor.",
            ),
        ]


def name_fixed_size_variant(size: tuple[int, int]) -> str:
    """Return the name of the variant for images of (height, width)."""
    return f"fixed-{size[0]}x{size[1]}"
