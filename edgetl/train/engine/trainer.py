"""Trainer: runs the phases of a recipe, saves checkpoints, keeps the best epoch's weights."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType

import torch
from torch import Tensor

from edgetl.core.artifacts.run import EpochRecord, append_epoch, write_history
from edgetl.core.artifacts.run_metrics import StepReport
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import RunError
from edgetl.core.paths import RunDirectory
from edgetl.core.progress import TrainingProgress
from edgetl.core.typed_json import to_json
from edgetl.train.common.distributed import SINGLE_PROCESS, Processes
from edgetl.train.common.run_choices import RunChoices
from edgetl.train.engine.budget import FINALIZATION_S
from edgetl.train.engine.checkpoint import (
    Checkpoint,
    CheckpointPart,
    write_checkpoint,
    write_tensors,
)
from edgetl.train.engine.evaluation import Evaluation, evaluate
from edgetl.train.engine.optim import Loss
from edgetl.train.engine.phase_builder import TrainablePhase
from edgetl.train.engine.phase_loop import PhaseLoop
from edgetl.train.engine.phases import Phase
from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.freezing import set_trainable
from edgetl.train.model.weights import PretrainedWeights, load_weights
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


@dataclass
class Trainer:
    """Training of one run: what its epochs share, and its progress."""

    config: FinetuneConfig
    run: RunDirectory
    adapted_model: AdaptedModel
    loss: Loss
    images_per_epoch: int
    """Training images per epoch, over all processes."""
    has_validation: bool
    """Whether there are validation images."""
    progress: TrainingProgress
    trackers: Sequence[Tracker] = ()
    processes: Processes = SINGLE_PROCESS
    started_at: float = field(default_factory=time.perf_counter)
    """Start of the run, on the clock of time.perf_counter."""
    deadline: float | None = None
    """Latest end of the last epoch, on the clock of time.perf_counter; None without --budget."""
    best: EpochRecord | None = None
    """Best epoch so far.

    Its weights are in memory, and in weights.safetensors after each phase at the latest.
    """
    records: list[EpochRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    trainable_parameters: int = 0
    """Largest number of trainable parameters in any phase."""
    stop_reason: str = "all epochs"
    """Reason why training ended."""
    phase_index: int = 0
    """Index of the current phase, counted from 0."""
    phase: Phase | None = None
    """Current phase; None between two phases."""
    step_reports: dict[int, StepReport] = field(default_factory=dict)
    """Reports on the steps of each phase, by its number."""
    choices: RunChoices = field(default_factory=RunChoices)
    interrupt_handler: InterruptHandler = field(default_factory=InterruptHandler)
    _saved_at: float = field(default_factory=time.perf_counter)
    _saving_s: float = 0.0
    _best_weights: dict[str, Tensor] = field(default_factory=dict)
    _is_best_written: bool = True
    _best_written_at: float = -math.inf

    def run_phase(
        self, trainable: TrainablePhase, epochs_left: int, checkpoint: Checkpoint | None = None
    ) -> None:
        """Train one phase, then load the weights of the best epoch so far into the model.

        Args:
            trainable: the phase to train.
            epochs_left: epochs of this phase and those after it, for the progress bar.
            checkpoint: a checkpoint that was saved in this phase.

        Raises:
            RunError: if the loss is not finite, or the checkpoint does not match.
            KeyboardInterrupt: if the user asked to stop; a checkpoint was saved.
        """
        started = time.perf_counter()
        phase = trainable.phase
        self.phase = phase
        frozen_state = set_trainable(self.adapted_model, phase.unfreeze, phase.freeze_statistics)
        self.trainable_parameters = max(
            self.trainable_parameters,
            sum(parameter.numel() for parameter in frozen_state.trainable_parameters()),
        )
        resumed_epochs = checkpoint.metadata["epochs"]["done"] if checkpoint else 0
        total_epochs = len(self.records) - resumed_epochs + epochs_left
        loop = PhaseLoop(self, trainable, frozen_state, total_epochs)
        if checkpoint:
            loop.restore(checkpoint)
        while loop.epochs_done < phase.epochs and not self._should_stop(loop):
            loop.run_epoch()
        frozen_state.verify_unchanged()
        if self.best is not None:
            self.load_best()
        name = f"phase{phase.number}"
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.phase_index += 1
        self.phase = None
        self.save_if_due(None)

    def _should_stop(self, loop: PhaseLoop) -> bool:
        number = self.phase.number if self.phase else 0
        # A reproduced run ends after the recorded epoch, however fast this machine is.
        recorded_end = self.choices.recorded.ended_after.get(str(number))
        if recorded_end is not None and loop.epochs_done >= recorded_end:
            self.stop_reason = "--budget"
            self.progress.note(f"Phase {number} ends early, as recorded (--budget).")
            return True
        is_late = (
            self.deadline is not None
            and time.perf_counter() + loop.slowest_epoch_s + FINALIZATION_S > self.deadline
        )
        if self.best is not None and self.processes.broadcast(is_late):
            self.stop_reason = "--budget"
            self.choices.record_entry("ended_after", str(number), loop.epochs_done)
            self.progress.note(
                f"Phase {number} ends early: another epoch would not fit into --budget."
            )
        elif loop.epochs_done and self.has_reached_target():
            self.stop_reason = "--target-accuracy"
            self.progress.note(f"Reached --target-accuracy {self.config.target_accuracy:g}.")
        elif self.config.patience and loop.epochs_since_best >= self.config.patience:
            self.progress.note(
                f"Phase {number} ends early: no improvement for {loop.epochs_since_best} epochs "
                "(--patience)."
            )
        else:
            return False
        return True

    def save_if_due(self, loop: PhaseLoop | None) -> None:
        """Save a checkpoint if one is due (at most 5% of the time) or if a stop was requested.

        Raises:
            KeyboardInterrupt: if the user asked to stop.
        """
        interval_s = max(CHECKPOINT_INTERVAL_S, 20 * self._saving_s)
        is_due = time.perf_counter() - self._saved_at > interval_s
        is_stop_requested, is_due = self.processes.all_reduce_any(
            self.interrupt_handler.requested, is_due
        )
        if is_stop_requested or is_due:
            self.save(loop)
        if is_stop_requested:
            raise KeyboardInterrupt

    def save(self, loop: PhaseLoop | None) -> None:
        """Write a checkpoint.

        Args:
            loop: the loop of the current phase; None between two phases.

        Raises:
            OSError: if it cannot be written; the previous checkpoint is unchanged.
        """
        started = time.perf_counter()
        facts = {
            "processes": self.processes.world_size,
            "stage": self.phase_index,
            "phase": asdict(self.phase) if self.phase else None,
            "epochs": loop.checkpoint_metadata() if loop else None,
            "records": [asdict(record) for record in self.records],
            "best": self.best.epoch if self.best else None,
            "seconds": self.seconds,
            "elapsed": started - self.started_at,
            "trainable": self.trainable_parameters,
            "ended": self.stop_reason,
            "steps": {str(number): to_json(report) for number, report in self.step_reports.items()},
        }
        local_generators = {"cpu": torch.get_rng_state()}
        if self.loss.device.type == "cuda":
            local_generators["cuda"] = torch.cuda.get_rng_state(self.loss.device)
        generators = {
            f"{rank}/{name}": state
            for rank, states in enumerate(self.processes.all_gather(local_generators))
            for name, state in states.items()
        }
        if self.processes.is_main:
            parts: dict[str, CheckpointPart] = {
                "network": self.adapted_model.model,
                "best": self._best_weights,
                "generator": generators,
            }
            if loop:
                parts |= loop.checkpoint_parts()
            write_checkpoint(self.run.checkpoint, parts, facts)
        self._saved_at = time.perf_counter()
        self._saving_s = self._saved_at - started

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore everything but the state of the current phase, which `run_phase` restores.

        Raises:
            RunError: if the checkpoint belongs to another model or number of processes.
        """
        facts = checkpoint.metadata
        if facts["processes"] != self.processes.world_size:
            raise RunError(
                f"{checkpoint.path} was written by {facts['processes']} processes, "
                f"got {self.processes.world_size}. Resume with as many processes."
            )
        checkpoint.restore("network", self.adapted_model.model)
        self.records = [EpochRecord(**record) for record in facts["records"]]
        self.best = next((record for record in self.records if record.epoch == facts["best"]), None)
        self._best_weights = checkpoint.part_tensors("best")
        self._is_best_written = False
        self.phase_index = facts["stage"]
        self.seconds = facts["seconds"]
        self.trainable_parameters = facts["trainable"]
        self.stop_reason = facts["ended"]
        self.step_reports = {
            int(number): StepReport(**report) for number, report in facts.get("steps", {}).items()
        }
        self.write_best()
        # Epochs after the checkpoint are trained again, so their records are dropped.
        if self.processes.is_main:
            write_history(self.run, self.records)
        generators = checkpoint.part_tensors(f"generator/{self.processes.rank}")
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators and self.loss.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"], self.loss.device)

    def has_reached_target(self) -> bool:
        """Return whether the best epoch reaches `target_accuracy`."""
        target, best = self.config.target_accuracy, self.best
        return (
            target is not None
            and best is not None
            and best.val_accuracy is not None
            and best.val_accuracy >= target
        )

    def load_best(self) -> None:
        """Load the best epoch's weights into the model and make sure that they are on disk."""
        self.write_best()
        weights = PretrainedWeights(dict(self._best_weights), str(self.run.weights), "")
        load_weights(self.adapted_model.model, weights, "the model being trained")

    def write_best(self) -> None:
        """Write the best epoch's weights unless weights.safetensors already holds them."""
        if self._best_weights and not self._is_best_written and self.processes.is_main:
            write_tensors(self.run.weights, self._best_weights)
            self._is_best_written = True
            self._best_written_at = time.perf_counter()

    def record_epoch(self, record: EpochRecord) -> bool:
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
            state = self.adapted_model.model.state_dict()
            self._best_weights = {
                name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()
            }
            self.best = record
            self._is_best_written = False
            # Epochs on cached features can end faster than a disk writes their weights.
            if time.perf_counter() - self._best_written_at > _WEIGHTS_INTERVAL_S:
                self.write_best()
        self.records.append(record)
        if self.processes.is_main:
            append_epoch(self.run, record)
        self.progress.on_epoch_end(record, is_best)
        for tracker in self.trackers:
            tracker.log_epoch(record)
        return is_best

    def evaluate(self, trainable: TrainablePhase) -> Evaluation | None:
        """Evaluate the validation images in float32, as the exported model will compute them.

        Returns:
            None without validation images.
        """
        self.adapted_model.model.eval()
        if not self.has_validation:
            return None
        batches = trainable.batch_source.iter_val_batches()
        return evaluate(trainable.forward, batches, self.processes)
