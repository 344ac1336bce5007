"""The training procedure: phase 1 trains the head, phase 2 the head and the last blocks; the best epoch of both is kept."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from edgetl.core.config import FinetuneConfig
from edgetl.core.errors import ConfigError, RunError
from edgetl.core.files import atomic_path
from edgetl.core.layout import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.computing import Computing
from edgetl.train.evaluation import evaluate
from edgetl.train.freezing import Freezing, set_trainable
from edgetl.train.loading import Loader
from edgetl.train.models import AdaptedNetwork
from edgetl.train.progress import EpochRecord, Progress, Step
from edgetl.train.weights import PretrainedWeights, load_into


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with the same trained parameters and learning rate."""

    number: int
    epochs: int
    lr: float
    unfreeze: int | str
    freeze_statistics: bool


def plan_phases(config: FinetuneConfig, unfreeze: int | str) -> list[Phase]:
    """The phases of a configuration; with `--weights none` there is nothing pretrained to freeze, and one phase trains everything."""
    if config.weights == "none":
        if config.batch_size < 2:
            raise ConfigError("--weights none trains BatchNorm statistics, and a batch of one image has none. Take --batch-size 2 or more.")
        return [Phase(1, config.epochs + config.finetune_epochs, config.lr, "all", freeze_statistics=False)]
    phases = [Phase(1, config.epochs, config.lr, "head", True), Phase(2, config.finetune_epochs, config.finetune_lr, unfreeze, True)]
    return [phase for phase in phases if phase.epochs]


@dataclass
class Training:
    """What the epochs share, and how far they have come."""

    run: RunDirectory
    adapted: AdaptedNetwork
    loader: Loader
    train: Sequence[int]
    """Indices of training images."""
    val: Sequence[int]
    """Indices of validation images; may be empty."""
    preprocessing: Preprocessing
    computing: Computing
    progress: Progress
    best: EpochRecord | None = None
    """The epoch whose weights are in weights.safetensors."""
    records: list[EpochRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    trainable: int = 0
    """Parameters of the phase that trained most."""

    def run_phases(self, phases: Sequence[Phase]) -> None:
        """Train; weights.safetensors and the network end as the best epoch left them.

        Raises:
            RunError: the loss is no longer a finite number.
        """
        epochs = sum(phase.epochs for phase in phases)
        for phase in phases:
            started = time.perf_counter()
            freezing = set_trainable(self.adapted, phase.unfreeze, phase.freeze_statistics)
            self.trainable = max(self.trainable, sum(parameter.numel() for parameter in freezing.trained_parameters()))
            optimiser = torch.optim.Adam(freezing.trained_parameters(), phase.lr)
            for _ in range(phase.epochs):
                self._epoch(phase, freezing, optimiser, epochs)
            freezing.prove()
            self.load_best()
            self.seconds[f"phase{phase.number}"] = time.perf_counter() - started

    def load_best(self) -> None:
        """Set the network to the best epoch's weights."""
        weights = PretrainedWeights(load_file(self.run.weights), str(self.run.weights), "")
        load_into(self.adapted.network, weights, "the network being trained")

    def _epoch(self, phase: Phase, freezing: Freezing, optimiser: torch.optim.Optimizer, epochs: int) -> None:
        started = time.perf_counter()
        epoch = len(self.records) + 1
        loss, accuracy, speed = self._train(phase, freezing, optimiser, epoch, epochs)
        val = None
        if self.val:
            val = evaluate(self.adapted.network, self.loader.evaluation(self.val), self.preprocessing, self.computing)
        record = EpochRecord(
            phase=phase.number,
            epoch=epoch,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=val.loss if val else None,
            val_accuracy=val.accuracy if val else None,
            lr=phase.lr,
            seconds=time.perf_counter() - started,
            images_per_second=speed,
        )
        if not math.isfinite(record.train_loss) or not math.isfinite(record.val_loss or 0.0):
            raise RunError(f"The loss is not finite in epoch {epoch}. Take a lower --lr and --finetune-lr, or --precision fp32.")
        is_best = is_better(record, self.best)
        if is_best:
            self._save()
            self.best = record
        self.records.append(record)
        with self.run.history.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record.to_json()) + "\n")
        self.progress.epoch(record, is_best)

    def _train(
        self, phase: Phase, freezing: Freezing, optimiser: torch.optim.Optimizer, epoch: int, epochs: int
    ) -> tuple[float, float, float]:
        started = time.perf_counter()
        freezing.train_mode()
        seen, loss_sum, hits = 0, 0.0, 0
        for pixels, labels in self.loader.training(self.train, epoch):
            targets = labels.to(self.computing.device, non_blocking=True)
            with self.computing.arithmetic():
                logits = self.adapted.network(self.computing.network_input(pixels, self.preprocessing))
                loss = F.cross_entropy(logits.float(), targets)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seen += len(labels)
            loss_sum += loss.item() * len(labels)
            hits += int((logits.argmax(1) == targets).sum())
            speed = seen / (time.perf_counter() - started)
            self.progress.step(Step(phase.number, epoch, epochs, seen, len(self.train), loss_sum / seen, hits / seen, speed))
        return loss_sum / seen, hits / seen, seen / (time.perf_counter() - started)

    def _save(self) -> None:
        # safetensors stores row-major tensors only; the network's are channels last.
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.adapted.network.state_dict().items()}
        with atomic_path(self.run.weights) as temporary:
            save_file(state, temporary)


def is_better(record: EpochRecord, best: EpochRecord | None) -> bool:
    """By validation accuracy, ties by validation loss; without validation the later epoch."""
    if best is None or record.val_accuracy is None or best.val_accuracy is None:
        return True
    return (-record.val_accuracy, record.val_loss) < (-best.val_accuracy, best.val_loss)
