"""The training procedure: stage after stage, epoch after epoch; the best epoch of all is kept."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType

import torch
from torch import Tensor

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import RunError
from edgetl.core.files import write_text
from edgetl.core.paths import RunDirectory
from edgetl.train.common.distributed import SINGLE_PROCESS, Processes
from edgetl.train.common.progress import EpochRecord, Progress
from edgetl.train.common.run_choices import RunChoices
from edgetl.train.engine.budget import FINALIZATION_S
from edgetl.train.engine.checkpoint import (
    Checkpoint,
    CheckpointPart,
    write_checkpoint,
    write_tensors,
)
from edgetl.train.engine.cuda_graphs import StepReport
from edgetl.train.engine.evaluation import Evaluation, evaluate
from edgetl.train.engine.optim import Loss
from edgetl.train.engine.phase_builder import TrainablePhase
from edgetl.train.engine.phase_loop import PhaseLoop
from edgetl.train.engine.phases import Phase
from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.freezing import set_trainable
from edgetl.train.model.weights import PretrainedWeights, load_weights


class InterruptHandler:
    """Whether the user has asked to stop."""

    requested = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first Ctrl-C only sets `asked`. Elsewhere, and where somebody else answers it, all is as it was."""
        mine = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if not mine:
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
CHECKPOINT_INTERVAL_S = 10.0
"""Least time from one checkpoint to the next."""


