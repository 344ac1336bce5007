from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.core.artifacts.run import EpochRecord, read_run_record
from edgetl.core.errors import RunError
from tests.helpers.runs import CLASSES, CONFUSION, write_run


def test_finished_run(tmp_path: Path) -> None:
    run = read_run_record(write_run(tmp_path / "run").path)
    assert run.confusion == [list(row) for row in CONFUSION]
    assert run.metrics is not None
    assert run.metrics.val is not None
    assert run.metrics.val.per_class[CLASSES[0]].images == 10
    assert run.metrics.gap == pytest.approx(0.975 - 25 / 30)
    assert run.best_epoch is not None
    assert (run.best_epoch.epoch, run.best_epoch.elapsed) == (6, 17.0)
    assert [mistake.label == mistake.predicted for mistake in run.mistakes] == [False] * 5
    assert run.mistakes[0].probability == max(mistake.probability for mistake in run.mistakes)
    assert run.rejected_files == (("train/roses/broken.jpg", "cannot be decoded."),)


def test_run_of_older_version_lacks_newer_fields(tmp_path: Path) -> None:
    run = read_run_record(write_run(tmp_path / "run", older=True).path)
    assert run.predictions is None
    assert run.confusion is None
    assert run.history[0].elapsed is None
    assert run.metrics is not None
    assert run.metrics.peak_memory_bytes is None


def test_unfinished_run_has_best_epoch_so_far(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", finished=False)
    with directory.history.open("a") as stream:
        stream.write('{"phase": 2, "epoch": 8, "train_lo')  # incomplete line
    run = read_run_record(directory.path)
    assert run.metrics is None
    assert run.best_epoch is not None
    assert (run.best_epoch.epoch, len(run.history)) == (6, 7)
    directory.history.unlink()
    assert read_run_record(directory.path).best_epoch is None


def test_best_epoch_is_last_without_validation(tmp_path: Path) -> None:
    run = read_run_record(write_run(tmp_path / "run", finished=False, validated=False).path)
    assert run.best_epoch is not None
    assert run.best_epoch.epoch == 7


def record(accuracy: float | None, loss: float | None) -> EpochRecord:
    return EpochRecord(1, 1, 1.0, 0.5, loss, accuracy, 1e-3, 1.0, 1.0)


def test_better_epoch_has_higher_accuracy_then_lower_loss() -> None:
    assert record(0.5, 1.0).is_better_than(None)
    assert record(0.6, 2.0).is_better_than(record(0.5, 1.0))
    assert not record(0.5, 0.1).is_better_than(record(0.6, 2.0))
    assert record(0.5, 0.9).is_better_than(record(0.5, 1.0))
    assert not record(0.5, 1.0).is_better_than(record(0.5, 1.0)), "a tie keeps the earlier epoch"
    assert record(None, None).is_better_than(record(None, None))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "not valid JSON"),
        ("config.json", '{"schema": 2}', "schema 2"),
        ("config.json", '{"model": 1}', "no schema number"),
        ("config.json", '{"schema": 1}', "config.json is broken"),
        ("metrics.json", '{"schema": 1, "val": 3}', "metrics.json is broken"),
        ("metrics.json", '{"schema": 1, "val": NaN}', "metrics.json .*NaN is not a JSON number"),
        (
            "metrics.json",
            '{"schema": 1, "train": {"images": true, "accuracy": 1}}',
            "it has no field 'model'",
        ),
        ("history.jsonl", '{"phase": 1}\n', "history.jsonl is broken"),
        ("history.jsonl", "[[]}\n", "history.jsonl is broken"),
        ("history.jsonl", "[" * 100_000 + "}\n", "history.jsonl is broken"),
        ("predictions.csv", "path,label\na,b\n", "predictions.csv is broken"),
        (
            "predictions.csv",
            "path,label,predicted,probability,label_probability\na,b,c,nan,0\n",
            "predictions.csv is broken",
        ),
        (
            "predictions.csv",
            "path,label,predicted,probability,label_probability\na,roses,violets,1,0\n",
            "the class violets is not listed",
        ),
        ("rejected.csv", "path\na\n", "rejected.csv is broken"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    run = write_run(tmp_path / "run")
    (run.path / name).write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        read_run_record(run.path)
