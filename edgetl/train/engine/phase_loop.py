"""Training loop of one phase: its epochs, their state and its part of a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.artifacts.run_metrics import StepReport
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import RunError
from edgetl.core.progress import StepProgress
from edgetl.train.common.precision import cudnn_autotuning
from edgetl.train.common.run_choices import choice_unavailable_error
from edgetl.train.engine.checkpoint import Checkpoint, CheckpointPart
from edgetl.train.engine.cuda_graphs import (
    CUDA_GRAPH,
    EAGER,
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
"""Minimum time between two progress reports within an epoch."""


class PhaseLoop:
    """Training loop of one phase: optimizer, schedule, averaged weights, generators, counters."""

    def __init__(
        self,
        trainer: Trainer,
        trainable: TrainablePhase,
        frozen_state: FrozenState,
        total_epochs: int,
    ) -> None:
        """Prepare the loop.

        Args:
            trainer: the run that the phase belongs to.
            trainable: the phase to train.
            frozen_state: the model's frozen tensors in this phase.
            total_epochs: epochs of all phases, for the progress bar.
        """
        self._trainer = trainer
        self._trainable_phase = trainable
        self._frozen_state = frozen_state
        self._total_epochs = total_epochs
        config, phase = trainer.config, trainable.phase
        self._optimizer = make_optimizer(trainer.adapted_model, config, phase.lr)
        self._lr_schedule = LrSchedule(
            self._optimizer, config, phase.epochs * trainable.batch_source.steps_per_epoch
        )
        self._mixup = Mixup(config, phase.number)
        self._scaler = trainable.compute_config.make_grad_scaler()
        frozen_state.train_mode()
        self._model_ema = ModelEma(trainer.adapted_model.model, config.ema) if config.ema else None
        self._running_stats = running_stats(trainer.adapted_model.model)
        self._forward = self._fastest_forward()
        self.epochs_done = 0
        """Completed epochs of this phase."""
        self.epochs_since_best = 0
        """Epochs since the best one."""
        self.slowest_epoch_s = trainable.expected_epoch_s
        """Longest epoch so far, in seconds; before the first one the expected time."""
        self._batches_done = 0
        self._lr = 0.0
        self._elapsed_s = 0.0
        self._images_done = 0
        """Images trained in this epoch by this process."""
        device = trainable.compute_config.device
        self._metric_sums = torch.zeros(2, dtype=torch.float64, device=device)
        """Sum of the losses and number of correct predictions over those images."""

    def _fastest_forward(self) -> Callable[..., Tensor]:
        trainer, trainable = self._trainer, self._trainable_phase
        config, processes, phase = trainer.config, trainer.processes, trainable.phase
        eager = wrap_channels_last(processes.wrap_ddp(trainable.module))
        steps = phase.epochs * trainable.batch_source.steps_per_epoch
        skip_reason = cuda_graph_skip_reason(
            trainable.compute_config,
            processes.world_size,
            config.deterministic,
            config.compile,
            steps,
        )
        recorded = trainer.choices.recorded.steps.get(str(phase.number))
        if skip_reason:
            if recorded == CUDA_GRAPH:
                raise choice_unavailable_error(f"CUDA graphs in phase {phase.number}", skip_reason)
            self._record_runner(StepReport(EAGER, {}, skip_reason))
            return eager
        key = {
            **trainable.measurement_key,
            "training": str(phase.unfreeze),
            "moving": not phase.freeze_statistics,
        }
        batch = next(iter(trainable.batch_source.iter_train_batches(1)))
        forward, report = autotune_forward(
            trainer.adapted_model.model,
            trainable.module,
            eager,
            batch,
            trainable.compute_config,
            key,
            recorded=recorded,
        )
        if report.reason.startswith("capture failed"):
            if recorded == CUDA_GRAPH:
                raise choice_unavailable_error(
                    f"CUDA graphs in phase {phase.number}", report.reason
                )
            trainer.progress.note(
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
            KeyboardInterrupt: if the user asked to stop; a checkpoint was saved after the batch.
        """
        trainer, phase = self._trainer, self._trainable_phase.phase
        started = time.perf_counter() - self._elapsed_s
        number = len(trainer.records) + 1
        with trainer.interrupt_handler.deferred():
            self._train_one_epoch(number, started)
        training_s = time.perf_counter() - started
        train_loss, train_accuracy = self._mean_metrics()
        is_validated = False
        try:
            with self._model_ema.swapped_in() if self._model_ema else nullcontext():
                val = trainer.evaluate(self._trainable_phase)
                is_validated = True
                with trainer.interrupt_handler.deferred():
                    record = EpochRecord(
                        phase=phase.number,
                        epoch=number,
                        train_loss=train_loss,
                        train_accuracy=train_accuracy,
                        val_loss=val.loss if val else None,
                        val_accuracy=val.accuracy if val else None,
                        lr=self._lr,
                        seconds=time.perf_counter() - started,
                        elapsed=time.perf_counter() - trainer.started_at,
                        images_per_second=trainer.images_per_epoch / training_s,
                    )
                    is_best = trainer.record_epoch(record)
                    self.epochs_done += 1
                    self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
                    self.slowest_epoch_s = max(self.slowest_epoch_s, record.seconds)
                    self._batches_done = 0
                    self._images_done = 0
                    self._elapsed_s = 0.0
                    self._metric_sums.zero_()
        except KeyboardInterrupt:
            # All batches of the epoch are trained: a resumed run only repeats the validation.
            if not is_validated and not trainer.processes.is_distributed:
                trainer.save(self)
            raise
        trainer.save_if_due(self)

    def _mean_metrics(self) -> tuple[float, float]:
        """Return the epoch's mean loss and accuracy over all processes."""
        rank_sums = self._trainer.processes.all_gather(
            [self._images_done, *self._metric_sums.tolist()]
        )
        images, loss_sum, correct = (sum(values) for values in zip(*rank_sums, strict=True))
        return loss_sum / images, correct / images

    def _train_one_epoch(self, number: int, started: float) -> None:
        trainer, trainable = self._trainer, self._trainable_phase
        processes = trainer.processes
        self._frozen_state.train_mode()
        reported_at = time.perf_counter()
        full_batch_size = trainable.batch_source.local_batch_size
        batches = trainable.batch_source.iter_train_batches(number, self._batches_done)
        for values, labels in batches:
            self._lr_schedule.advance()
            self._lr = max(group["lr"] for group in self._optimizer.param_groups)
            mixed = self._mixup(values, labels)
            is_full = len(labels) == full_batch_size
            with cudnn_autotuning(is_full), trainable.compute_config.autocast():
                logits = self._forward(*mixed.values)
            logits = logits.float()
            loss_sum, weight = trainer.loss(logits, mixed)
            mean_weight = weight.clone()
            # DistributedDataParallel takes the plain mean of the processes' gradients, and their
            # batches differ in size and weight: every loss is divided by the mean weight.
            processes.all_reduce_mean([mean_weight])
            self._optimizer.zero_grad()
            with cudnn_autotuning(is_full):
                self._scaler.scale(loss_sum / mean_weight).backward()  # type: ignore[no-untyped-call]
            self._step_optimizer()
            processes.all_reduce_mean(self._running_stats)
            if self._model_ema:
                self._model_ema.update()
            self._batches_done += 1
            self._images_done += len(labels)
            # Summed on the device: reading a number at every step would make a GPU wait for each.
            loss = (loss_sum / weight).detach().double()
            correct = (logits.detach().argmax(1) == labels).sum().double()
            self._metric_sums += torch.stack([loss * len(labels), correct])
            now = time.perf_counter()
            self._elapsed_s = now - started
            images = min(trainer.images_per_epoch, self._images_done * processes.world_size)
            is_last = images == trainer.images_per_epoch
            if now - reported_at > _PROGRESS_INTERVAL_S or is_last:
                reported_at = now
                self._report_step(number, images)
            trainer.save_if_due(self)

    def _step_optimizer(self) -> None:
        max_norm = self._trainer.config.clip_gradient
        if max_norm:
            self._scaler.unscale_(self._optimizer)
            parameters = self._trainer.adapted_model.model.parameters()
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _report_step(self, epoch: int, images: int) -> None:
        mean_loss, accuracy = (self._metric_sums / self._images_done).tolist()
        self._trainer.progress.on_step_end(
            StepProgress(
                self._trainable_phase.phase.number,
                epoch,
                self._total_epochs,
                images,
                self._trainer.images_per_epoch,
                mean_loss,
                accuracy,
                images / self._elapsed_s,
            )
        )

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Return the numbers of a checkpoint."""
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
        """Return the tensors of a checkpoint, except the model's."""
        average: dict[str, Tensor] = {}
        if self._model_ema:
            average = {str(index): tensor for index, tensor in enumerate(self._model_ema.average)}
        return {"optimiser": self._optimizer, "average": average}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of the phase.

        Raises:
            RunError: if the checkpoint belongs to another phase, or its frozen tensors changed.
        """
        facts: dict[str, Any] = checkpoint.metadata["epochs"]
        self._check_frozen(checkpoint, facts["frozen"])
        checkpoint.restore("optimiser", self._optimizer)
        self.epochs_done = facts["done"]
        self.epochs_since_best = facts["since_better"]
        self.slowest_epoch_s = facts["slowest"]
        self._batches_done = facts["batches"]
        self._lr = facts["lr"]
        self._elapsed_s = facts["spent"]
        self._lr_schedule.next_step = facts["step"]
        rank_state = facts["ranks"][self._trainer.processes.rank]
        self._images_done = rank_state["seen"]
        self._mixup.generator_state = rank_state["mixing"]
        self._metric_sums.copy_(torch.tensor(rank_state["totals"], dtype=torch.float64))
        if facts["scaler"]:
            self._scaler.load_state_dict(facts["scaler"])
        if self._model_ema:
            self._restore_ema(self._model_ema, checkpoint, facts["averaged_steps"])

    def _check_frozen(self, checkpoint: Checkpoint, saved: dict[str, str]) -> None:
        digests = self._frozen_state.digests
        changed = [name for name, digest in saved.items() if digests.get(name) != digest]
        if changed or saved.keys() != digests.keys():
            names = ", ".join((changed or sorted(saved.keys() ^ digests.keys()))[:5])
            raise RunError(
                f"Cannot resume from {checkpoint.path}: frozen tensors changed ({names}). "
                "Start over with {force}.",
                FinetuneConfig,
            )

    def _restore_ema(self, model_ema: ModelEma, checkpoint: Checkpoint, num_updates: int) -> None:
        averages: dict[str, Tensor] = checkpoint.part_tensors("average")
        expected_shapes = [tuple(tensor.shape) for tensor in model_ema.average]
        saved = [averages.get(str(index)) for index in range(len(expected_shapes))]
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in saved]
        if shapes != expected_shapes:
            raise RunError(
                f"Cannot resume from {checkpoint.path}: averaged weights are missing. "
                "Start a new run in another folder."
            )
        model_ema.restore([tensor for tensor in saved if tensor is not None], num_updates)
