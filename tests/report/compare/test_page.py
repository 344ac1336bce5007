from __future__ import annotations

import csv
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
SWEPT = {
    f"{M}/scratch": (0.60, 240.0), f"{M}/{EQUAL_TIME}": (0.45, 38.0), f"{M}/head": (0.88, 12.0), f"{M}/freeze-75": (0.90, 25.0),
    f"{M}/freeze-50": (0.90, 45.0), f"{M}/full": (0.89, 110.0),
}  # fmt: skip


def write_run(folder: Path, name: str, wrong: dict[str, str]) -> None:
    run = RunDirectory(folder / "runs" / name)
    run.plots.mkdir(parents=True)
    matplotlib.image.imsave(run.plots / "mistakes.png", np.zeros((40, 60, 3), np.uint8))
    with run.predictions.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "predicted", "probability", "label_probability"))
        for index in range(20):
            path = f"val/cat/{index}.jpg"
            writer.writerow(
                (path, "cat", wrong.get(path, "cat"), 0.9, 0.1 if path in wrong else 0.9)
            )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("experiment")
    write_run(folder, f"{M}-head-s0", {"val/cat/3.jpg": "dog", "val/cat/7.jpg": "dog"})
    write_run(folder, f"{M}-full-s0", {"val/cat/3.jpg": "dog"})
    write_run(folder, f"{M}-scratch-s0", {f"val/cat/{index}.jpg": "dog" for index in range(20)})
    deployed = (
        DeployedModel(M, f"{M}-head-s0", 9_000_000, 5.41, (5.2, 5.9), noisy=True, threads=2),
        DeployedModel(S, "s", 2_900_000, 2.5, (2.4, 2.6), False, 2),
    )
    return made_experiment({**SWEPT, f"{S}/head": (0.80, 9.0)}, 1, deployed, folder)


def test_every_section_is_there_and_nothing_points_outside(found: Experiment) -> None:
    page = Page(render_compare_report(found))
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
    assert page.tags.count("img") == 1, "the recommended run's sheet; the other network's is gone"
    assert page.tags.count("figure") == 2 + 1 + 1 + 7 + 1, (
        "two courses, the trade-off, a sweep, confusions, the sheet"
    )


def test_images_that_every_pretrained_run_gets_wrong_are_named_first(found: Experiment) -> None:
    text = Page(render_compare_report(found)).text
    assert "1 image that no pretrained run gets right" in text
    assert text.index("val/cat/3.jpg") < text.index("val/cat/7.jpg")
    assert "val/cat/5.jpg" not in text, "from nothing is no judge"


def test_the_table_tells_gain_and_cost(found: Experiment) -> None:
    table = strategies_table(found, M)
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


def test_equal_time_is_what_had_been_reached_when_others_had_finished(found: Experiment) -> None:
    table = equal_time_table(found, M)
    assert table is not None
    assert table.columns[1:4] == (
        "after 12 s (head)",
        "after 25 s (freeze-75)",
        f"after 38 s ({EQUAL_TIME})",
    )
    by_name = {row[0]: row[1:] for row in table.rows}
    assert by_name["scratch"] == ("—", "—", "—", "—", "15.0%", "60.0%")
    assert by_name["head"] == ("88.0%",) * 6
    assert equal_time_table(found, S) is None


def test_the_sentences_say_what_to_take_and_why(found: Experiment) -> None:
    first, second, between = conclusion_sentences(found)
    assert first.startswith(f"{M}: Take `head`: 88.0% of 200 validation images in 12 s.")
    assert "`freeze-75` has 2.0 points more, which is not shown to be a difference" in first
    assert "takes 2.1 times as long" in first
    assert "Against scratch: +28.0 [" in first
    assert (
        "80% after 12 s, scratch not in its 4 min 0 s, what scratch ended with after 9.0 s already"
        in first
    )
    assert "Scratch planned for the pretrained run's time reaches 45.0% in 38 s." in first
    assert second == f"{S}: Take `head`: 80.0% of 200 validation images in 9.0 s."
    assert between.startswith(f"{M} has 8.0 points more than {S} (")
    assert between.endswith(
        "its p50 is 2.2 times as long, which this short measurement does not show to be a difference."
    ), "it was noisy"


def test_seeds_are_shown_with_their_spread() -> None:
    other = made_run(M, "head", 0.84, 14.0, seed=2)
    found = made_experiment(
        {f"{M}/head": (0.88, 12.0), f"{M}/scratch": (0.5, 99.0)}, 2, more=(other,)
    )
    table = strategies_table(found, M)
    assert dict(zip(table.columns, table.rows[1], strict=True))["seeds"] == "84.0% to 88.0%"
    assert "means over 3 seeds" in table.note
    told = differences_table(found)
    assert told is not None
    assert "images and seeds both as chance" in told.note


def test_what_is_open_or_failed_is_said() -> None:
    failed = made_run(
        S, "head", 0, 0, failed="The process ended with status -9 (often: out of memory)."
    )
    found = made_experiment({f"{M}/head": (0.9, 12.0)}, more=(failed,))
    found = Experiment(**{**vars_of(found), "planned": (*found.planned, f"{M}-full-s0")})
    said = conclusion_sentences(found)
    assert any(f"Not finished: {M}-full-s0" in sentence for sentence in said)
    assert any("out of memory" in sentence for sentence in said)
    text = Page(render_compare_report(found)).text
    assert "out of memory" in text
    assert "differences" not in Page(render_compare_report(found)).sections
    assert trade_off_table(found) is None


def test_nothing_finished_yet_is_a_page_too() -> None:
    found = made_experiment({}, more=(made_run(M, "head", 0, 0, failed="no"),))
    assert "Failed" in Page(render_compare_report(found)).text
    assert "Failed" in render_compare_markdown(found)


def test_markdown_holds_the_same_tables(found: Experiment) -> None:
    text = render_compare_markdown(found)
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


def test_what_users_named_is_text_not_markup(found: Experiment) -> None:
    evil = "<b>pets</b>|&"
    html = render_compare_report(
        Experiment(
            **{
                **vars_of(found),
                "data": {**found.data, "folder": evil},
                "classes": ("<i>cat</i>", "dog"),
            }
        )
    )
    assert "<b>pets" not in html
    assert "<i>cat" not in html
    assert evil in Page(html).text


def test_the_same_experiment_gives_the_same_page(found: Experiment) -> None:
    assert render_compare_report(found) == render_compare_report(found)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_it_on_a_phone_and_a_screen(found: Experiment) -> None:
    assert seen_in_browser(render_compare_report(found)) == 2 + 1 + 1 + 7


def vars_of(found: Experiment) -> dict[str, object]:
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
    return {name: getattr(found, name) for name in names}
