"""Trainer: runs the phases of a recipe, saves checkpoints, keeps the best epoch's weights."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType

import torch
from torch import Tensor

from edgetl.core.artifacts.run import EpochRecord, append_epoch, write_history
from edgetl.core.artifacts.run_metrics import StepReport
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import RunError
from edgetl.core.paths import RunDirectory
from edgetl.train.engine.budget import FINALIZATION_S
from edgetl.train.engine.checkpoint import checkpoint_errors, write_tensors
from edgetl.train.engine.domain_shift import batch_norm_shift
from edgetl.train.engine.evaluation import Evaluation, evaluate
from edgetl.train.engine.phase_loop import PhaseLoop, TrainContext
from edgetl.train.engine.phases import Phase, TrainablePhase, resolve_phase
from edgetl.train.engine.training_state import (
    PhaseLoopState,
    TrainerState,
    TrainerValues,
    write_training_checkpoint,
)
from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.freezing import set_trainable
from edgetl.train.model.weights import load_weights
from edgetl.train.model.weights_file import PretrainedWeights
from edgetl.train.tracking import Tracker


class InterruptHandler:
    """Handler of Ctrl-C that defers the first interrupt."""

    requested = False
    """Whether the user pressed Ctrl-C inside a deferred block."""

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer the first Ctrl-C inside the block: it only sets `requested`.

        No effect outside the main thread or if another handler is installed.
        """
        is_default_handler = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if not is_default_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._handle_sigint)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle_sigint(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


_WEIGHTS_INTERVAL_S = 2.0
"""Minimum time between two writes of the best epoch's weights during a phase."""
CHECKPOINT_INTERVAL_S = 10.0
"""Minimum time between two checkpoints."""


class Trainer:
    """Training of one run: its phases, its best epoch and its checkpoints."""

    def __init__(
        self,
        context: TrainContext,
        run: RunDirectory,
        *,
        has_validation: bool,
        deadline: float | None = None,
        lr_scale: float = 1.0,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """Prepare the training.

        Args:
            context: what all phases share.
            run: the run directory.
            has_validation: whether there are validation images.
            deadline: latest end of the last epoch, on the clock of time.perf_counter; None without
                --budget.
            lr_scale: factor on the learning rates.
            trackers: receivers of the epochs' metrics.
        """
        self.context = context
        self._run = run
        self._has_validation = has_validation
        self._deadline = deadline
        self._lr_scale = lr_scale
        self._trackers = trackers
        self.records: list[EpochRecord] = []
        self.best: EpochRecord | None = None
        """Best epoch so far.

        Its weights are in memory, and in weights.safetensors after each phase at the latest.
        """
        self.seconds: dict[str, float] = {}
        """Duration of each part of the run."""
        self.trainable_parameters = 0
        """Largest number of trainable parameters in any phase."""
        self.stop_reason = "all epochs"
        """Reason why training ended."""
        self.step_reports: dict[int, StepReport] = {}
        """Reports on the steps of each phase, by its number."""
        self._phase_index = 0
        self._phase: Phase | None = None
        """Current phase; None between two phases."""
        self._loop_state: PhaseLoopState | None = None
        """State of the current phase, until the phase is resumed from it."""
        self._interrupt_handler = InterruptHandler()
        self._saved_at = time.perf_counter()
        self._saving_s = 0.0
        self._best_weights: dict[str, Tensor] = {}
        self._is_best_written = True
        self._best_written_at = -math.inf

    def fit(self, phases: Sequence[TrainablePhase]) -> None:
        """Train the phases, or the rest of them after `load_state_dict`.

        The best epoch's weights are then in the model and in weights.safetensors.

        Raises:
            RunError: if the loss is not finite, or the loaded state does not match.
            KeyboardInterrupt: if the user asked to stop; a checkpoint was saved.
        """
        for index, trainable in enumerate(phases):
            if index < self._phase_index or self.has_reached_target():
                continue
            phase = self._phase or self._resolve_phase(trainable)
            later_epochs = sum(later.phase.epochs for later in phases[index + 1 :])
            self.train_phase(replace(trainable, phase=phase), later_epochs)

    def _resolve_phase(self, trainable: TrainablePhase) -> Phase:
        """Set what the configuration leaves open, from the epochs so far; see `resolve_phase`."""
        config = self.context.config
        if config.budget_s:
            # The budget has already determined the epochs; only the learning rate is open.
            config = replace(config, finetune_epochs=trainable.phase.epochs)
        train_accuracy = self.records[-1].train_accuracy if self.records else None
        shift = partial(_measure_shift, self.context.adapted_model, trainable)
        return self.context.processes.broadcast(
            resolve_phase(trainable.phase, config, train_accuracy, shift, self._lr_scale)
        )

    def train_phase(self, trainable: TrainablePhase, later_epochs: int) -> None:
        """Train one phase, then load the weights of the best epoch so far into the model.

        Args:
            trainable: the phase to train.
            later_epochs: epochs of the phases after it, for the progress bar.
        """
        started = time.perf_counter()
        self._phase = phase = trainable.phase
        frozen_state = set_trainable(
            self.context.adapted_model, phase.unfreeze, phase.freeze_statistics
        )
        self.trainable_parameters = max(
            self.trainable_parameters,
            sum(parameter.numel() for parameter in frozen_state.trainable_parameters()),
        )
        state, self._loop_state = self._loop_state, None
        earlier_epochs = len(self.records) - (state.values.epochs_done if state else 0)
        total_epochs = earlier_epochs + phase.epochs + later_epochs
        loop = PhaseLoop(self.context, trainable, frozen_state, total_epochs, self.save_if_due)
        self.step_reports[phase.number] = loop.step_report
        if state is not None:
            with checkpoint_errors(self._run.checkpoint):
                loop.load_state_dict(state)
        while loop.epochs_done < phase.epochs and not self._should_stop(phase, loop):
            self._train_epoch(trainable, loop)
        frozen_state.verify_unchanged()
        if self.best is not None:
            self.load_best()
        self.add_seconds(f"phase{phase.number}", time.perf_counter() - started)
        self._phase_index += 1
        self._phase = None
        self.save_if_due(None)

    def _train_epoch(self, trainable: TrainablePhase, loop: PhaseLoop) -> None:
        number = len(self.records) + 1
        with self._interrupt_handler.deferred():
            train = loop.train_epoch(number)
        is_validated = False
        try:
            with loop.averaged_weights():
                val = self.validate(trainable)
                is_validated = True
                with self._interrupt_handler.deferred():
                    now = time.perf_counter()
                    record = EpochRecord(
                        phase=trainable.phase.number,
                        epoch=number,
                        train_loss=train.loss,
                        train_accuracy=train.accuracy,
                        val_loss=val.loss if val else None,
                        val_accuracy=val.accuracy if val else None,
                        lr=train.lr,
                        seconds=now - train.started_at,
                        images_per_second=train.images_per_second,
                        elapsed=now - self.context.started_at,
                    )
                    is_best = self._record_epoch(record)
                    loop.finish_epoch(is_best, record.seconds)
        except KeyboardInterrupt:
            # All batches of the epoch are trained: a resumed run only repeats the validation.
            if not is_validated and not self.context.processes.is_distributed:
                self.save_checkpoint(loop)
            raise
        self.save_if_due(loop)

    def validate(self, trainable: TrainablePhase) -> Evaluation | None:
        """Evaluate the validation images in float32, as the exported model will compute them.

        Returns:
            None without validation images.
        """
        self.context.adapted_model.model.eval()
        if not self._has_validation:
            return None
        batches = trainable.batch_source.iter_val_batches()
        return evaluate(trainable.forward, batches, self.context.processes)

    def _record_epoch(self, record: EpochRecord) -> bool:
        """Record an epoch; copy the model's current weights if it is the best so far.

        Returns:
            Whether it is the best epoch so far.

        Raises:
            RunError: if a loss is not finite.
        """
        if not math.isfinite(record.train_loss) or not math.isfinite(record.val_loss or 0.0):
            raise RunError(
                f"The loss is not finite in epoch {record.epoch}. "
                "Lower {lr} and {finetune_lr}, or use {precision} fp32.",
                FinetuneConfig,
            )
        is_best = record.is_better_than(self.best)
        if is_best:
            # safetensors stores row-major tensors only; the model's are channels last.
            state = self.context.adapted_model.model.state_dict()
            self._best_weights = {
                name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()
            }
            self.best = record
            self._is_best_written = False
            # Epochs on cached features can end faster than a disk writes their weights.
            if time.perf_counter() - self._best_written_at > _WEIGHTS_INTERVAL_S:
                self.write_best()
        self.records.append(record)
        if self.context.processes.is_main:
            append_epoch(self._run, record)
        self.context.progress.on_epoch_end(record, is_best)
        for tracker in self._trackers:
            tracker.log_epoch(record)
        return is_best

    def _should_stop(self, phase: Phase, loop: PhaseLoop) -> bool:
        progress, choices = self.context.progress, self.context.choices
        # A reproduced run ends after the recorded epoch, however fast this machine is.
        recorded_end = choices.recorded.ended_after.get(str(phase.number))
        if recorded_end is not None and loop.epochs_done >= recorded_end:
            self.stop_reason = "--budget"
            progress.note(f"Phase {phase.number} ends early, as recorded (--budget).")
            return True
        is_late = (
            self._deadline is not None
            and time.perf_counter() + loop.slowest_epoch_s + FINALIZATION_S > self._deadline
        )
        if self.best is not None and self.context.processes.broadcast(is_late):
            self.stop_reason = "--budget"
            choices.record_entry("ended_after", str(phase.number), loop.epochs_done)
            progress.note(
                f"Phase {phase.number} ends early: another epoch would not fit into --budget."
            )
        elif loop.epochs_done and self.has_reached_target():
            target = self.context.config.target_accuracy
            self.stop_reason = "--target-accuracy"
            progress.note(f"Reached --target-accuracy {target:g}.")
        elif self.context.config.patience and (
            loop.epochs_since_best >= self.context.config.patience
        ):
            progress.note(
                f"Phase {phase.number} ends early: no improvement for {loop.epochs_since_best} "
                "epochs (--patience)."
            )
        else:
            return False
        return True

    def has_reached_target(self) -> bool:
        """Return whether the best epoch reaches `target_accuracy`."""
        target, best = self.context.config.target_accuracy, self.best
        return (
            target is not None
            and best is not None
            and best.val_accuracy is not None
            and best.val_accuracy >= target
        )

    def add_seconds(self, part: str, seconds: float) -> None:
        """Add to the duration of a part of the run."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def load_best(self) -> None:
        """Load the best epoch's weights into the model and make sure that they are on disk."""
        self.write_best()
        weights = PretrainedWeights(dict(self._best_weights), str(self._run.weights), "")
        load_weights(self.context.adapted_model.model, weights, "the model being trained")

    def write_best(self) -> None:
        """Write the best epoch's weights unless weights.safetensors already holds them."""
        if self._best_weights and not self._is_best_written and self.context.processes.is_main:
            write_tensors(self._run.weights, self._best_weights)
            self._is_best_written = True
            self._best_written_at = time.perf_counter()

    def save_if_due(self, loop: PhaseLoop | None) -> None:
        """Save a checkpoint if one is due (at most 5% of the time) or if a stop was requested.

        Raises:
            KeyboardInterrupt: if the user asked to stop.
        """
        interval_s = max(CHECKPOINT_INTERVAL_S, 20 * self._saving_s)
        is_due = time.perf_counter() - self._saved_at > interval_s
        is_stop_requested, is_due = self.context.processes.all_reduce_any(
            self._interrupt_handler.requested, is_due
        )
        if is_stop_requested or is_due:
            self.save_checkpoint(loop)
        if is_stop_requested:
            raise KeyboardInterrupt

    def save_checkpoint(self, loop: PhaseLoop | None) -> None:
        """Write a checkpoint.

        Args:
            loop: the loop of the current phase; None between two phases.

        Raises:
            OSError: if it cannot be written; the previous checkpoint is unchanged.
        """
        started = time.perf_counter()
        state = self.state_dict(loop)
        if self.context.processes.is_main:
            write_training_checkpoint(self._run.checkpoint, state)
        self._saved_at = time.perf_counter()
        self._saving_s = self._saved_at - started

    def state_dict(self, loop: PhaseLoop | None) -> TrainerState:
        """Return the state for a checkpoint. All processes have to call it."""
        context = self.context
        values = TrainerValues(
            processes=context.processes.world_size,
            phase_index=self._phase_index,
            phase=self._phase,
            records=tuple(self.records),
            best_epoch=self.best.epoch if self.best else None,
            seconds=self.seconds,
            elapsed_s=time.perf_counter() - context.started_at,
            trainable_parameters=self.trainable_parameters,
            stop_reason=self.stop_reason,
            step_reports={str(number): report for number, report in self.step_reports.items()},
        )
        device = context.loss.device
        local_generators = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            local_generators["cuda"] = torch.cuda.get_rng_state(device)
        return TrainerState(
            values,
            model=context.adapted_model.model.state_dict(),
            best_weights=self._best_weights,
            generators={
                f"{rank}/{name}": generator
                for rank, generators in enumerate(context.processes.all_gather(local_generators))
                for name, generator in generators.items()
            },
            loop=loop.state_dict() if loop else None,
        )

    def load_state_dict(self, state: TrainerState) -> None:
        """Load the state of a checkpoint; `fit` then resumes the current phase from it.

        Raises:
            RunError: if it belongs to another model or number of processes.
        """
        context, values = self.context, state.values
        if values.processes != context.processes.world_size:
            raise RunError(
                f"{self._run.checkpoint} was written by {values.processes} processes, "
                f"got {context.processes.world_size}. Resume with as many processes."
            )
        with checkpoint_errors(self._run.checkpoint):
            context.adapted_model.model.load_state_dict(state.model)
        self.records = list(values.records)
        self.best = values.best_record
        self._best_weights = dict(state.best_weights)
        self._is_best_written = False
        self._phase_index = values.phase_index
        self._phase = values.phase
        self._loop_state = state.loop
        self.seconds = dict(values.seconds)
        self.trainable_parameters = values.trainable_parameters
        self.stop_reason = values.stop_reason or self.stop_reason
        self.step_reports = {int(number): item for number, item in values.step_reports.items()}
        self.write_best()
        # Epochs after the checkpoint are trained again, so their records are dropped.
        if context.processes.is_main:
            write_history(self._run, self.records)
        rank, device = context.processes.rank, context.loss.device
        torch.set_rng_state(state.generators[f"{rank}/cpu"])
        cuda_generator = state.generators.get(f"{rank}/cuda")
        if cuda_generator is not None and device.type == "cuda":
            torch.cuda.set_rng_state(cuda_generator, device)


def _measure_shift(adapted: AdaptedModel, trainable: TrainablePhase) -> float:
    set_trainable(adapted, trainable.phase.unfreeze)
    batches = trainable.batch_source.iter_train_batches(1)
    return batch_norm_shift(adapted.model, trainable.forward, batches)
