"""What each command is asked to do: frozen, checked as a whole, and written into what the command leaves behind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgetl.core.errors import ConfigError

Augment = Literal["none", "light", "medium", "strong"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
InputKind = Literal["image", "tensor"]
GoldenKind = Literal["validation", "generated"]
Scope = Literal["model", "file"]


def _raise_all(problems: Iterable[str | None]) -> None:
    found = [problem for problem in problems if problem]
    if found:
        raise ConfigError("\n".join(found))


def _json_ready(config: Any) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of `edgetl finetune`."""

    data: Path
    """train/ and val/ folders of classes, or one folder of classes."""
    output: Path | None = None
    """The run directory to write; None chooses a new name, runs/<data>-<model>."""
    model: str = "mobilenet_v2"
    """A torchvision classification architecture."""
    weights: str = "imagenet"
    """`imagenet` (torchvision's download), `none`, a .safetensors or weights-only .pth file, or a folder of <architecture>.safetensors."""
    image_size: int | None = None
    """Side of the network's square input, pixels; None takes the architecture's own."""
    epochs: int = 5
    """Epochs of phase 1: the new head on the frozen backbone."""
    lr: float = 1e-3
    """Adam's learning rate in phase 1."""
    unfreeze: str = "auto"
    """What phase 2 trains besides the head: that many last blocks, `head` for none, `all` for everything; `auto` is the table's number."""
    finetune_epochs: int = 5
    """Epochs of phase 2."""
    finetune_lr: float = 1e-4
    """Adam's learning rate in phase 2."""
    batch_size: int = 32
    """Images a step."""
    augment: Augment = "light"
    """Strength of the augmentation of training images."""
    val_split: float = 0.2
    """Share of each class held back for validation where DATA has no val/ of its own; 0 trains without validation."""
    device: Device = "auto"
    """Where to train."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward passes; weights stay float32."""
    workers: int | None = None
    """Processes that decode and augment; None takes the cores available, 0 works in the training process."""
    seed: int = 0
    """Seed of the split, the head, the order of images and the augmentation."""
    head_width: int = 128
    """Width of the new head's hidden layer."""
    dropout: float = 0.2
    """Dropout before the new head."""
    force: bool = False
    """Replace an existing run directory."""

    def __post_init__(self) -> None:
        blocks = self.unfreeze in ("auto", "head", "all") or (self.unfreeze.isascii() and self.unfreeze.isdecimal())
        _raise_all(
            [
                None if self.image_size is None or self.image_size >= 32 else f"--image-size is at least 32 pixels, not {self.image_size}.",
                None if self.epochs >= 0 else f"--epochs is not negative, not {self.epochs}.",
                None if self.finetune_epochs >= 0 else f"--finetune-epochs is not negative, not {self.finetune_epochs}.",
                None if self.epochs + self.finetune_epochs > 0 else "--epochs and --finetune-epochs are both 0: nothing would be trained.",
                None if 0 < self.lr <= 1e30 and 0 < self.finetune_lr <= 1e30 else "--lr and --finetune-lr are above 0 and finite.",
                None if blocks else f"--unfreeze takes a number of blocks, `auto`, `head` or `all`, not {self.unfreeze!r}.",
                None if self.seed >= 0 else f"--seed is not negative, not {self.seed}.",
                None if self.batch_size >= 1 else f"--batch-size is at least 1, not {self.batch_size}.",
                None if 0 <= self.val_split < 1 else f"--val-split lies in [0, 1), not {self.val_split}.",
                None if self.workers is None or self.workers >= 0 else f"--workers is not negative, not {self.workers}.",
                None if self.head_width >= 1 and 0 <= self.dropout < 1 else "The head's width is at least 1 and its dropout in [0, 1).",
                _one_of("--augment", self.augment, Augment),
                _one_of("--device", self.device, Device),
                _one_of("--precision", self.precision, Precision),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """As it stands in config.json."""
        return _json_ready(self)


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
    golden: GoldenKind = "validation"
    """Where the bundle's reference images come from."""
    force: bool = False
    """Replace an existing bundle."""

    def __post_init__(self) -> None:
        _raise_all(
            [
                _one_of("--input", self.input, InputKind),
                _one_of("--golden", self.golden, GoldenKind),
                None if self.opset >= 18 else f"--opset is at least 18 (antialiased Resize), not {self.opset}.",
                None if self.network_tolerance > 0 and self.path_tolerance > 0 else "--tolerance is above 0.",
            ]
        )


@dataclass(frozen=True)
class BenchConfig:
    """Options of `edgetl bench`."""

    target: Path
    """A run directory, a bundle, or one ONNX file."""
    scopes: tuple[Scope, ...] = ("model", "file")
    """What is timed: tensors to logits, or an encoded file to its label."""
    threads: int | None = None
    """Intra-op threads of every runtime; None takes the cores available."""
    provider: str = "cpu"
    """ONNX Runtime's execution provider."""
    variants: tuple[str, ...] = ()
    """Variants of the bundle to measure; none takes all."""
    rounds: int = 8
    """Rounds; each runs every variant once, in random order, in a fresh process."""
    baseline: Path | None = None
    """An earlier result to compare with."""
    output: Path | None = None
    """The result file to write; None chooses a new name in the run's bench/ folder, or in bench/ under the current folder."""
    seed: int = 0
    """Seed of the order within rounds and of the bootstrap."""

    def __post_init__(self) -> None:
        _raise_all(
            [
                *(_one_of("--scope", scope, Scope) for scope in self.scopes),
                None if self.scopes else "--scope names at least one of model, file.",
                None if self.threads is None or self.threads >= 1 else f"--threads is at least 1, not {self.threads}.",
                None if self.rounds >= 2 else f"--rounds is at least 2 (an interval needs it), not {self.rounds}.",
            ]
        )


def _one_of(option: str, value: str, literal: Any) -> str | None:
    known = get_args(literal)
    return None if value in known else f"{option} takes {', '.join(known)}, not {value!r}."
