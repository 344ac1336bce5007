from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from edgetl.core.artifacts.experiment import DeployedModel, Experiment
from edgetl.core.config.compare import EQUAL_TIME
from edgetl.core.paths import RunDirectory
from edgetl.report.compare.page import render_compare_report
from edgetl.report.compare.tables import (
    conclusion_sentences,
    differences_table,
    equal_time_table,
    render_compare_markdown,
    strategies_table,
    trade_off_table,
)
from tests.helpers.browser import CHROMIUM
from tests.helpers.experiments import made_experiment, made_run
from tests.helpers.pages import Page, seen_in_browser

M, S = "mobilenet_v2-224", "squeezenet1_1-224"
ROWS = {
    f"{M}/scratch": (0.60, 240.0),
    f"{M}/{EQUAL_TIME}": (0.45, 38.0),
    f"{M}/head": (0.88, 12.0),
    f"{M}/freeze-75": (0.90, 25.0),
    f"{M}/freeze-50": (0.90, 45.0),
    f"{M}/full": (0.89, 110.0),
}


def write_run(folder: Path, name: str, mistakes: dict[str, str]) -> None:
    """Write a run directory with 20 predictions of cats; `mistakes` are predicted otherwise."""
    run = RunDirectory(folder / "runs" / name)
    run.plots.mkdir(parents=True)
    matplotlib.image.imsave(run.plots / "mistakes.png", np.zeros((40, 60, 3), np.uint8))
    with run.predictions.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "predicted", "probability", "label_probability"))
        for index in range(20):
            path = f"val/cat/{index}.jpg"
            label_probability = 0.1 if path in mistakes else 0.9
            writer.writerow((path, "cat", mistakes.get(path, "cat"), 0.9, label_probability))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("experiment")
    write_run(folder, f"{M}-head-s0", {"val/cat/3.jpg": "dog", "val/cat/7.jpg": "dog"})
    write_run(folder, f"{M}-full-s0", {"val/cat/3.jpg": "dog"})
    write_run(folder, f"{M}-scratch-s0", {f"val/cat/{index}.jpg": "dog" for index in range(20)})
    deployed = (
        DeployedModel(M, f"{M}-head-s0", 9_000_000, 5.41, (5.2, 5.9), noisy=True, threads=2),
        DeployedModel(S, "s", 2_900_000, 2.5, (2.4, 2.6), False, 2),
    )
    return made_experiment({**ROWS, f"{S}/head": (0.80, 9.0)}, 1, deployed, folder)


def test_compare_page_is_complete_and_self_contained(experiment: Experiment) -> None:
    page = Page(render_compare_report(experiment))
    assert page.sections == [
        "result",
        "strategies",
        "time",
        "latency",
        "freezing",
        "differences",
        "confusion",
        "mistakes",
        "method",
    ]
    assert page.outside == []
    assert "script" not in page.tags
    assert page.tags.count("img") == 1, (
        "the sheet of the recommended run; the other network has none"
    )
    assert page.tags.count("figure") == 2 + 1 + 1 + 7 + 1, (
        "two curves, the trade-off, a sweep, confusion matrices, the sheet"
    )


def test_hard_images_are_sorted_by_number_of_wrong_runs(experiment: Experiment) -> None:
    text = Page(render_compare_report(experiment)).text
    assert "1 image misclassified by every pretrained run" in text
    assert text.index("val/cat/3.jpg") < text.index("val/cat/7.jpg")
    assert "val/cat/5.jpg" not in text, "runs from scratch are excluded"


def test_strategies_table(experiment: Experiment) -> None:
    table = strategies_table(experiment, M)
    by_name = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(by_name) == ["scratch", EQUAL_TIME, "head *", "freeze-75", "freeze-50", "full"]
    head = by_name["head *"]
    assert head["validation [95%]"] == "88.0% [82.8%, 91.8%]"
    assert (head["training"], head["gap"], head["time"], head["to 80%"]) == (
        "93.0%",
        "+5.0",
        "12 s",
        "12 s",
    )
    assert (head["trained / all parameters"], head["images/s"], head["peak memory"]) == (
        "10.0 k / 2.00 M",
        "100",
        "1.0 GB",
    )
    assert by_name["scratch"]["to 80%"] == "not reached"


def test_equal_time_table_shows_best_accuracy_so_far(experiment: Experiment) -> None:
    table = equal_time_table(experiment, M)
    assert table is not None
    assert table.columns[1:4] == (
        "after 12 s (head)",
        "after 25 s (freeze-75)",
        f"after 38 s ({EQUAL_TIME})",
    )
    by_name = {row[0]: row[1:] for row in table.rows}
    assert by_name["scratch"] == ("—", "—", "—", "—", "15.0%", "60.0%")
    assert by_name["head"] == ("88.0%",) * 6
    assert equal_time_table(experiment, S) is None


