"""What `edgetl export` is asked to do: frozen, and checked as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetl.core.config.options import check_choice, raise_config_errors
from edgetl.core.registry import QUANTIZERS

InputKind = Literal["image", "tensor"]
GoldenKind = Literal["validation", "generated"]
OptimizationGoal = Literal["latency", "size"]
SearchMode = Literal["thorough", "quick"]
FIXED_SIZE_RANGE = (16, 8192)
"""Smallest and largest side of a fixed size, pixels."""


@dataclass(frozen=True)
class ExportConfig:
    """Options of `edgetl export`."""

    output: Path | None = None
    """The bundle to write; None is RUN/bundle, or bundles/<architecture> for a stock model."""
    input: InputKind = "image"
    """`image`: uint8 photos of any size, preprocessing in the graph; `tensor`: float32 [batch, 3, S, S]."""
    opset: int = 18
    """ONNX opset; 18 is the first whose Resize is antialiased."""
    network_tolerance: float = 1e-3
    """Largest |logit difference| between PyTorch and ONNX Runtime on identical tensors."""
    path_tolerance: float = 0.05
    """Largest |logit difference| from decoded photo to logits."""
    fixed_size: tuple[int, int] | None = None
    """(height, width) in pixels: adds a variant that takes images of this size only, without control flow,
    for TensorRT and CUDA graphs."""
    golden: GoldenKind = "validation"
    """Where the bundle's reference images come from."""
    force: bool = False
    """Replace an existing bundle."""
    variants: tuple[str, ...] = ("fp32",)
    """What the bundle holds; fp32 always, which the others are measured against. See QUANTIZERS in edgetl.core.registry."""
    max_accuracy_drop: float = 1.0
    """Points of top-1 that a variant may lose against PyTorch."""
    max_latency_ms: float | None = None
    """Largest p50 of the recommended variant on this machine, one image, network only."""
    optimise: OptimizationGoal = "latency"
    """What the recommended variant is best at, of those within the two limits."""
    search: SearchMode = "thorough"
    """For int8: `thorough` tries every way to quantize and repairs what loses too much; `quick` tries what is chosen most often."""
    ort_format: bool = False
    """Write each variant in ONNX Runtime's own format as well, for minimal builds."""
    web: bool = False
    """Write a page that runs fp32 in a browser, or the recommended variant where size is what matters."""

    def __post_init__(self) -> None:
        known = ("fp32", *QUANTIZERS)
        unknown = [name for name in self.variants if name not in known]
        raise_config_errors(
            [
                f"--variants knows {', '.join(known)}, not {', '.join(map(repr, unknown))}."
                if unknown
                else None,
                check_choice("--optimise", self.optimise, OptimizationGoal),
                check_choice("--search", self.search, SearchMode),
                None
                if 0 <= self.max_accuracy_drop <= 100
                else f"--max-accuracy-drop is 0 to 100 points, not {self.max_accuracy_drop:g}.",
                None
                if self.max_latency_ms is None or self.max_latency_ms > 0
                else "--max-latency is above 0.",
                check_choice("--input", self.input, InputKind),
                check_choice("--golden", self.golden, GoldenKind),
                *self._check_fixed_size(),
                "--web feeds the page's photos to the file as they are: leave out --input tensor."
                if self.web and self.input == "tensor"
                else None,
                None
                if self.opset >= 18
                else f"--opset is at least 18 (antialiased Resize), not {self.opset}.",
                None
                if self.network_tolerance > 0 and self.path_tolerance > 0
                else "--tolerance is above 0.",
            ]
        )

    def _check_fixed_size(self) -> list[str | None]:
        if self.fixed_size is None:
            return []
        low, high = FIXED_SIZE_RANGE
        fits = all(low <= side <= high for side in self.fixed_size)
        shown = "x".join(map(str, self.fixed_size))
        return [
            None
            if fits
            else f"--fixed-size must have sides of {low} to {high} pixels, got {shown}.",
            "--fixed-size preprocesses in the graph: leave out --input tensor."
            if self.input == "tensor"
            else None,
        ]


def name_fixed_size_variant(size: tuple[int, int]) -> str:
    """Return the name of the variant for images of (height, width)."""
    return f"fixed-{size[0]}x{size[1]}"
