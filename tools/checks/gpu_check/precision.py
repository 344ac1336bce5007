"""Training in fp32, bf16 and fp16 from one seed."""

from __future__ import annotations

from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.training_run import finetune

POINT = 0.01
"""Of accuracy."""


def check_precision(settings: Settings, record: Record) -> None:
    """Step `precision`."""
    # --precision fp16 is refused on a CPU.
    names = ("fp32", "bf16") if settings.rehearsal else ("fp32", "bf16", "fp16")
    epochs = ("1", "1") if settings.rehearsal else ("4", "2")
    accuracies = {}
    for name in names:
        more = ("--precision", name, "--epochs", epochs[0], "--finetune-epochs", epochs[1])
        run = finetune(settings, f"precision-{name}", *more)
        record.require(f"{name}: the run ends well", run.status == 0, run.status)
        record.require(f"{name}: every loss is finite", run.losses_are_finite)
        accuracies[name] = run.accuracy
        figures = {"seconds": run.seconds, "accuracy": run.accuracy, "history": losses(run.history)}
        record.measure(**{name: figures})
    spread = max(accuracies.values()) - min(accuracies.values())
    # Hundreds of images in a few epochs: the rehearsal's 16 validation images decide nothing.
    allowed = 1.0 if settings.rehearsal else POINT
    detail = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items())
    record.require(f"accuracies lie within {allowed:.0%}", spread <= allowed + 1e-9, detail)
    least = 0.0 if settings.rehearsal else 0.8
    lowest = min(accuracies.values())
    record.require(f"every accuracy is at least {least:.0%}", lowest >= least, f"{lowest:.4f}")


def losses(history: list[dict[str, float]]) -> list[str]:
    """Training and validation loss of each epoch."""
    return [f"{entry['train_loss']:.4f} / {entry['val_loss']:.4f}" for entry in history]
