"""Configuration of `edgetl evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgetl.core.config.options import check, option, repr_config, validate
from edgetl.core.config.parsers import parse_share
from edgetl.core.config.split_names import SplitName
from edgetl.core.errors import ConfigError
from edgetl.core.paths import OptionalPath, RequiredPath

DATA, LIMITS, OUTPUT = "Images", "Limits", "Output"
"""Panels of `--help-all`."""


@dataclass(frozen=True)
class RecallLimit:
    """Lowest accepted recall of a class."""

    label: str
    recall: float

    def __post_init__(self) -> None:
        if not 0 <= self.recall <= 1:
            raise ConfigError(
                f"The recall of {self.label} must be between 0 and 1, got {self.recall}."
            )

    @classmethod
    def parse(cls, text: str) -> RecallLimit:
        """Parse `good=0.99` or `good=99%`.

        Raises:
            ConfigError: The text is not a label and a share.
        """
        label, separator, share = text.rpartition("=")
        if not separator or not label.strip():
            raise ConfigError(f"must be LABEL=SHARE, such as good=0.99, got {text!r}.")
        return cls(label.strip(), parse_share(share))

    def __str__(self) -> str:
        return f"{self.label}={self.recall:g}"


@dataclass(frozen=True)
class EvaluationLimits:
    """Limits that every evaluated variant is checked against; None is no limit."""

    min_accuracy: float | None = option(
        None,
        help="Fail if the accuracy is below this.",
        metavar="90%",
        panel=LIMITS,
        basic=True,
        parse=parse_share,
        ge=0,
        le=1,
    )
    min_recall: tuple[RecallLimit, ...] = option(
        (),
        help="Fail if the recall of a class is below this; repeat it for several classes.",
        metavar="LABEL=99%",
        panel=LIMITS,
        basic=True,
        parse=RecallLimit.parse,
    )
    max_ece: float | None = option(
        None,
        help="Fail if the expected calibration error exceeds this.",
        metavar="5%",
        panel=LIMITS,
        basic=True,
        parse=parse_share,
        ge=0,
        le=1,
    )

    def __post_init__(self) -> None:
        labels = [limit.label for limit in self.min_recall]
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        validate(
            self,
            [check(not repeated, f"{{min_recall}} names {', '.join(repeated)} more than once.")],
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of `edgetl evaluate`."""

    bundle: RequiredPath
    """Bundle, run directory with a bundle, or an ONNX file written by edgetl."""
    data: RequiredPath
    """Folder of class folders, data folder with splits, run directory, or CSV file."""
    variants: tuple[str, ...] = option(
        (),
        help="Variants of the bundle to evaluate.",
        name="variant",
        unset="all of any image size",
        empty_word="all",
        basic=True,
    )
    split: SplitName | None = option(
        None,
        help="Images of DATA to evaluate on, if it has splits.",
        unset="test, else val",
        panel=DATA,
        basic=True,
    )
    group_by: tuple[str, ...] = option(
        (),
        help="Also show figures for each value of a column of the CSV file, or for each folder at "
        "a level below the class folders: 1 is the folder inside the class folder.",
        metavar="COLUMN|LEVEL",
        panel=DATA,
        basic=True,
    )
    unknown: OptionalPath = option(
        None,
        help="Folder of images of no known class, to measure how many are recognized as unknown.",
        metavar="DIR",
        panel=DATA,
        basic=True,
    )
    ignore_other_classes: bool = option(
        False,
        help="Leave out images whose class is not among the bundle's labels.",
        panel=DATA,
    )
    corruptions: tuple[str, ...] = option(
        (),
        help="Also evaluate on corrupted images: `all`, or kinds of ImageNet-C such as "
        "gaussian_noise, defocus_blur, fog or jpeg_compression. `all` classifies every image 75 "
        "more times.",
        metavar="all|KIND,KIND",
        panel=DATA,
        basic=True,
        empty_word="none",
    )
    severities: tuple[int, ...] = option(
        (1, 2, 3, 4, 5),
        help="Severities of the corruptions.",
        metavar="1,3,5",
        panel=DATA,
        ge=1,
        le=5,
        nonempty="severity",
    )
    limits: EvaluationLimits = field(default_factory=EvaluationLimits)
    """Limits that the result is checked against."""
    top_k: tuple[int, ...] = option(
        (2, 5),
        help="Also show the share of images whose class is among the k most probable ones; values "
        "from the number of classes on are left out.",
        metavar="2,5",
        panel=OUTPUT,
        ge=2,
        empty_word="none",
    )
    provider: str = option(
        "cpu",
        help="Execution provider: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...; without silent "
        "fallback.",
    )
    threads: int | None = option(
        None,
        help="Threads; on the CPU, each classifies an image of its own.",
        unset="available cores",
        ge=1,
    )
    predictions: OptionalPath = option(
        None,
        help="CSV file to write with the prediction of every variant for every image.",
        metavar="FILE",
        panel=OUTPUT,
        basic=True,
    )
    output: OptionalPath = option(
        None,
        help="Result file to write.",
        short="o",
        unset="a new file in RUN/evaluation or ./evaluation",
        panel=OUTPUT,
        basic=True,
    )

    __repr__ = repr_config

    def __post_init__(self) -> None:
        validate(self, self._find_contradictions())

    def _find_contradictions(self) -> list[str | None]:
        same_file = self.output is not None and self.output == self.predictions
        return [
            check(
                not same_file, f"{{output}} and {{predictions}} are the same file, {self.output}."
            ),
            check(
                Path(self.data).suffix.lower() != ".csv" or self.split is None,
                "{split} needs a data folder or a run directory: a CSV file lists its images. "
                "Leave out {split}.",
            ),
        ]
