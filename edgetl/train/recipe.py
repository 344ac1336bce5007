"""The training procedure: stage after stage, epoch after epoch; the best epoch of all is kept."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from safetensors.torch import save_file
from torch import Tensor

from edgetl.core.errors import RunError
from edgetl.core.files import atomic_path
from edgetl.core.finetuning import FinetuneConfig
from edgetl.core.layout import RunDirectory
from edgetl.train.evaluation import Evaluation, evaluate
from edgetl.train.freezing import Freezing, set_trainable
from edgetl.train.models import AdaptedNetwork
from edgetl.train.optimising import AveragedWeights, Loss, Mixing, Rates, make_optimiser
from edgetl.train.planning import FINAL_S
from edgetl.train.progress import EpochRecord, Progress, Step
from edgetl.train.staging import Stage
from edgetl.train.weights import PretrainedWeights, load_into

_SHOWN_EVERY_S = 0.1
_WRITTEN_EVERY_S = 2.0


@dataclass
class Training:
    """What the epochs share, and how far they have come."""

    config: FinetuneConfig
    run: RunDirectory
    adapted: AdaptedNetwork
    loss: Loss
    images: int
    """Of an epoch."""
    validated: bool
    """Whether there are validation images."""
    progress: Progress
    started: float = field(default_factory=time.perf_counter)
    """When the run began, on the clock of time.perf_counter."""
    deadline: float | None = None
    """On the clock of time.perf_counter: no epoch begins that would end after it."""
    best: EpochRecord | None = None
    """The epoch whose weights are kept: in weights.safetensors at the end of each stage, a moment earlier in memory."""
    records: list[EpochRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    trainable: int = 0
    """Parameters of the phase that trained most."""
    ended: str = "all epochs"
    """Why training ended."""
    _state: dict[str, Tensor] = field(default_factory=dict)
    _written: bool = True
    _written_at: float = -math.inf

    def run_stage(self, stage: Stage, epochs_left: int) -> None:
        """Train one stage; weights.safetensors and the network end as the best epoch so far left them.

        Args:
            epochs_left: of this stage and those after it, for the progress bar.

        Raises:
            RunError: the loss is no longer a finite number.
        """
        started = time.perf_counter()
        phase = stage.phase
        freezing = set_trainable(self.adapted, phase.unfreeze, phase.freeze_statistics)
        self.trainable = max(self.trainable, sum(parameter.numel() for parameter in freezing.trained_parameters()))
        epoch = _Epoch(self, stage, freezing, len(self.records) + epochs_left)
        since_better, slowest = 0, stage.epoch_seconds
        for _ in range(phase.epochs):
            if self.deadline is not None and self.best is not None and time.perf_counter() + slowest + FINAL_S > self.deadline:
                self.ended = "--budget"
                self.progress.note(f"Phase {phase.number} ends early: another epoch would not fit into --budget.")
                break
            record, is_best = epoch()
            slowest = max(slowest, record.seconds)
            since_better = 0 if is_best else since_better + 1
            if self.reached_target():
                self.ended = "--target-accuracy"
                self.progress.note(f"--target-accuracy {self.config.target_accuracy:g} is reached.")
                break
            if self.config.patience and since_better >= self.config.patience:
                self.progress.note(f"Phase {phase.number} ends: {since_better} epochs without a better one (--patience).")
                break
        freezing.prove()
        if self.best is not None:
            self.load_best()
        self.seconds[f"phase{phase.number}"] = time.perf_counter() - started

    def reached_target(self) -> bool:
        """Whether the best epoch is as good as the user asked for."""
        target, best = self.config.target_accuracy, self.best
        return target is not None and best is not None and best.val_accuracy is not None and best.val_accuracy >= target

    def load_best(self) -> None:
        """Set the network to the best epoch's weights, and see to it that they are in weights.safetensors."""
        self.write_best()
        weights = PretrainedWeights(dict(self._state), str(self.run.weights), "")
        load_into(self.adapted.network, weights, "the network being trained")

    def write_best(self) -> None:
        """Write the best epoch's weights if the file does not hold them yet."""
        if self._state and not self._written:
            with atomic_path(self.run.weights) as temporary:
                save_file(self._state, temporary)
            self._written, self._written_at = True, time.perf_counter()

    def keep(self, record: EpochRecord) -> bool:
        """Note an epoch; its weights, as they are in the network now, are kept if it is the best."""
        if not math.isfinite(record.train_loss) or not math.isfinite(record.val_loss or 0.0):
            raise RunError(f"The loss is not finite in epoch {record.epoch}. Take a lower --lr and --finetune-lr, or --precision fp32.")
        is_best = is_better(record, self.best)
        if is_best:
            # safetensors stores row-major tensors only; the network's are channels last.
            state = self.adapted.network.state_dict()
            self._state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
            self.best, self._written = record, False
            # Epochs on cached features end faster than a disk takes their weights.
            if time.perf_counter() - self._written_at > _WRITTEN_EVERY_S:
                self.write_best()
        self.records.append(record)
        with self.run.history.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record.to_json()) + "\n")
        self.progress.epoch(record, is_best)
        return is_best

    def evaluate(self, stage: Stage) -> Evaluation | None:
        """The validation images, in float32 as the exported model will compute them."""
        self.adapted.network.eval()
        return evaluate(stage.forward, stage.feed.validation()) if self.validated else None


