"""`edgetl evaluate` on the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.cli.evaluation_tables import show_evaluation
from edgetl.cli.exit_codes import ExitCode
from edgetl.core.artifacts.evaluation import EvaluationResult
from edgetl.core.config.evaluate import EvaluationLimits, RecallLimit
from tests.helpers.bundles import LABELS, colour_logits, colour_model, write_bundle, write_pictures
from tests.helpers.evaluations import make_evaluation

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a bundle of two variants, and 40 photos, of which 2 have the wrong label."""
    folder = tmp_path_factory.mktemp("evaluate")
    golden = write_pictures(folder / "bundle/golden")
    logits = np.stack([colour_logits(np.asarray(Image.open(path))) for path in golden])
    write_bundle(folder / "bundle", dict.fromkeys(("fp32", "int8"), colour_model()), logits)
    generator = np.random.default_rng(0)
    for index in range(40):
        pixels = (generator.integers(0, 56, (40, 44, 3)) + generator.integers(0, 200, 3)).astype(
            np.uint8
        )
        label = int(colour_logits(pixels).argmax())
        path = folder / "photos/val" / LABELS[label if index > 1 else 1 - label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def test_tables_are_printed_and_result_is_written(edgetl: Run, workplace: Path) -> None:
    process = edgetl("evaluate", "bundle", "photos", "-o", "table.json", cwd=workplace)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0].startswith("colours on ")
    assert lines[1].startswith("Images     40 of 2 classes in photos/val; ")
    assert any(line.startswith("fp32") and "95.0% [83.5, 98.6]" in line for line in lines)
    assert any(line.startswith("Paired     int8 against fp32: +0.0 points") for line in lines)
    assert "inconclusive" in process.stdout
    assert lines[-1] == "Result     table.json"
    assert "Validation images also choose" in process.stdout
    assert "Evaluating" in process.stderr
    assert "Traceback" not in process.stderr


def test_json_is_the_result_file(edgetl: Run, workplace: Path) -> None:
    process = edgetl("evaluate", "bundle", "photos", "--json", "-o", "j.json", cwd=workplace)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == json.loads((workplace / "j.json").read_text())


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--min-accuracy", "80%"), ExitCode.OK, "held --min-accuracy: fp32: accuracy is 95.0%"),
        (("--min-accuracy", "0.99"), ExitCode.FAILED_CHECK, "broken --min-accuracy"),
        (("--min-recall", "cat=0.9"), ExitCode.UNDECIDED, "undecided --min-recall"),
        (
            ("--min-recall", "cat=0.9", "--max-ece", "0"),
            ExitCode.FAILED_CHECK,
            "broken --max-ece: fp32: ECE is",
        ),
    ],
)
def test_limits_decide_the_exit_code(
    edgetl: Run, workplace: Path, options: tuple[str, ...], code: ExitCode, text: str
) -> None:
    process = edgetl("evaluate", "bundle", "photos", *options, cwd=workplace)
    assert process.returncode == code, process.stderr
    assert text in process.stdout
    assert "Error" not in process.stderr


def test_unreadable_image_is_an_error_after_the_result(edgetl: Run, workplace: Path) -> None:
    broken = workplace / "photos/val/cat/broken.png"
    broken.write_bytes(b"no image")
    process = edgetl("evaluate", "bundle", "photos", "-o", "broken.json", cwd=workplace)
    broken.unlink()
    assert process.returncode == ExitCode.USER_ERROR
    assert "Not read   photos/val/cat/broken.png: cannot be decoded" in process.stdout
    assert "Result     broken.json" in process.stdout
    assert "Cannot read 1 image; the others are evaluated above." in process.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min-recall", "cow=1"), "--min-recall names cow, but the labels"),
        (("--min-recall", "cat"), "--min-recall: must be LABEL=SHARE"),
        (("--min-accuracy", "1.5"), "--min-accuracy must be <= 1, got 1.5"),
        (("--group-by", "site"), "--group-by must be a level"),
        (("--split", "test"), "has no test images"),
        (("--unknown", "photos"), "has no output unknown_score, which --unknown needs"),
        (("--corruptions", "rain"), "--corruptions must be all or among"),
        (("--variant", "int4"), "no variant 'int4'"),
    ],
)
def test_wrong_options_are_rejected_with_their_name(
    edgetl: Run, workplace: Path, arguments: tuple[str, ...], message: str
) -> None:
    process = edgetl("evaluate", "bundle", "photos", *arguments, cwd=workplace)
    assert process.returncode == ExitCode.USER_ERROR
    assert message in process.stderr
    assert process.stdout == ""


def show(result: EvaluationResult, capsys: pytest.CaptureFixture[str]) -> str:
    show_evaluation(result)
    return capsys.readouterr().out


def test_show_prints_every_kind_of_figure(capsys: pytest.CaptureFixture[str]) -> None:
    limits = EvaluationLimits(0.5, (RecallLimit("dog", 0.999),), 0.5)
    result = make_evaluation(limits=limits, with_corruptions=True)
    text = show(replace(result, path=Path("result.json")), capsys)
    for part in (
        "150 of 3 classes in pets/test; 4 of other classes left out; 60 of no known class in cars",
        "coverage 0.9",
        "unknown caught",
        "gaussian_noise",
        "severity 5",
        "north",
        "Not read   pets/test/cat/7.jpg: the file is empty",
        "Mistakes   pets/test/",
        "McNemar p",
        "held --min-accuracy",
        "Result     result.json",
    ):
        assert part in text, part


def test_show_prints_result_without_optional_parts(capsys: pytest.CaptureFixture[str]) -> None:
    text = show(make_evaluation(missing_class=True, with_unknown=False), capsys)
    assert not any(line.startswith("fox") for line in text.splitlines())
    assert "unknown" not in text
    assert "Note       No images of: fox." in text


def test_show_escapes_markup_in_names(capsys: pytest.CaptureFixture[str]) -> None:
    result = make_evaluation()
    text = show(replace(result, target="[red]x", model=replace(result.model, name="")), capsys)
    assert text.startswith("[red]x on ")
