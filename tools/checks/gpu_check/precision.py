"""Training in fp32, bf16 and fp16 with the same seed."""

from __future__ import annotations

from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.training_run import finetune

MAX_SPREAD = 0.01
"""Allowed spread of the accuracies."""


def check_precision(settings: Settings, record: Record) -> None:
    """Run step `precision`: finite losses and equal accuracy in every precision."""
    # --precision fp16 is rejected on a CPU.
    names = ("fp32", "bf16") if settings.rehearsal else ("fp32", "bf16", "fp16")
    epochs = ("1", "1") if settings.rehearsal else ("4", "2")
    accuracies = {}
    for name in names:
        more = ("--precision", name, "--epochs", epochs[0], "--finetune-epochs", epochs[1])
        run = finetune(settings, f"precision-{name}", *more)
        record.require(f"{name}: the run succeeds", run.status == 0, run.status)
        record.require(f"{name}: every loss is finite", run.losses_are_finite)
        accuracies[name] = run.accuracy
        figures = {
            "seconds": run.seconds,
            "accuracy": run.accuracy,
            "history": format_losses(run.history),
        }
        record.measure(**{name: figures})
    spread = max(accuracies.values()) - min(accuracies.values())
    # A rehearsal has only 16 validation images, too few for these limits.
    max_spread = 1.0 if settings.rehearsal else MAX_SPREAD
    detail = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items())
    record.require(f"accuracies lie within {max_spread:.0%}", spread <= max_spread + 1e-9, detail)
    required = 0.0 if settings.rehearsal else 0.8
    lowest = min(accuracies.values())
    text = f"every accuracy is at least {required:.0%}"
    record.require(text, lowest >= required, f"{lowest:.4f}")


def format_losses(history: list[dict[str, float]]) -> list[str]:
    """Return the training and the validation loss of each epoch as text."""
    return [f"{entry['train_loss']:.4f} / {entry['val_loss']:.4f}" for entry in history]