class _Epoch:
    # The state that lives as long as a phase: optimiser, rates, averaged weights, generator.
    def __init__(self, training: Training, stage: Stage, freezing: Freezing, epochs: int) -> None:
        self._training, self._stage, self._freezing, self._epochs = training, stage, freezing, epochs
        config, phase = training.config, stage.phase
        self._optimiser = make_optimiser(training.adapted, config, phase.lr)
        self._rates = Rates(self._optimiser, config, phase.epochs * stage.feed.steps)
        self._mixing = Mixing(config, phase.number)
        self._scaler = stage.computing.gradient_scaler()
        freezing.train_mode()
        self._averaged = AveragedWeights(training.adapted.network, config.ema) if config.ema else None

    def __call__(self) -> tuple[EpochRecord, bool]:
        training, phase = self._training, self._stage.phase
        started = time.perf_counter()
        number = len(training.records) + 1
        loss, accuracy, lr = self._train(number)
        trained = time.perf_counter() - started
        with self._averaged.applied() if self._averaged else nullcontext():
            val = training.evaluate(self._stage)
            record = EpochRecord(
                phase=phase.number,
                epoch=number,
                train_loss=loss,
                train_accuracy=accuracy,
                val_loss=val.loss if val else None,
                val_accuracy=val.accuracy if val else None,
                lr=lr,
                seconds=time.perf_counter() - started,
                elapsed=time.perf_counter() - training.started,
                images_per_second=training.images / trained,
            )
            return record, training.keep(record)

    def _train(self, number: int) -> tuple[float, float, float]:
        training, stage = self._training, self._stage
        network, clip = training.adapted.network, training.config.clip_gradient
        started = time.perf_counter()
        self._freezing.train_mode()
        seen, lr, shown = 0, 0.0, started
        totals = torch.zeros(2, dtype=torch.float64, device=stage.computing.device)
        for values, labels in stage.feed.training(number):
            self._rates.advance()
            lr = max(group["lr"] for group in self._optimiser.param_groups)
            mixed = self._mixing(values, labels)
            with stage.computing.arithmetic():
                logits = stage.forward(*mixed.values)
            logits = logits.float()
            loss = training.loss(logits, mixed)
            self._optimiser.zero_grad()
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if clip:
                self._scaler.unscale_(self._optimiser)
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            self._scaler.step(self._optimiser)
            self._scaler.update()
            if self._averaged:
                self._averaged.update()
            seen += len(labels)
            # Summed on the device: asking for a number at every step would make a GPU wait for each.
            totals += torch.stack([loss.detach().double() * len(labels), (logits.detach().argmax(1) == labels).sum().double()])
            now = time.perf_counter()
            if now - shown > _SHOWN_EVERY_S or seen == training.images:
                shown = now
                mean_loss, accuracy = (totals / seen).tolist()
                speed = seen / (now - started)
                training.progress.step(Step(stage.phase.number, number, self._epochs, seen, training.images, mean_loss, accuracy, speed))
        mean_loss, accuracy = (totals / seen).tolist()
        return mean_loss, accuracy, lr


def is_better(record: EpochRecord, best: EpochRecord | None) -> bool:
    """By validation accuracy, ties by validation loss; without validation the later epoch."""
    if best is None or record.val_accuracy is None or best.val_accuracy is None:
        return True
    return (-record.val_accuracy, record.val_loss) < (-best.val_accuracy, best.val_loss)
