"""Mutated files of a run directory, read like `report`, `export` and `finetune --resume` do."""

from __future__ import annotations

import json
import random
from pathlib import Path

from edgetl.core.artifacts.run import read_run_record
from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.artifacts.split import read_split
from edgetl.core.errors import EdgetlError
from edgetl.core.paths import RunDirectory
from edgetl.report.run.page import render_run_report
from edgetl.report.run.text import run_sentences
from edgetl.train.finetune import read_unfinished_run
from tests.helpers.runs import CLASSES, write_run
from tools.checks.fuzz.target import (
    Target,
    copy_originals,
    mutate_file,
    mutate_json_file,
    mutate_lines,
)

_CELLS = (
    "", "nan", "-1", "1e400", "x" * 5000, "../..", "/etc/passwd", "\0", '"', "=1+1", "train", "val",
    "test", "roses", "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "\u202e",
)  # fmt: skip


def prepare(folder: Path) -> None:
    """Write a finished run."""
    run = write_run(folder, tested=True)
    content = json.loads(run.config.read_text(encoding="utf-8"))
    run.config.write_text(json.dumps({**content, "asked": content["config"]}), encoding="utf-8")
    rows = [
        f"{split}/{label}/{number}.jpg,{label},{split}"
        for split in ("train", "val", "test")
        for label in CLASSES
        for number in range(3)
    ]
    run.split.write_text("path,label,split\n" + "\n".join(rows) + "\n", encoding="utf-8")


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Mutate one file."""
    copy_originals(originals, case)
    run = RunDirectory(case)
    if generator.random() < 0.2:
        run.metrics.unlink()
    files = (run.config, run.config, run.metrics, run.history, run.predictions,
             run.test_predictions, run.split, run.rejected_files)  # fmt: skip
    path = generator.choice([path for path in files if path.exists()])
    if generator.random() < 0.2:
        mutate_file(path, generator)
    elif path.suffix == ".json":
        mutate_json_file(path, generator)
    else:
        mutate_lines(path, generator, _CELLS)


def use(case: Path) -> None:
    """Read every file and render the page, then raise the first error."""
    run = RunDirectory(case)
    # `read_unfinished_run` refuses a finished run before it reads the files.
    read_config = read_run_configuration if run.metrics.exists() else read_unfinished_run
    errors = []
    for read in (_report, _read_split, read_config):
        try:
            read(run)
        except EdgetlError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _read_split(run: RunDirectory) -> None:
    read_split(run, read_run_configuration(run))


def _report(run: RunDirectory) -> None:
    record = read_run_record(run.path)
    record.to_json()
    run_sentences(record)
    render_run_report(record, [])


TARGET = Target(prepare, make_case, use)
