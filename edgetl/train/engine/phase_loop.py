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
from edgetl.train.common.progress import EpochRecord, StepProgress
from edgetl.train.common.run_choices import choice_unavailable_error
from edgetl.train.engine.checkpoint import Checkpoint, CheckpointPart
from edgetl.train.engine.cuda_graphs import (
    CUDA_GRAPH,
    EAGER,
    StepReport,
    autotune_forward,
    cuda_graph_skip_reason,
)
from edgetl.train.engine.optim import LrSchedule, Mixup, ModelEma, make_optimizer, running_stats
from edgetl.train.engine.phase_builder import TrainablePhase
from edgetl.train.features.partition import wrap_channels_last
from edgetl.train.model.freezing import FrozenState

if TYPE_CHECKING:
    from edgetl.train.engine.trainer import Trainer

_PROGRESS_INTERVAL_S = 0.1


class PhaseLoop:
    """Optimiser, rates, averaged weights, generators, and how far the running epoch has come."""

    def __init__(
        self, training: Trainer, stage: TrainablePhase, freezing: FrozenState, epochs: int
    ) -> None:
        """Take the number of epochs of all stages, for the progress bar."""
        self._trainer, self._trainable_phase, self._frozen_state, self._total_epochs = (
            training,
            stage,
            freezing,
            epochs,
        )
        config, phase = training.config, stage.phase
        self._optimizer = make_optimizer(training.adapted_model, config, phase.lr)
        self._lr_schedule = LrSchedule(
            self._optimizer, config, phase.epochs * stage.batch_source.steps_per_epoch
        )
        self._mixup = Mixup(config, phase.number)
        self._scaler = stage.compute_config.make_grad_scaler()
        freezing.train_mode()
        self._model_ema = ModelEma(training.adapted_model.model, config.ema) if config.ema else None
        self._running_stats = running_stats(training.adapted_model.model)
        self._forward = self._fastest_forward()
        self.epochs_done = 0
        """Epochs of this stage that have ended."""
        self.epochs_since_best = 0
        """Epochs since the best one."""
        self.slowest_epoch_s = stage.expected_epoch_s
        self._batches_done, self._lr, self._elapsed_s = 0, 0.0, 0.0
        self._images_done = 0
        """Images of this epoch, in this process."""
        self._metric_sums = torch.zeros(2, dtype=torch.float64, device=stage.compute_config.device)
        """Of those: their losses and how many were right."""

    def _fastest_forward(self) -> Callable[..., Tensor]:
        training, stage, phase = self._trainer, self._trainable_phase, self._trainable_phase.phase
        config, ranks = training.config, training.processes
        eager = wrap_channels_last(ranks.wrap_ddp(stage.module))
        steps = phase.epochs * stage.batch_source.steps_per_epoch
        unfit = cuda_graph_skip_reason(
            stage.compute_config, ranks.world_size, config.deterministic, config.compile, steps
        )
        recorded = training.choices.recorded.steps.get(str(phase.number))
        if unfit:
            if recorded == CUDA_GRAPH:
                raise choice_unavailable_error(f"CUDA graphs in phase {phase.number}", unfit)
            self._record_runner(StepReport(EAGER, {}, unfit))
            return eager
        facts = {
            **stage.measurement_key,
            "training": str(phase.unfreeze),
            "moving": not phase.freeze_statistics,
        }
        batch = next(iter(stage.batch_source.iter_train_batches(1)))
        forward, report = autotune_forward(
            training.adapted_model.model,
            stage.module,
            eager,
            batch,
            stage.compute_config,
            facts,
            recorded=recorded,
        )
        if report.reason.startswith("capture failed"):
            if recorded == CUDA_GRAPH:
                raise choice_unavailable_error(
                    f"CUDA graphs in phase {phase.number}", report.reason
                )
            training.progress.note(
                f"CUDA graphs of phase {phase.number}: {report.reason}. Its steps run eagerly."
            )
        self._record_runner(report)
        return wrap_channels_last(forward)

    def _record_runner(self, report: StepReport) -> None:
        number = self._trainable_phase.phase.number
        self._trainer.step_reports[number] = report
        self._trainer.choices.record_entry("steps", str(number), report.runner)

    def run_epoch(self) -> None:
        """Train and validate an epoch, or the rest of the one that a checkpoint was saved in.

        Raises:
            KeyboardInterrupt: the user asked to stop; a checkpoint was saved after the batch.
        """
        training, phase = self._trainer, self._trainable_phase.phase
        started = time.perf_counter() - self._elapsed_s
        number = len(training.records) + 1
        with training.interrupt_handler.deferred():
            self._train_one_epoch(number, started)
        trained = time.perf_counter() - started
        of_all = training.processes.all_gather([self._images_done, *self._metric_sums.tolist()])
        seen, loss, accuracy = (sum(part) for part in zip(*of_all, strict=True))
        loss, accuracy = loss / seen, accuracy / seen
        validated = False
        try:
            with self._model_ema.swapped_in() if self._model_ema else nullcontext():
                val = training.evaluate(self._trainable_phase)
                validated = True
                with training.interrupt_handler.deferred():
                    record = EpochRecord(
                        phase=phase.number,
                        epoch=number,
                        train_loss=loss,
                        train_accuracy=accuracy,
                        val_loss=val.loss if val else None,
                        val_accuracy=val.accuracy if val else None,
                        lr=self._lr,
                        seconds=time.perf_counter() - started,
                        elapsed=time.perf_counter() - training.started_at,
                        images_per_second=training.images_per_epoch / trained,
                    )
                    is_best = training.record_epoch(record)
                    self.epochs_done += 1
                    self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
                    self.slowest_epoch_s = max(self.slowest_epoch_s, record.seconds)
                    self._batches_done, self._images_done, self._elapsed_s = 0, 0, 0.0
                    self._metric_sums.zero_()
        except KeyboardInterrupt:
            # All batches of the epoch are trained: what resumes from here only validates again.
            if not validated and not training.processes.is_distributed:
                training.save(self)
            raise
        training.save_if_due(self)

    def _train_one_epoch(self, number: int, started: float) -> None:
        training, stage, ranks = self._trainer, self._trainable_phase, self._trainer.processes
        network, clip = training.adapted_model.model, training.config.clip_gradient
        self._frozen_state.train_mode()
        shown = time.perf_counter()
        usual = stage.batch_source.local_batch_size
        for values, labels in stage.batch_source.iter_train_batches(number, self._batches_done):
            self._lr_schedule.advance()
            self._lr = max(group["lr"] for group in self._optimizer.param_groups)
            mixed = self._mixup(values, labels)
            full = len(labels) == usual
            with cudnn_autotuning(full), stage.compute_config.autocast():
                logits = self._forward(*mixed.values)
            logits = logits.float()
            total, weight = training.loss(logits, mixed)
            whole = weight.clone()
            # Processes have batches of other sizes and weights, and what becomes of their gradients is the plain mean.
            ranks.all_reduce_mean([whole])
            self._optimizer.zero_grad()
            with cudnn_autotuning(full):
                self._scaler.scale(total / whole).backward()  # type: ignore[no-untyped-call]
            if clip:
                self._scaler.unscale_(self._optimizer)
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            ranks.all_reduce_mean(self._running_stats)
            if self._model_ema:
                self._model_ema.update()
            self._batches_done += 1
            self._images_done += len(labels)
            # Summed on the device: asking for a number at every step would make a GPU wait for each.
            loss = (total / weight).detach().double()
            self._metric_sums += torch.stack(
                [loss * len(labels), (logits.detach().argmax(1) == labels).sum().double()]
            )
            now = time.perf_counter()
            self._elapsed_s = now - started
            images = min(training.images_per_epoch, self._images_done * ranks.world_size)
            if now - shown > _PROGRESS_INTERVAL_S or images == training.images_per_epoch:
                shown = now
                mean_loss, accuracy = (self._metric_sums / self._images_done).tolist()
                speed = images / self._elapsed_s
                training.progress.on_step_end(
                    StepProgress(
                        stage.phase.number,
                        number,
                        self._total_epochs,
                        images,
                        training.images_per_epoch,
                        mean_loss,
                        accuracy,
                        speed,
                    )
                )
            training.save_if_due(self)

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Numbers of a checkpoint."""
        return {
            "done": self.epochs_done,
            "since_better": self.epochs_since_best,
            "slowest": self.slowest_epoch_s,
            "batches": self._batches_done,
            "lr": self._lr,
            "spent": self._elapsed_s,
            "step": self._lr_schedule.next_step,
            "ranks": self._trainer.processes.all_gather(
                {
                    "seen": self._images_done,
                    "totals": self._metric_sums.tolist(),
                    "mixing": self._mixup.generator_state,
                }
            ),
            "averaged_steps": self._model_ema.num_updates if self._model_ema else 0,
            "scaler": self._scaler.state_dict(),
            "frozen": dict(self._frozen_state.digests),
        }

    def checkpoint_parts(self) -> dict[str, CheckpointPart]:
        """Tensors of a checkpoint, beside the network's."""
        averages = (
            {str(at): tensor for at, tensor in enumerate(self._model_ema.average)}
            if self._model_ema
            else {}
        )
        return {"optimiser": self._optimizer, "average": averages}

    def restore(self, state: Checkpoint) -> None:
        """Go on where the checkpoint was saved.

        Raises:
            RunError: it belongs to another stage, or a frozen tensor of it is not what it was when the stage began.
        """
        facts: dict[str, Any] = state.metadata["epochs"]
        changed = [
            name
            for name, digest in facts["frozen"].items()
            if self._frozen_state.digests.get(name) != digest
        ]
        if changed or facts["frozen"].keys() != self._frozen_state.digests.keys():
            named = ", ".join(
                (changed or sorted(facts["frozen"].keys() ^ self._frozen_state.digests.keys()))[:5]
            )
            raise RunError(
                f"{state.path} cannot be gone on with: frozen tensors are not what they were ({named}). Train anew with --force."
            )
        state.restore("optimiser", self._optimizer)
        self.epochs_done, self.epochs_since_best, self.slowest_epoch_s = (
            facts["done"],
            facts["since_better"],
            facts["slowest"],
        )
        self._batches_done, self._lr, self._elapsed_s, self._lr_schedule.next_step = (
            facts[name] for name in ("batches", "lr", "spent", "step")
        )
        own = facts["ranks"][self._trainer.processes.rank]
        self._images_done, self._mixup.generator_state = own["seen"], own["mixing"]
        self._metric_sums.copy_(torch.tensor(own["totals"], dtype=torch.float64))
        if facts["scaler"]:
            self._scaler.load_state_dict(facts["scaler"])
        if self._model_ema:
            averages: dict[str, Tensor] = state.part_tensors("average")
            expected = [tuple(tensor.shape) for tensor in self._model_ema.average]
            saved = [averages.get(str(at)) for at in range(len(expected))]
            if [None if tensor is None else tuple(tensor.shape) for tensor in saved] != expected:
                raise RunError(
                    f"{state.path} cannot be gone on with: it lacks averaged weights. Begin anew in another folder."
                )
            self._model_ema.restore(
                [tensor for tensor in saved if tensor is not None], facts["averaged_steps"]
            )
