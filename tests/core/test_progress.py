"""The library logs where no progress object is given."""

from __future__ import annotations

import logging

import pytest

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.progress import NullProgress, StepProgress, TrainingProgress, log_progress

RECORD = EpochRecord(1, 1, 0.5, 0.5, 0.5, 0.5, 1e-3, 1.0, 10.0, 1.0)
STEP = StepProgress(1, 1, 2, 8, 16, 0.5, 0.5, 10.0)


def test_log_progress_shows_counts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "edgetl"):
        log_progress("Writing the ONNX graph", 0, 0)
        log_progress("Proving 100% of fp32", 3, 8)
    assert caplog.record_tuples == [
        ("edgetl", logging.INFO, "Writing the ONNX graph"),
        ("edgetl", logging.DEBUG, "Proving 100% of fp32 (3 of 8)"),
    ]


def test_training_progress_logs_notes_and_warnings(caplog: pytest.LogCaptureFixture) -> None:
    progress = TrainingProgress()
    with caplog.at_level(logging.INFO, "edgetl"):
        progress.note("3 classes.")
        progress.warn("100% of the images are alike.")
        progress.on_progress("checking images", 1, 2)
        progress.on_step_end(STEP)
        progress.on_epoch_end(RECORD, best=True)
    assert caplog.record_tuples == [
        ("edgetl", logging.INFO, "3 classes."),
        ("edgetl", logging.WARNING, "100% of the images are alike."),
    ]


def test_null_progress_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        NullProgress().note("3 classes.")
        NullProgress().warn("Few images.")
    assert not caplog.records
