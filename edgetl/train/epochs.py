"""The epochs of a stage: what lives as long as they do, batch after batch, and as a part of a checkpoint."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgetl.core.errors import RunError
from edgetl.train.checkpoint import Part, State
from edgetl.train.freezing import Freezing
from edgetl.train.optimising import AveragedWeights, Mixing, Rates, make_optimiser
from edgetl.train.progress import EpochRecord, Step
from edgetl.train.staging import Stage

if TYPE_CHECKING:
    from edgetl.train.recipe import Training

_SHOWN_EVERY_S = 0.1


class Epochs:
    """Optimiser, rates, averaged weights, generators, and how far the running epoch has come."""

    def __init__(self, training: Training, stage: Stage, freezing: Freezing, epochs: int) -> None:
        """Take the number of epochs of all stages, for the progress bar."""
        self._training, self._stage, self._freezing, self._epochs = training, stage, freezing, epochs
        config, phase = training.config, stage.phase
        self._optimiser = make_optimiser(training.adapted, config, phase.lr)
        self._rates = Rates(self._optimiser, config, phase.epochs * stage.feed.steps)
        self._mixing = Mixing(config, phase.number)
        self._scaler = stage.computing.gradient_scaler()
        freezing.train_mode()
        self._averaged = AveragedWeights(training.adapted.network, config.ema) if config.ema else None
        self.done = 0
        """Epochs of this stage that have ended."""
        self.since_better = 0
        """Epochs since the best one."""
        self.slowest = stage.epoch_seconds
        self._batches, self._seen, self._lr, self._spent = 0, 0, 0.0, 0.0
        self._totals = torch.zeros(2, dtype=torch.float64, device=stage.computing.device)

    def run_one(self) -> None:
        """Train and validate an epoch, or the rest of the one that a checkpoint was saved in.

        Raises:
            KeyboardInterrupt: the user asked to stop; a checkpoint was saved after the batch.
        """
        training, phase = self._training, self._stage.phase
        started = time.perf_counter() - self._spent
        number = len(training.records) + 1
        with training.interruption.waits():
            self._train(number, started)
        trained = time.perf_counter() - started
        loss, accuracy = (self._totals / self._seen).tolist()
        with self._averaged.applied() if self._averaged else nullcontext():
            val = training.evaluate(self._stage)
            record = EpochRecord(
                phase=phase.number,
                epoch=number,
                train_loss=loss,
                train_accuracy=accuracy,
                val_loss=val.loss if val else None,
                val_accuracy=val.accuracy if val else None,
                lr=self._lr,
                seconds=time.perf_counter() - started,
                elapsed=time.perf_counter() - training.started,
                images_per_second=training.images / trained,
            )
            is_best = training.keep(record)
        self.done += 1
        self.since_better = 0 if is_best else self.since_better + 1
        self.slowest = max(self.slowest, record.seconds)
        self._batches, self._seen, self._spent = 0, 0, 0.0
        self._totals.zero_()
        training.save_when_due(self)

    def _train(self, number: int, started: float) -> None:
        training, stage = self._training, self._stage
        network, clip = training.adapted.network, training.config.clip_gradient
        self._freezing.train_mode()
        shown = time.perf_counter()
        for values, labels in stage.feed.training(number, self._batches):
            self._rates.advance()
            self._lr = max(group["lr"] for group in self._optimiser.param_groups)
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
            self._batches += 1
            self._seen += len(labels)
            # Summed on the device: asking for a number at every step would make a GPU wait for each.
            self._totals += torch.stack([loss.detach().double() * len(labels), (logits.detach().argmax(1) == labels).sum().double()])
            now = time.perf_counter()
            self._spent = now - started
            if now - shown > _SHOWN_EVERY_S or self._seen == training.images:
                shown = now
                mean_loss, accuracy = (self._totals / self._seen).tolist()
                speed = self._seen / self._spent
                training.progress.step(
                    Step(stage.phase.number, number, self._epochs, self._seen, training.images, mean_loss, accuracy, speed)
                )
            if training.interruption.asked:
                training.save(self)
                raise KeyboardInterrupt
            training.save_when_due(self)

    def facts(self) -> dict[str, Any]:
        """Numbers of a checkpoint."""
        return {
            "done": self.done,
            "since_better": self.since_better,
            "slowest": self.slowest,
            "batches": self._batches,
            "seen": self._seen,
            "lr": self._lr,
            "spent": self._spent,
            "totals": self._totals.tolist(),
            "step": self._rates.step,
            "mixing": self._mixing.state,
            "averaged_steps": self._averaged.steps if self._averaged else 0,
            "scaler": self._scaler.state_dict(),
            "frozen": dict(self._freezing.digests),
        }

    def parts(self) -> dict[str, Part]:
        """Tensors of a checkpoint, beside the network's."""
        averages = {str(at): tensor for at, tensor in enumerate(self._averaged.average)} if self._averaged else {}
        return {"optimiser": self._optimiser, "average": averages}

    def restore(self, state: State) -> None:
        """Go on where the checkpoint was saved.

        Raises:
            RunError: it belongs to another stage, or a frozen tensor of it is not what it was when the stage began.
        """
        facts: dict[str, Any] = state.facts["epochs"]
        changed = [name for name, digest in facts["frozen"].items() if self._freezing.digests.get(name) != digest]
        if changed or facts["frozen"].keys() != self._freezing.digests.keys():
            named = ", ".join((changed or sorted(facts["frozen"].keys() ^ self._freezing.digests.keys()))[:5])
            raise RunError(
                f"{state.path} cannot be gone on with: frozen tensors are not what they were ({named}). Train anew with --force."
            )
        state.restore("optimiser", self._optimiser)
        self.done, self.since_better, self.slowest = facts["done"], facts["since_better"], facts["slowest"]
        self._batches, self._seen, self._lr, self._spent = (facts[name] for name in ("batches", "seen", "lr", "spent"))
        self._totals.copy_(torch.tensor(facts["totals"], dtype=torch.float64))
        self._rates.step, self._mixing.state = facts["step"], facts["mixing"]
        if facts["scaler"]:
            self._scaler.load_state_dict(facts["scaler"])
        if self._averaged:
            averages: dict[str, Tensor] = state.part("average")
            self._averaged.restore([averages[str(at)] for at in range(len(averages))], facts["averaged_steps"])
