"""Configuration of `edgetl export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgetl.core.config.options import check, option, repr_config, validate
from edgetl.core.config.parsers import parse_height_width, parse_milliseconds
from edgetl.core.paths import OptionalPath
from edgetl.core.registry import FORMATS, QUANTIZERS

InputKind = Literal["image", "tensor"]
GoldenKind = Literal["validation", "generated"]
OptimizationGoal = Literal["latency", "size"]
SearchMode = Literal["auto", "quick", "thorough"]
MAX_ACCURACY_DROP = 1.0
"""Default of the largest acceptable loss of top-1 accuracy, in percentage points."""
FIXED_SIZE_RANGE = (16, 8192)
"""Smallest and largest side of a fixed input size, pixels."""
GRAPH, PROOF, VARIANTS, CLIENTS = "Graph", "Proof", "Variants and limits", "Clients"
"""Panels of `--help-all`."""


@dataclass(frozen=True)
class ExportConfig:
    """Options of `edgetl export`."""

    output: OptionalPath = option(
        None,
        help="Bundle to write.",
        short="o",
        unset="RUN/bundle or bundles/ARCHITECTURE",
        basic=True,
    )
    input: InputKind = option(
        "image",
        help="Input of the model: `image` (uint8 images of any size, with preprocessing in the "
        "graph) or `tensor` (float32 [batch, 3, S, S]).",
        panel=GRAPH,
        basic=True,
    )
    opset: int = option(
        18,
        help="ONNX opset version, 18 or later.",
        panel=GRAPH,
        ge=18,
        reason="antialiased Resize",
    )
    network_tolerance: float = option(
        1e-3,
        help="Largest absolute logit difference from PyTorch on identical tensors.",
        name="tolerance",
        panel=PROOF,
        gt=0,
    )
    path_tolerance: float = option(
        0.05,
        help="Largest absolute logit difference from PyTorch on decoded images, preprocessing "
        "included.",
        panel=PROOF,
        gt=0,
    )
    fixed_size: tuple[int, int] | None = option(
        None,
        help="Also export a variant for images of exactly this size, for TensorRT and CUDA graphs.",
        unset="none",
        metavar="HEIGHTxWIDTH",
        panel=GRAPH,
        parse=parse_height_width,
    )
    """(height, width) in pixels; the variant is without control flow."""
    explain: bool = option(
        False,
        help="Add the output `activation_maps`, which `edgetl predict --explain` draws, to every "
        "variant.",
        panel=GRAPH,
        basic=True,
    )
    """Requires a network with a global average pooling before its classifier."""
    golden: GoldenKind = option(
        "validation",
        help="Golden images of the bundle: `validation` images, or `generated` ones if your "
        "images must not be published.",
        panel=PROOF,
        basic=True,
    )
    force: bool = option(False, help="Replace an existing bundle.", basic=True)
    variants: tuple[str, ...] = option(
        ("fp32",),
        help="Variants to export, separated by commas: `fp32` (always included), `int8` (smaller "
        "and faster on most CPUs), `fp16` (for GPUs), `int8-weights` (for size), `int8-dynamic` "
        "(for networks of matrix products).",
        panel=VARIANTS,
        basic=True,
        choices=("fp32", *QUANTIZERS),
    )
    split: bool = option(
        False,
        help="Add network files for NPUs, npu-int8 and npu-fp32, with preprocessing and "
        "postprocessing in files beside them.",
        panel=VARIANTS,
        basic=True,
    )
    """The networks have static shapes for one image, and no control flow."""
    max_accuracy_drop: float = option(
        MAX_ACCURACY_DROP,
        help="Largest acceptable top-1 drop of a variant against PyTorch, in percentage points.",
        panel=VARIANTS,
        basic=True,
        ge=0,
        le=100,
        unit="points",
    )
    max_latency_ms: float | None = option(
        None,
        help="Largest acceptable p50 of the recommended variant on this machine.",
        unset="no limit",
        metavar="5ms",
        panel=VARIANTS,
        basic=True,
        parse=parse_milliseconds,
        gt=0,
    )
    """For one image, model only."""
    optimise: OptimizationGoal = option(
        "latency",
        help="Criterion for the recommended variant: `latency` or `size`.",
        panel=VARIANTS,
        basic=True,
    )
    search: SearchMode = option(
        "auto",
        help="Search for int8 settings: `quick` (the most successful methods), `thorough` (all "
        "methods, with repairs of the accuracy) or `auto` (quick, and thorough if that loses too "
        "much accuracy or is not faster).",
        panel=VARIANTS,
    )
    unknown: bool = option(
        True,
        help="Add the output `unknown_score`, which is above 1 for images of no class.",
        panel=GRAPH,
        basic=True,
    )
    coverage: tuple[float, ...] = option(
        (0.9, 0.95, 0.99),
        help="Coverages of the prediction sets, such as 0.95: shares of new images whose set "
        "contains the true class.",
        panel=GRAPH,
        gt=0,
        lt=1,
    )
    ort_format: bool = option(
        False,
        help="Also write each variant in .ort format, for minimal builds of ONNX Runtime.",
        panel=CLIENTS,
    )
    web: bool = option(
        False,
        help="Add web/, a page that runs the model in a browser: fp32, or the recommended variant "
        "with --optimise size. Requires npm.",
        panel=CLIENTS,
        basic=True,
    )

    formats: tuple[str, ...] = option(
        (),
        help="Also convert the model for other runtimes and prove each file: "
        f"{', '.join(FORMATS)}. int8 is converted if it is among --variants.",
        name="format",
        metavar="NAME",
        unset="none",
        panel=CLIENTS,
        basic=True,
        choices=tuple(FORMATS),
    )

    __repr__ = repr_config

    def __post_init__(self) -> None:
        validate(self, self._find_contradictions())

    def _find_contradictions(self) -> list[str | None]:
        low, high = FIXED_SIZE_RANGE
        sides = self.fixed_size or ()
        return [
            check(
                all(low <= side <= high for side in sides),
                f"{{fixed_size}} must have sides of {low} to {high} pixels, "
                f"got {'x'.join(map(str, sides))}.",
            ),
            check(
                self.fixed_size is None or self.input != "tensor",
                "{fixed_size} needs preprocessing in the graph: remove {input} tensor.",
            ),
            check(
                not self.split or self.input != "tensor",
                "{split} needs a bundle that takes photos: remove {input} tensor.",
            ),
            check(
                not self.web or self.input != "tensor",
                "{web} needs a graph that takes photos: remove {input} tensor.",
            ),
        ]


def name_fixed_size_variant(size: tuple[int, int]) -> str:
    """Return the name of the variant for images of (height, width)."""
    return f"fixed-{size[0]}x{size[1]}"
