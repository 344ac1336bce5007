"""The epochs of a stage: what lives as long as they do, batch after batch, and as a part of a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgetl.core.errors import RunError
from edgetl.train.common.precision import cudnn_autotuning
from edgetl.train.common.progress import EpochRecord, Step
from edgetl.train.common.run_choices import not_available
from edgetl.train.engine.checkpoint import Part, State
from edgetl.train.engine.cuda_graphs import (
    CUDA_GRAPH,
    EAGER,
    StepReport,
    fastest_forward,
    unfit_reason,
)
from edgetl.train.engine.optim import AveragedWeights, Mixing, Rates, make_optimiser, moving_buffers
from edgetl.train.engine.phase_builder import Stage
from edgetl.train.features.partition import channels_last
from edgetl.train.model.freezing import Freezing

if TYPE_CHECKING:
    from edgetl.train.engine.trainer import Training

_SHOWN_EVERY_S = 0.1


class Epochs:
    """Optimiser, rates, averaged weights, generators, and how far the running epoch has come."""

    def __init__(self, training: Training, stage: Stage, freezing: Freezing, epochs: int) -> None:
        """Take the number of epochs of all stages, for the progress bar."""
        self._training, self._stage, self._freezing, self._epochs = (
            training,
            stage,
            freezing,
            epochs,
        )
        config, phase = training.config, stage.phase
        self._optimiser = make_optimiser(training.adapted, config, phase.lr)
        self._rates = Rates(self._optimiser, config, phase.epochs * stage.feed.steps)
        self._mixing = Mixing(config, phase.number)
        self._scaler = stage.computing.gradient_scaler()
        freezing.train_mode()
        self._averaged = (
            AveragedWeights(training.adapted.network, config.ema) if config.ema else None
        )
        self._moving = moving_buffers(training.adapted.network)
        self._forward = self._fastest_forward()
        self.done = 0
        """Epochs of this stage that have ended."""
        self.since_better = 0
        """Epochs since the best one."""
        self.slowest = stage.epoch_seconds
        self._batches, self._lr, self._spent = 0, 0.0, 0.0
        self._seen = 0
        """Images of this epoch, in this process."""
        self._totals = torch.zeros(2, dtype=torch.float64, device=stage.computing.device)
        """Of those: their losses and how many were right."""

    def _fastest_forward(self) -> Callable[..., Tensor]:
        training, stage, phase = self._training, self._stage, self._stage.phase
        config, ranks = training.config, training.ranks
        eager = channels_last(ranks.parallel(stage.module))
        steps = phase.epochs * stage.feed.steps
        unfit = unfit_reason(
            stage.computing, ranks.world, config.deterministic, config.compile, steps
        )
        recorded = training.choices.recorded.steps.get(str(phase.number))
        if unfit:
            if recorded == CUDA_GRAPH:
                raise not_available(f"CUDA graphs in phase {phase.number}", unfit)
            self._record_runner(StepReport(EAGER, {}, unfit))
            return eager
        facts = {
            **stage.facts,
            "training": str(phase.unfreeze),
            "moving": not phase.freeze_statistics,
        }
        batch = next(iter(stage.feed.training(1)))
        forward, report = fastest_forward(
            training.adapted.network,
            stage.module,
            eager,
            batch,
            stage.computing,
            facts,
            recorded=recorded,
        )
        if report.reason.startswith("capture failed"):
            if recorded == CUDA_GRAPH:
                raise not_available(f"CUDA graphs in phase {phase.number}", report.reason)
            training.progress.note(
                f"CUDA graphs of phase {phase.number}: {report.reason}. Its steps run eagerly."
            )
        self._record_runner(report)
        return channels_last(forward)

    def _record_runner(self, report: StepReport) -> None:
        number = self._stage.phase.number
        self._training.steps[number] = report
        self._training.choices.record_entry("steps", str(number), report.runner)

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
        of_all = training.ranks.gather([self._seen, *self._totals.tolist()])
        seen, loss, accuracy = (sum(part) for part in zip(*of_all, strict=True))
        loss, accuracy = loss / seen, accuracy / seen
        validated = False
        try:
            with self._averaged.applied() if self._averaged else nullcontext():
                val = training.evaluate(self._stage)
                validated = True
                with training.interruption.waits():
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
        except KeyboardInterrupt:
            # All batches of the epoch are trained: what resumes from here only validates again.
            if not validated and not training.ranks.many:
                training.save(self)
            raise
        training.save_when_due(self)

    def _train(self, number: int, started: float) -> None:
        training, stage, ranks = self._training, self._stage, self._training.ranks
        network, clip = training.adapted.network, training.config.clip_gradient
        self._freezing.train_mode()
        shown = time.perf_counter()
        usual = stage.feed.batch_size
        for values, labels in stage.feed.training(number, self._batches):
            self._rates.advance()
            self._lr = max(group["lr"] for group in self._optimiser.param_groups)
            mixed = self._mixing(values, labels)
            full = len(labels) == usual
            with cudnn_autotuning(full), stage.computing.arithmetic():
                logits = self._forward(*mixed.values)
            logits = logits.float()
            total, weight = training.loss(logits, mixed)
            whole = weight.clone()
            # Processes have batches of other sizes and weights, and what becomes of their gradients is the plain mean.
            ranks.average([whole])
            self._optimiser.zero_grad()
            with cudnn_autotuning(full):
                self._scaler.scale(total / whole).backward()  # type: ignore[no-untyped-call]
            if clip:
                self._scaler.unscale_(self._optimiser)
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            self._scaler.step(self._optimiser)
            self._scaler.update()
            ranks.average(self._moving)
            if self._averaged:
                self._averaged.update()
            self._batches += 1
            self._seen += len(labels)
            # Summed on the device: asking for a number at every step would make a GPU wait for each.
            loss = (total / weight).detach().double()
            self._totals += torch.stack(
                [loss * len(labels), (logits.detach().argmax(1) == labels).sum().double()]
            )
            now = time.perf_counter()
            self._spent = now - started
            images = min(training.images, self._seen * ranks.world)
            if now - shown > _SHOWN_EVERY_S or images == training.images:
                shown = now
                mean_loss, accuracy = (self._totals / self._seen).tolist()
                speed = images / self._spent
                training.progress.step(
                    Step(
                        stage.phase.number,
                        number,
                        self._epochs,
                        images,
                        training.images,
                        mean_loss,
                        accuracy,
                        speed,
                    )
                )
            training.save_when_due(self)

    def facts(self) -> dict[str, Any]:
        """Numbers of a checkpoint."""
        return {
            "done": self.done,
            "since_better": self.since_better,
            "slowest": self.slowest,
            "batches": self._batches,
            "lr": self._lr,
            "spent": self._spent,
            "step": self._rates.step,
            "ranks": self._training.ranks.gather(
                {"seen": self._seen, "totals": self._totals.tolist(), "mixing": self._mixing.state}
            ),
            "averaged_steps": self._averaged.steps if self._averaged else 0,
            "scaler": self._scaler.state_dict(),
            "frozen": dict(self._freezing.digests),
        }

    def parts(self) -> dict[str, Part]:
        """Tensors of a checkpoint, beside the network's."""
        averages = (
            {str(at): tensor for at, tensor in enumerate(self._averaged.average)}
            if self._averaged
            else {}
        )
        return {"optimiser": self._optimiser, "average": averages}

    def restore(self, state: State) -> None:
        """Go on where the checkpoint was saved.

        Raises:
            RunError: it belongs to another stage, or a frozen tensor of it is not what it was when the stage began.
        """
        facts: dict[str, Any] = state.facts["epochs"]
        changed = [
            name
            for name, digest in facts["frozen"].items()
            if self._freezing.digests.get(name) != digest
        ]
        if changed or facts["frozen"].keys() != self._freezing.digests.keys():
            named = ", ".join(
                (changed or sorted(facts["frozen"].keys() ^ self._freezing.digests.keys()))[:5]
            )
            raise RunError(
                f"{state.path} cannot be gone on with: frozen tensors are not what they were ({named}). Train anew with --force."
            )
        state.restore("optimiser", self._optimiser)
        self.done, self.since_better, self.slowest = (
            facts["done"],
            facts["since_better"],
            facts["slowest"],
        )
        self._batches, self._lr, self._spent, self._rates.step = (
            facts[name] for name in ("batches", "lr", "spent", "step")
        )
        own = facts["ranks"][self._training.ranks.rank]
        self._seen, self._mixing.state = own["seen"], own["mixing"]
        self._totals.copy_(torch.tensor(own["totals"], dtype=torch.float64))
        if facts["scaler"]:
            self._scaler.load_state_dict(facts["scaler"])
        if self._averaged:
            averages: dict[str, Tensor] = state.part("average")
            expected = [tuple(tensor.shape) for tensor in self._averaged.average]
            saved = [averages.get(str(at)) for at in range(len(expected))]
            if [None if tensor is None else tuple(tensor.shape) for tensor in saved] != expected:
                raise RunError(
                    f"{state.path} cannot be gone on with: it lacks averaged weights. Begin anew in another folder."
                )
            self._averaged.restore(
                [tensor for tensor in saved if tensor is not None], facts["averaged_steps"]
            )