@dataclass
class Trainer:
    """What the epochs share, and how far they have come."""

    config: FinetuneConfig
    run: RunDirectory
    adapted_model: AdaptedModel
    loss: Loss
    images_per_epoch: int
    """Of an epoch."""
    has_validation: bool
    """Whether there are validation images."""
    progress: Progress
    processes: Processes = SINGLE_PROCESS
    started_at: float = field(default_factory=time.perf_counter)
    """When the run began, on the clock of time.perf_counter."""
    deadline: float | None = None
    """On the clock of time.perf_counter: no epoch begins that would end after it."""
    best: EpochRecord | None = None
    """The epoch whose weights are kept: in weights.safetensors at the end of each stage, a moment earlier in memory."""
    records: list[EpochRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    trainable_parameters: int = 0
    """Parameters of the phase that trained most."""
    stop_reason: str = "all epochs"
    """Why training ended."""
    phase_index: int = 0
    """Which one is trained, counted from 0."""
    phase: Phase | None = None
    """Of the stage that is trained; None between two."""
    step_reports: dict[int, StepReport] = field(default_factory=dict)
    """Phase to how its steps are run."""
    choices: RunChoices = field(default_factory=RunChoices)
    interrupt_handler: InterruptHandler = field(default_factory=InterruptHandler)
    _saved_at: float = field(default_factory=time.perf_counter)
    _saving_s: float = 0.0
    _best_weights: dict[str, Tensor] = field(default_factory=dict)
    _is_best_written: bool = True
    _best_written_at: float = -math.inf

    def run_phase(
        self, stage: TrainablePhase, epochs_left: int, state: Checkpoint | None = None
    ) -> None:
        """Train one stage; weights.safetensors and the network end as the best epoch so far left them.

        Args:
            epochs_left: of this stage and those after it, for the progress bar.
            state: a checkpoint that was saved in this stage.

        Raises:
            RunError: the loss is no longer a finite number, or the checkpoint does not fit.
            KeyboardInterrupt: the user asked to stop; a checkpoint was saved.
        """
        started = time.perf_counter()
        self.phase = stage.phase
        freezing = set_trainable(
            self.adapted_model, stage.phase.unfreeze, stage.phase.freeze_statistics
        )
        self.trainable_parameters = max(
            self.trainable_parameters,
            sum(parameter.numel() for parameter in freezing.trainable_parameters()),
        )
        before = state.metadata["epochs"]["done"] if state else 0
        epochs = PhaseLoop(self, stage, freezing, len(self.records) - before + epochs_left)
        if state:
            epochs.restore(state)
        while epochs.epochs_done < stage.phase.epochs and not self._should_stop(epochs):
            epochs.run_epoch()
        freezing.verify_unchanged()
        if self.best is not None:
            self.load_best()
        name = f"phase{stage.phase.number}"
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.phase_index, self.phase = self.phase_index + 1, None
        self.save_if_due(None)

    def _should_stop(self, epochs: PhaseLoop) -> bool:
        number = self.phase.number if self.phase else 0
        # A run that is computed again ends where the clock ended it the first time.
        if (
            recorded := self.choices.recorded.ended_after.get(str(number))
        ) is not None and epochs.epochs_done >= recorded:
            self.stop_reason = "--budget"
            self.progress.note(f"Phase {number} ends early, as recorded (--budget).")
            return True
        late = (
            self.deadline is not None
            and time.perf_counter() + epochs.slowest_epoch_s + FINALIZATION_S > self.deadline
        )
        if self.best is not None and self.processes.broadcast(late):
            self.stop_reason = "--budget"
            self.choices.record_entry("ended_after", str(number), epochs.epochs_done)
            self.progress.note(
                f"Phase {number} ends early: another epoch would not fit into --budget."
            )
        elif epochs.epochs_done and self.has_reached_target():
            self.stop_reason = "--target-accuracy"
            self.progress.note(f"--target-accuracy {self.config.target_accuracy:g} is reached.")
        elif self.config.patience and epochs.epochs_since_best >= self.config.patience:
            self.progress.note(
                f"Phase {number} ends: {epochs.epochs_since_best} epochs without a better one (--patience)."
            )
        else:
            return False
        return True

    def save_if_due(self, epochs: PhaseLoop | None) -> None:
        """Write a checkpoint if the last one is old enough that writing them takes a twentieth of the time at most, or to stop.

        Raises:
            KeyboardInterrupt: the user asked to stop.
        """
        due = time.perf_counter() - self._saved_at > max(CHECKPOINT_INTERVAL_S, 20 * self._saving_s)
        asked, due = self.processes.all_reduce_any(self.interrupt_handler.requested, due)
        if asked or due:
            self.save(epochs)
        if asked:
            raise KeyboardInterrupt

    def save(self, epochs: PhaseLoop | None) -> None:
        """Write a checkpoint: within a stage, or between two (None).

        Raises:
            OSError: there is no room; the last one is as it was.
        """
        started = time.perf_counter()
        facts = {
            "processes": self.processes.world_size,
            "stage": self.phase_index,
            "phase": asdict(self.phase) if self.phase else None,
            "epochs": epochs.checkpoint_metadata() if epochs else None,
            "records": [record.to_json() for record in self.records],
            "best": self.best.epoch if self.best else None,
            "seconds": self.seconds,
            "elapsed": started - self.started_at,
            "trainable": self.trainable_parameters,
            "ended": self.stop_reason,
            "steps": {
                str(number): report.to_json() for number, report in self.step_reports.items()
            },
        }
        own = {"cpu": torch.get_rng_state()}
        if self.loss.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.loss.device)
        generators = {
            f"{rank}/{name}": state
            for rank, states in enumerate(self.processes.all_gather(own))
            for name, state in states.items()
        }
        if self.processes.is_main:
            parts: dict[str, CheckpointPart] = {
                "network": self.adapted_model.model,
                "best": self._best_weights,
                "generator": generators,
            }
            write_checkpoint(
                self.run.checkpoint,
                {**parts, **(epochs.checkpoint_parts() if epochs else {})},
                facts,
            )
        self._saved_at = time.perf_counter()
        self._saving_s = self._saved_at - started

    def restore(self, state: Checkpoint) -> None:
        """Go on with a checkpoint: everything but what lives as long as a stage, which `run_stage` restores.

        Raises:
            RunError: it belongs to another network, or another number of processes.
        """
        facts = state.metadata
        if facts["processes"] != self.processes.world_size:
            raise RunError(
                f"{state.path} is of {facts['processes']} processes and this is one of {self.processes.world_size}: go on with as many."
            )
        state.restore("network", self.adapted_model.model)
        self.records = [EpochRecord(**record) for record in facts["records"]]
        self.best = next((record for record in self.records if record.epoch == facts["best"]), None)
        self._best_weights, self._is_best_written = state.part_tensors("best"), False
        self.phase_index, self.seconds, self.trainable_parameters, self.stop_reason = (
            facts[name] for name in ("stage", "seconds", "trainable", "ended")
        )
        self.step_reports = {
            int(number): StepReport(**report) for number, report in facts.get("steps", {}).items()
        }
        self.write_best()
        # What was trained after the checkpoint is trained again.
        if self.processes.is_main:
            write_text(
                self.run.history,
                "".join(json.dumps(record.to_json()) + "\n" for record in self.records),
            )
        generators = state.part_tensors(f"generator/{self.processes.rank}")
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators and self.loss.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"], self.loss.device)

    def has_reached_target(self) -> bool:
        """Whether the best epoch is as good as the user asked for."""
        target, best = self.config.target_accuracy, self.best
        return (
            target is not None
            and best is not None
            and best.val_accuracy is not None
            and best.val_accuracy >= target
        )

    def load_best(self) -> None:
        """Set the network to the best epoch's weights, and see to it that they are in weights.safetensors."""
        self.write_best()
        weights = PretrainedWeights(dict(self._best_weights), str(self.run.weights), "")
        load_weights(self.adapted_model.model, weights, "the network being trained")

    def write_best(self) -> None:
        """Write the best epoch's weights if the file does not hold them yet."""
        if self._best_weights and not self._is_best_written and self.processes.is_main:
            write_tensors(self.run.weights, self._best_weights)
            self._is_best_written, self._best_written_at = True, time.perf_counter()

    def record_epoch(self, record: EpochRecord) -> bool:
        """Note an epoch; its weights, as they are in the network now, are kept if it is the best."""
        if not math.isfinite(record.train_loss) or not math.isfinite(record.val_loss or 0.0):
            raise RunError(
                f"The loss is not finite in epoch {record.epoch}. Take a lower --lr and --finetune-lr, or --precision fp32."
            )
        is_best = is_better(record, self.best)
        if is_best:
            # safetensors stores row-major tensors only; the network's are channels last.
            state = self.adapted_model.model.state_dict()
            self._best_weights = {
                name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()
            }
            self.best, self._is_best_written = record, False
            # Epochs on cached features end faster than a disk takes their weights.
            if time.perf_counter() - self._best_written_at > _WEIGHTS_INTERVAL_S:
                self.write_best()
        self.records.append(record)
        if self.processes.is_main:
            with self.run.history.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record.to_json()) + "\n")
        self.progress.on_epoch_end(record, is_best)
        return is_best

    def evaluate(self, stage: TrainablePhase) -> Evaluation | None:
        """The validation images, in float32 as the exported model will compute them."""
        self.adapted_model.model.eval()
        return (
            evaluate(stage.forward, stage.batch_source.iter_val_batches(), self.processes)
            if self.has_validation
            else None
        )


def is_better(record: EpochRecord, best: EpochRecord | None) -> bool:
    """By validation accuracy, ties by validation loss; without validation the later epoch."""
    if best is None or record.val_accuracy is None or best.val_accuracy is None:
        return True
    return (-record.val_accuracy, record.val_loss) < (-best.val_accuracy, best.val_loss)