def test_conclusion_sentences(experiment: Experiment) -> None:
    first, second, networks = conclusion_sentences(experiment)
    assert first.startswith(f"{M}: Take `head`: 88.0% of 200 validation images in 12 s.")
    assert "`freeze-75` is 2.0 points more accurate, not significantly (p " in first
    assert "takes 2.1 times as long" in first
    assert "Against scratch: +28.0 [" in first
    assert (
        "80% after 12 s, not reached by scratch in 4 min 0 s, whose accuracy was matched after 9.0 s"
        in first
    )
    assert "Scratch planned for the time of the pretrained run reaches 45.0% in 38 s." in first
    assert second == f"{S}: Take `head`: 80.0% of 200 validation images in 9.0 s."
    assert networks.startswith(f"{M} is 8.0 points more accurate than {S} (")
    assert networks.endswith(
        "its p50 is 2.2 times as long, which this short measurement cannot confirm."
    ), "the measurement was noisy"


def test_tables_show_the_range_over_seeds() -> None:
    third_seed = made_run(M, "head", 0.84, 14.0, seed=2)
    experiment = made_experiment(
        {f"{M}/head": (0.88, 12.0), f"{M}/scratch": (0.5, 99.0)}, 2, more=(third_seed,)
    )
    table = strategies_table(experiment, M)
    assert dict(zip(table.columns, table.rows[1], strict=True))["seeds"] == "84.0% to 88.0%"
    assert "means over 3 seeds" in table.note
    differences = differences_table(experiment)
    assert differences is not None
    assert "images and seeds both treated as random" in differences.note


def test_unfinished_and_failed_runs_are_listed() -> None:
    failed = made_run(
        S, "head", 0, 0, failed="The process ended with status -9 (often: out of memory)."
    )
    experiment = made_experiment({f"{M}/head": (0.9, 12.0)}, more=(failed,))
    experiment = Experiment(
        **{**fields_of(experiment), "planned": (*experiment.planned, f"{M}-full-s0")}
    )
    sentences = conclusion_sentences(experiment)
    assert any(f"Not finished: {M}-full-s0" in sentence for sentence in sentences)
    assert any("out of memory" in sentence for sentence in sentences)
    text = Page(render_compare_report(experiment)).text
    assert "out of memory" in text
    assert "differences" not in Page(render_compare_report(experiment)).sections
    assert trade_off_table(experiment) is None


def test_reports_without_finished_runs() -> None:
    experiment = made_experiment({}, more=(made_run(M, "head", 0, 0, failed="no"),))
    assert "Failed" in Page(render_compare_report(experiment)).text
    assert "Failed" in render_compare_markdown(experiment)


def test_markdown_contains_the_tables(experiment: Experiment) -> None:
    text = render_compare_markdown(experiment)
    assert (
        "| head * | 93.0% | 88.0% [82.8%, 91.8%] | +5.0 | 12 s | 12 s | 4 | 10.0 k / 2.00 M | 100 | 1.0 GB |"
        in text
    )
    assert "## Accuracy against latency" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    blocks = "\n".join(line if line.startswith("|") else "" for line in text.splitlines()).split(
        "\n\n"
    )
    assert lines
    for block in filter(None, (block.strip() for block in blocks)):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_folder_and_class_names_are_escaped(experiment: Experiment) -> None:
    folder = "<b>pets</b>|&"
    html = render_compare_report(
        Experiment(
            **{
                **fields_of(experiment),
                "data": replace(experiment.data, folder=folder),
                "classes": ("<i>cat</i>", "dog"),
            }
        )
    )
    assert "<b>pets" not in html
    assert "<i>cat" not in html
    assert folder in Page(html).text


def test_compare_page_is_deterministic(experiment: Experiment) -> None:
    assert render_compare_report(experiment) == render_compare_report(experiment)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_compare_page_fits_a_phone_without_console_errors(experiment: Experiment) -> None:
    assert seen_in_browser(render_compare_report(experiment)) == 2 + 1 + 1 + 7


def fields_of(experiment: Experiment) -> dict[str, object]:
    names = (
        "created",
        "edgetl",
        "device",
        "config",
        "classes",
        "data",
        "planned",
        "runs",
        "deployed_models",
        "folder",
    )
    return {name: getattr(experiment, name) for name in names}
