"""Configuration of `edgetl bench`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from edgetl.core.config.options import (
    MAX_SEED,
    check,
    option,
    options_to_json,
    repr_config,
    validate,
)
from edgetl.core.config.parsers import parse_duration, parse_milliseconds, parse_share
from edgetl.core.config.session_modes import (
    SessionMode,
    has_session_mode,
    providers_with_mode,
)
from edgetl.core.paths import OptionalPath, RequiredPath
from edgetl.core.runtimes import RUNTIMES

BenchScope = Literal["model", "image", "file"]
TorchModeName = Literal["eager", "bf16", "fp16", "compile", "cuda-graph", "fp16-cuda-graph"]
MAX_BATCH = 4096
ALL_RUNTIMES = "all"
"""Word for all installed runtimes."""
CASES, PROTOCOL, COMPARISON = "Configurations", "Protocol", "Comparison and limits"
"""Panels of `--help-all`."""


@dataclass(frozen=True)
class Limits:
    """Limits that a result is checked against; None is no limit."""

    max_regression: float | None = option(
        None,
        help="Fail if a configuration is slower than in --baseline by more than this.",
        metavar="5%",
        panel=COMPARISON,
        basic=True,
        parse=parse_share,
        ge=0,
    )
    max_p99_ms: float | None = option(
        None,
        help="Fail if the p99 of the recommended configuration in the first scope, paced arrivals "
        "included, exceeds this.",
        metavar="30ms",
        panel=COMPARISON,
        basic=True,
        parse=parse_milliseconds,
        gt=0,
    )
    min_speedup: float | None = option(
        None,
        help="Fail if the speed-up of the recommended configuration over eager PyTorch is below "
        "this.",
        metavar="2",
        panel=COMPARISON,
        basic=True,
        gt=0,
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class BenchConfig:
    """Options of `edgetl bench`.

    Several batches, threads, providers or variants are a sweep: every combination is measured.
    """

    target: RequiredPath
    """Run directory, bundle or single ONNX file."""
    scopes: tuple[BenchScope, ...] = option(
        ("model", "file"),
        help="What to time: `model` (tensors to logits), `image` (decoded image to label), `file` "
        "(encoded file to label). Like all lists, separated by commas or repeated.",
        name="scope",
        panel=CASES,
        basic=True,
        nonempty="scope",
    )
    batches: tuple[int, ...] = option(
        (1,),
        help="Batch sizes in scope `model`.",
        name="batch",
        metavar="1,4",
        panel=CASES,
        basic=True,
        ge=1,
        le=MAX_BATCH,
        nonempty="number of images",
    )
    threads: tuple[int, ...] = option(
        (),
        help="Intra-op threads of each runtime.",
        metavar="1,2",
        unset="available cores",
        panel=CASES,
        basic=True,
        ge=1,
    )
    providers: tuple[str, ...] = option(
        ("cpu",),
        help="Execution providers: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...; without silent "
        "fallback.",
        name="provider",
        panel=CASES,
        basic=True,
        nonempty="execution provider",
    )
    variants: tuple[str, ...] = option(
        (),
        help="Variants of the bundle to measure.",
        name="variant",
        unset="all",
        empty_word="all",
        panel=CASES,
        basic=True,
    )
    session_modes: tuple[SessionMode, ...] = option(
        ("default",),
        help="ONNX Runtime session modes: `default`; on a CPU `no-spinning` (idle threads sleep), "
        "`optimized-model` (starts from a cached graph), `bf16-fastmath` (ARM); on a GPU "
        "`cuda-graph` (one launch per inference), `no-tf32` (full float32 precision); or `all` "
        "that apply.",
        name="session",
        panel=CASES,
        nonempty="mode",
    )
    """See `edgetl.core.config.session_modes`."""
    torch_modes: tuple[TorchModeName, ...] = option(
        ("eager",),
        help="PyTorch baselines: `eager`, `bf16`, `compile`; on a GPU also `fp16`, `cuda-graph`, "
        "`fp16-cuda-graph`; or `none`.",
        name="pytorch",
        empty_word="none",
        panel=CASES,
    )
    """See `edgetl.core.config.torch_modes`."""
    rates: tuple[float, ...] = option(
        (),
        help="Also measure paced arrivals, in images per second; idle gaps affect latency.",
        name="rate",
        metavar="30",
        unset="single stream only",
        panel=CASES,
        gt=0,
    )
    rounds: int = option(
        8,
        help="Number of rounds. Each runs every configuration once, in fresh processes and in "
        "random order.",
        panel=PROTOCOL,
        basic=True,
        ge=2,
        reason="an interval needs two",
    )
    sustained_s: float = option(
        0.0,
        help="Afterwards run the recommended configuration for this long, to detect drift and "
        "throttling.",
        metavar="10m",
        panel=PROTOCOL,
        parse=parse_duration,
    )
    profile: bool = option(False, help="Also profile each operator.", panel=PROTOCOL)
    """In separate processes."""
    inputs: OptionalPath = option(
        None,
        help="Input tensors for an ONNX file without a bundle.",
        metavar="FILE.npy|.npz",
        unset="random values",
        panel=PROTOCOL,
    )
    """A .npz file has one array for each input."""
    baseline: OptionalPath = option(
        None,
        help="Compare with an earlier result from this or another device.",
        metavar="RESULT.json",
        panel=COMPARISON,
        basic=True,
    )
    any_model: bool = option(
        False,
        help="Allow a --baseline that measured a different model.",
        panel=COMPARISON,
    )
    limits: Limits = field(default_factory=Limits)
    """Limits that the result is checked against."""
    output: OptionalPath = option(
        None,
        help="Result file to write; with --host, the folder for one result per host.",
        short="o",
        unset="a new file in RUN/bench or ./bench",
        basic=True,
    )
    seed: int = option(
        0,
        help="Seed for the order within rounds.",
        command_line=False,
        ge=0,
        le=MAX_SEED,
    )
    force: bool = option(False, help="Allow more threads than available cores.", panel=PROTOCOL)
    runtimes: tuple[str, ...] = option(
        (),
        help=f"Runtimes to measure: {', '.join(RUNTIMES)}, or `all` "
        "installed ones. OpenVINO also runs ONNX files; the others need `edgetl export --format`.",
        name="runtime",
        metavar="NAME",
        unset="those of the bundle's variants",
        panel=CASES,
        basic=True,
    )
    save_recommendation: bool = option(
        False,
        help="Save the recommended configuration in the bundle: `predict` and `open_classifier` use "
        "it on this CPU.",
        panel=COMPARISON,
        basic=True,
    )

    __repr__ = repr_config

    def __post_init__(self) -> None:
        validate(self, self._find_contradictions())

    def to_json(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, for a JSON file of `--config`."""
        return options_to_json(self)

    def _find_contradictions(self) -> list[str | None]:
        return [
            check(
                self.sustained_s == 0 or self.sustained_s >= 10,
                f"{{sustained_s}} must be at least 10s, got {self.sustained_s:g}s.",
            ),
            check(
                self.limits.max_regression is None or self.baseline is not None,
                "{max_regression} needs an earlier result: give {baseline} RESULT.json.",
            ),
            check(
                not self.rates or 1 in self.batches,
                "{rates} paces single images: leave {batches} at 1, or add 1 to it.",
            ),
            check(
                "model" in self.scopes or all(batch <= 1 for batch in self.batches),
                "{batches} above 1 needs scope model: add it to {scopes}.",
            ),
            check(
                not self.save_recommendation or 1 in self.batches,
                "{save_recommendation} is for single images: leave {batches} at 1, or add 1 to it.",
            ),
            *(self._check_session_mode(mode) for mode in self.session_modes),
        ]

    def _check_session_mode(self, mode: str) -> str | None:
        providers = providers_with_mode(mode)
        return check(
            not providers or any(has_session_mode(name, mode) for name in self.providers),
            f"{{session_modes}} {mode} needs provider {' or '.join(providers)}, "
            f"got {{providers}} {', '.join(self.providers)}. "
            f"Add {{providers}} {', '.join(providers[:1])}, or leave out {{session_modes}} {mode}.",
        )
