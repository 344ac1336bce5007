"""Training loop of one phase: its steps, and its state in a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgetl.core.artifacts.run_metrics import StepReport
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.progress import StepProgress, TrainingProgress
from edgetl.train.common.distributed import SINGLE_PROCESS, Processes
from edgetl.train.common.precision import Tensors, cudnn_autotuning
from edgetl.train.common.run_choices import RunChoices, choice_unavailable_error
from edgetl.train.engine.checkpoint import load_optimizer_tensors, optimizer_tensors
from edgetl.train.engine.cuda_graphs import (
    CUDA_GRAPH,
    EAGER,
    autotune_forward,
    cuda_graph_skip_reason,
)
from edgetl.train.engine.optim import (
    Loss,
    LrSchedule,
    Mixup,
    ModelEma,
    make_optimizer,
    running_stats,
)
from edgetl.train.engine.phases import TrainablePhase
from edgetl.train.engine.training_state import PhaseLoopState, PhaseLoopValues, RankState
from edgetl.train.features.partition import wrap_channels_last
from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.freezing import FrozenState

_PROGRESS_INTERVAL_S = 0.1
"""Minimum time between two progress reports within an epoch."""


@dataclass(frozen=True)
class TrainContext:
    """Parts of a run that all of its phases share."""

    config: FinetuneConfig
    adapted_model: AdaptedModel
    loss: Loss
    images_per_epoch: int
    """Training images per epoch, over all processes."""
    progress: TrainingProgress
    processes: Processes = SINGLE_PROCESS
    choices: RunChoices = field(default_factory=RunChoices)
    started_at: float = field(default_factory=time.perf_counter)
    """Start of the run, on the clock of time.perf_counter."""


@dataclass(frozen=True)
class TrainStats:
    """Training part of an epoch."""

    started_at: float
    """Start of the epoch, on the clock of time.perf_counter."""
    loss: float
    """Mean loss over all processes."""
    accuracy: float
    lr: float
    """Learning rate of the last step."""
    images_per_second: float


class PhaseLoop:
    """Training loop of one phase: optimizer, schedule, averaged weights, generators, counters."""

    def __init__(
        self,
        context: TrainContext,
        trainable: TrainablePhase,
        frozen_state: FrozenState,
        total_epochs: int,
        after_step: Callable[[PhaseLoop], None] = lambda loop: None,
    ) -> None:
        """Prepare the loop.

        Args:
            context: the run that the phase belongs to.
            trainable: the phase to train.
            frozen_state: the model's frozen tensors in this phase.
            total_epochs: epochs of all phases, for the progress bar.
            after_step: called after every step; it may save a checkpoint and end the run.
        """
        self._context = context
        self._trainable_phase = trainable
        self._frozen_state = frozen_state
        self._total_epochs = total_epochs
        self._after_step = after_step
        config, model, phase = context.config, context.adapted_model.model, trainable.phase
        self._optimizer = make_optimizer(context.adapted_model, config, phase.lr)
        self._lr_schedule = LrSchedule(
            self._optimizer, config, phase.epochs * trainable.batch_source.steps_per_epoch
        )
        self._mixup = Mixup(config, phase.number)
        self._scaler = trainable.compute_config.make_grad_scaler()
        frozen_state.train_mode()
        self._model_ema = ModelEma(model, config.ema) if config.ema else None
        self._running_stats = running_stats(model)
        self._forward, self.step_report = _choose_forward(context, trainable)
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

    def train_epoch(self, number: int) -> TrainStats:
        """Train an epoch, or the rest of the one that a checkpoint was saved in.

        Args:
            number: the epoch, counted from 1 over all phases.

        Raises:
            KeyboardInterrupt: if `after_step` ended the run.
        """
        started_at = time.perf_counter() - self._elapsed_s
        self._frozen_state.train_mode()
        reported_at = time.perf_counter()
        batch_source = self._trainable_phase.batch_source
        for values, labels in batch_source.iter_train_batches(number, self._batches_done):
            self._train_step(values, labels)
            now = time.perf_counter()
            self._elapsed_s = now - started_at
            images = min(
                self._context.images_per_epoch,
                self._images_done * self._context.processes.world_size,
            )
            is_last = images == self._context.images_per_epoch
            if now - reported_at > _PROGRESS_INTERVAL_S or is_last:
                reported_at = now
                self._report_step(number, images)
            self._after_step(self)
        rate = self._context.images_per_epoch / (time.perf_counter() - started_at)
        loss, accuracy = self._mean_metrics()
        return TrainStats(started_at, loss, accuracy, self._lr, rate)

    def _train_step(self, values: Tensors, labels: Tensor) -> None:
        context, compute_config = self._context, self._trainable_phase.compute_config
        self._lr_schedule.advance()
        self._lr = max(group["lr"] for group in self._optimizer.param_groups)
        mixed = self._mixup(values, labels)
        is_full = len(labels) == self._trainable_phase.batch_source.local_batch_size
        with cudnn_autotuning(is_full), compute_config.autocast():
            logits = self._forward(*mixed.values)
        logits = logits.float()
        loss_sum, weight = context.loss(logits, mixed)
        mean_weight = weight.clone()
        # DistributedDataParallel takes the plain mean of the processes' gradients, and their
        # batches differ in size and weight: every loss is divided by the mean weight.
        context.processes.all_reduce_mean([mean_weight])
        self._optimizer.zero_grad()
        with cudnn_autotuning(is_full):
            self._scaler.scale(loss_sum / mean_weight).backward()  # type: ignore[no-untyped-call]
        self._step_optimizer()
        context.processes.all_reduce_mean(self._running_stats)
        if self._model_ema:
            self._model_ema.update()
        self._batches_done += 1
        self._images_done += len(labels)
        # Summed on the device: reading a number at every step would make a GPU wait for each.
        loss = (loss_sum / weight).detach().double()
        correct = (logits.detach().argmax(1) == labels).sum().double()
        self._metric_sums += torch.stack([loss * len(labels), correct])

    def _step_optimizer(self) -> None:
        max_norm = self._context.config.clip_gradient
        if max_norm:
            self._scaler.unscale_(self._optimizer)
            parameters = self._context.adapted_model.model.parameters()
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _report_step(self, epoch: int, images: int) -> None:
        mean_loss, accuracy = (self._metric_sums / self._images_done).tolist()
        self._context.progress.on_step_end(
            StepProgress(
                self._trainable_phase.phase.number,
                epoch,
                self._total_epochs,
                images,
                self._context.images_per_epoch,
                mean_loss,
                accuracy,
                images / self._elapsed_s,
            )
        )

    def _mean_metrics(self) -> tuple[float, float]:
        """Return the epoch's mean loss and accuracy over all processes."""
        rank_sums = self._context.processes.all_gather(
            [self._images_done, *self._metric_sums.tolist()]
        )
        images, loss_sum, correct = (sum(values) for values in zip(*rank_sums, strict=True))
        return loss_sum / images, correct / images

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the averaged weights, if there are any."""
        return self._model_ema.swapped_in() if self._model_ema else nullcontext()

    def finish_epoch(self, is_best: bool, seconds: float) -> None:
        """Count a validated epoch and start the next one.

        Args:
            is_best: whether it is the best epoch so far.
            seconds: time of its training and validation.
        """
        self.epochs_done += 1
        self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
        self.slowest_epoch_s = max(self.slowest_epoch_s, seconds)
        self._batches_done = 0
        self._images_done = 0
        self._elapsed_s = 0.0
        self._metric_sums.zero_()

    def state_dict(self) -> PhaseLoopState:
        """Return the state for a checkpoint. All processes have to call it."""
        images_done, mixup_state = self._images_done, self._mixup.generator_state
        loss_sum, correct = self._metric_sums.tolist()
        model_ema = self._model_ema
        values = PhaseLoopValues(
            epochs_done=self.epochs_done,
            epochs_since_best=self.epochs_since_best,
            slowest_epoch_s=self.slowest_epoch_s,
            batches_done=self._batches_done,
            lr=self._lr,
            elapsed_s=self._elapsed_s,
            next_step=self._lr_schedule.next_step,
            ranks=tuple(
                self._context.processes.all_gather(
                    RankState(images_done, (loss_sum, correct), mixup_state)
                )
            ),
            ema_updates=model_ema.num_updates if model_ema else 0,
            scaler=self._scaler.state_dict(),
            frozen_digests=self._frozen_state.digests,
        )
        average = enumerate(model_ema.average) if model_ema else ()
        return PhaseLoopState(
            values,
            optimizer=optimizer_tensors(self._optimizer),
            average={str(index): tensor for index, tensor in average},
        )

    def load_state_dict(self, state: PhaseLoopState) -> None:
        """Load the state of a checkpoint.

        Raises:
            ValueError, IndexError: if it belongs to another phase, or its frozen tensors changed.
        """
        values = state.values
        self._check_frozen(values.frozen_digests)
        load_optimizer_tensors(self._optimizer, state.optimizer)
        self.epochs_done = values.epochs_done
        self.epochs_since_best = values.epochs_since_best
        self.slowest_epoch_s = values.slowest_epoch_s
        self._batches_done = values.batches_done
        self._lr = values.lr
        self._elapsed_s = values.elapsed_s
        self._lr_schedule.next_step = values.next_step
        rank_state = values.ranks[self._context.processes.rank]
        self._images_done = rank_state.images_done
        self._mixup.generator_state = dict(rank_state.mixup_generator)
        self._metric_sums.copy_(torch.tensor(rank_state.metric_sums, dtype=torch.float64))
        if values.scaler:
            self._scaler.load_state_dict(dict(values.scaler))
        if self._model_ema:
            _load_average(self._model_ema, state.average, values.ema_updates)

    def _check_frozen(self, saved: Mapping[str, str]) -> None:
        digests = self._frozen_state.digests
        changed = [name for name, digest in saved.items() if digests.get(name) != digest]
        if changed or saved.keys() != digests.keys():
            names = ", ".join((changed or sorted(saved.keys() ^ digests.keys()))[:5])
            raise ValueError(f"frozen tensors changed ({names})")


def _load_average(model_ema: ModelEma, average: Mapping[str, Tensor], num_updates: int) -> None:
    tensors = [average.get(str(index)) for index in range(len(model_ema.average))]
    saved = [tensor for tensor in tensors if tensor is not None]
    if [tensor.shape for tensor in saved] != [tensor.shape for tensor in model_ema.average]:
        raise ValueError("averaged weights are missing")
    model_ema.restore(saved, num_updates)


def _choose_forward(
    context: TrainContext, trainable: TrainablePhase
) -> tuple[Callable[..., Tensor], StepReport]:
    """Return the fastest forward pass for training, and a report on it; the choice is recorded."""
    number = str(trainable.phase.number)
    recorded = context.choices.recorded.steps.get(number)
    forward, report = _autotune_forward(context, trainable)
    if recorded == CUDA_GRAPH and report.runner != CUDA_GRAPH:
        raise choice_unavailable_error(f"CUDA graphs in phase {number}", report.reason)
    if report.reason.startswith("capture failed"):
        context.progress.note(
            f"CUDA graphs of phase {number}: {report.reason}. Its steps run eagerly."
        )
    context.choices.record_entry("steps", number, report.runner)
    return forward, report


def _autotune_forward(
    context: TrainContext, trainable: TrainablePhase
) -> tuple[Callable[..., Tensor], StepReport]:
    config, phase = context.config, trainable.phase
    eager = wrap_channels_last(context.processes.wrap_ddp(trainable.module))
    skip_reason = cuda_graph_skip_reason(
        trainable.compute_config,
        context.processes.world_size,
        config.deterministic,
        config.compile,
        phase.epochs * trainable.batch_source.steps_per_epoch,
    )
    if skip_reason:
        return eager, StepReport(EAGER, {}, skip_reason)
    key = {
        **trainable.measurement_key,
        "training": str(phase.unfreeze),
        "moving": not phase.freeze_statistics,
    }
    forward, report = autotune_forward(
        context.adapted_model.model,
        trainable.module,
        eager,
        next(iter(trainable.batch_source.iter_train_batches(1))),
        trainable.compute_config,
        key,
        recorded=context.choices.recorded.steps.get(str(phase.number)),
    )
    return wrap_channels_last(forward), report
