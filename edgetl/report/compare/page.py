"""HTML report of an experiment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from edgetl.core.artifacts.experiment import Experiment
from edgetl.core.artifacts.experiment_runs import StrategyResult, StrategyRun
from edgetl.core.config.compare import EQUAL_TIME, STRATEGY_DESCRIPTIONS
from edgetl.core.files import read_csv
from edgetl.core.formatting import format_duration, format_percent, pluralize
from edgetl.core.paths import RunDirectory
from edgetl.report.charts.compare import draw_freeze_sweep, draw_strategy_curves, draw_trade_off
from edgetl.report.charts.confusion import MAX_DRAWN_CLASSES, draw_confusion_matrix
from edgetl.report.compare.tables import (
    conclusion_sentences,
    differences_table,
    equal_time_table,
    latency_budget_table,
    strategies_table,
    trade_off_table,
)
from edgetl.report.html.blocks import (
    Cell,
    Column,
    Section,
    TableRow,
    bullets,
    card,
    definition_list,
    details,
    grid,
    heading,
    paragraph,
    picture,
    plot_uri,
    render_page,
    table,
)
from edgetl.report.html.text import join_words
from edgetl.report.text_table import TextTable


@dataclass(frozen=True)
class HardImage:
    """A validation image that pretrained runs misclassify."""

    path: str
    """Path relative to the data folder."""
    label: str
    wrong_labels: tuple[str, ...]
    """Predicted classes other than the label, most frequent first."""
    wrong_runs: int
    total_runs: int


def find_hard_images(folder: Path, runs: Sequence[StrategyRun]) -> list[HardImage]:
    """Return the images that pretrained runs misclassify, by the number of such runs, descending.

    Runs from scratch are excluded: they misclassify most images for lack of training. Runs whose
    predictions cannot be read are skipped.

    Args:
        folder: the experiment's directory.
        runs: all runs of the experiment.
    """
    predictions: dict[tuple[str, str], list[str]] = defaultdict(list)
    total_runs = 0
    for run in runs:
        if run.failed is not None or run.strategy in ("scratch", EQUAL_TIME):
            continue
        try:
            rows = read_csv(RunDirectory(folder / run.folder).predictions)
        except (OSError, ValueError):
            continue
        total_runs += 1
        for row in rows:
            if row["label"] != row["predicted"]:
                predictions[row["path"], row["label"]].append(row["predicted"])
    images = []
    for (path, label), classes in predictions.items():
        by_frequency = sorted(set(classes), key=lambda name: -classes.count(name))
        images.append(HardImage(path, label, tuple(by_frequency), len(classes), total_runs))
    return sorted(images, key=lambda image: (-image.wrong_runs, image.path))


_AUTO_WEIGHTS_NOTE = "ImageNet weights; a model of one's own as its function returns it"
_MAX_LISTED_IMAGES = 12
"""Maximum number of hard images listed by name."""


def render_compare_report(experiment: Experiment) -> str:
    """Render one self-contained HTML page. The output is deterministic."""
    counts = experiment.data.counts
    images = join_words([f"{sum(classes.values())} {split}" for split, classes in counts.items()])
    folder = experiment.data.folder
    classes = pluralize(len(experiment.classes), "class", "classes")
    lead = f"{folder}: {classes}, {images} images; {experiment.device.description}."
    return render_page(f"Transfer learning on {folder}", lead, _sections(experiment))


def _sections(experiment: Experiment) -> list[Section]:
    networks = experiment.networks
    strategy_blocks = [
        block for network in networks for block in _strategy_blocks(experiment, network)
    ]
    sweeps = [draw_freeze_sweep(network, experiment.select_rows(network)) for network in networks]
    differences = differences_table(experiment)
    return [
        _result_section(experiment),
        Section("strategies", "Strategies", tuple(strategy_blocks)),
        _accuracy_over_time_section(experiment),
        _figures_section(
            "latency",
            "Accuracy against latency",
            [draw_trade_off("Networks", experiment)],
            trade_off_table(experiment),
        ),
        _figures_section("freezing", "Effect of freezing", sweeps, None),
        Section(
            "differences",
            "Differences",
            () if differences is None else (_html_table(differences),),
        ),
        _confusion_section(experiment),
        _mistakes_section(experiment),
        _method_section(experiment),
    ]


def _result_section(experiment: Experiment) -> Section:
    sentences = conclusion_sentences(experiment)
    cards = []
    for network in experiment.networks:
        row = experiment.recommend_strategy(network)
        if row is None:
            continue
        prefix = f"{network}: "
        conclusion = next((text for text in sentences if text.startswith(prefix)), "")
        text = conclusion.removeprefix(prefix).replace("`", "")
        cards.append(card(network, _key_facts(experiment, network, row), [paragraph(text)]))
    prefixes = tuple(f"{network}: " for network in experiment.networks)
    other_sentences = [text for text in sentences if not text.startswith(prefixes)]
    blocks = []
    if cards:
        blocks.append(grid("cards", cards))
    if other_sentences:
        blocks.append(bullets(other_sentences))
    budget_table = latency_budget_table(experiment)
    if budget_table is not None:
        blocks.append(_html_table(budget_table))
    return Section("result", "Result", tuple(blocks))


def _key_facts(experiment: Experiment, network: str, row: StrategyResult) -> list[tuple[str, Cell]]:
    target = experiment.target_accuracy
    seconds = row.seconds_to_accuracy(target)
    interval = f"{format_percent(row.ci95[0])} to {format_percent(row.ci95[1])}"
    test_facts = []
    if row.test_accuracy is not None and row.test_interval is not None:
        low, high = row.test_interval
        test_interval = f"{format_percent(low)} to {format_percent(high)}"
        test_facts = [("test accuracy", Cell(format_percent(row.test_accuracy), test_interval))]
    facts = [
        ("validation accuracy", Cell(format_percent(row.val_accuracy), interval)),
        *test_facts,
        ("time", Cell(format_duration(row.seconds))),
        (f"to {target:.0%}", Cell("not reached" if seconds is None else format_duration(seconds))),
    ]
    deployed = experiment.find_deployed_model(network)
    if deployed is not None and deployed.p50_ms is not None:
        facts.append(
            ("ONNX p50", Cell(f"{deployed.p50_ms:.2f} ms", "noisy" if deployed.noisy else ""))
        )
    return facts


def _strategy_blocks(experiment: Experiment, network: str) -> list[Markup]:
    blocks = [heading(network)] if len(experiment.networks) > 1 else []
    blocks.append(_html_table(strategies_table(experiment, network)))
    equal_time = equal_time_table(experiment, network)
    if equal_time is not None:
        blocks.append(_html_table(equal_time))
    return blocks


def _accuracy_over_time_section(experiment: Experiment) -> Section:
    figures = [
        draw_strategy_curves(network, experiment.select_rows(network), experiment.target_accuracy)
        for network in experiment.networks
    ]
    return Section("time", "Accuracy over time", (grid("figures", figures),) if figures else ())


def _figures_section(
    anchor: str, title: str, figures: Sequence[Markup | None], text_table: TextTable | None
) -> Section:
    available = [figure for figure in figures if figure is not None]
    if not available and text_table is None:
        return Section(anchor, title, ())
    blocks = [grid("figures", available)]
    if text_table is not None:
        blocks.append(_html_table(text_table))
    return Section(anchor, title, tuple(blocks))


def _confusion_section(experiment: Experiment) -> Section:
    count = len(experiment.classes)
    if count > MAX_DRAWN_CLASSES:
        text = (
            f"{count} classes are too many to draw. "
            "The report of each run lists its confused classes."
        )
        return Section("confusion", "Confusion", (paragraph(text),))
    figures = [
        draw_confusion_matrix(
            f"{network}, {row.first_run.strategy}", row.best_run.confusion, experiment.classes
        )
        for network in experiment.networks
        for row in experiment.select_rows(network)
    ]
    return Section("confusion", "Confusion", (grid("figures", figures),) if figures else ())


def _mistakes_section(experiment: Experiment) -> Section:
    blocks = []
    images = find_hard_images(experiment.folder, experiment.runs)
    if images:
        text = (
            f"{pluralize(len(images), 'validation image')} "
            f"misclassified by at least one pretrained run."
        )
        always_wrong = sum(image.wrong_runs == image.total_runs for image in images)
        if always_wrong:
            text += (
                f" {pluralize(always_wrong, 'image')} misclassified by every pretrained run: "
                "check the labels of these first."
            )
        blocks += [paragraph(text), _hard_images_table(images[:_MAX_LISTED_IMAGES])]
    for network in experiment.networks:
        row = experiment.recommend_strategy(network)
        if row is None:
            continue
        run = RunDirectory(experiment.folder / row.best_run.folder)
        sheet = plot_uri(run.plots / "mistakes.png")
        if sheet is not None:
            title = f"{network}, {row.first_run.strategy}: worst mistakes"
            alt = "Images with their labels and predicted classes"
            blocks.append(details(title, [picture(title, sheet, alt)]))
    return Section("mistakes", "Mistakes", tuple(blocks))


def _hard_images_table(images: Sequence[HardImage]) -> Markup:
    columns = (
        Column("image", "mono"),
        Column("label"),
        Column("predicted"),
        Column("wrong in", "number"),
    )
    rows = [
        TableRow(
            (
                Cell(image.path),
                Cell(image.label),
                Cell(", ".join(image.wrong_labels)),
                Cell(f"{image.wrong_runs} of {pluralize(image.total_runs, 'run')}"),
            )
        )
        for image in images
    ]
    return table("Images misclassified by pretrained runs, most frequent first", columns, rows)


def _method_section(experiment: Experiment) -> Section:
    recipe, request = experiment.config.recipe, experiment.config.compare
    strategies = {row.first_run.strategy for row in experiment.rows}
    descriptions = [
        (name, Cell(description))
        for name, description in STRATEGY_DESCRIPTIONS.items()
        if name in strategies
    ]
    completed = f"{len(experiment.runs)} of {len(experiment.planned)} completed"
    epochs = f"{request.epochs} in every run"
    if request.budget_s is not None:
        epochs = f"as many as fit into {format_duration(request.budget_s)}"
    weights = recipe.weights.replace("\\", "/").rstrip("/").rpartition("/")[2]
    fingerprint = experiment.data.fingerprint[:16]
    facts = [
        ("runs", Cell(f"{completed}; each in its own process with a new cache")),
        ("epochs", Cell(epochs)),
        ("seeds", Cell(str(request.seeds), "all on the same split")),
        ("preset", Cell(recipe.preset)),
        ("weights", Cell(weights, _AUTO_WEIGHTS_NOTE if weights == "auto" else "")),
        ("images", Cell(fingerprint, "fingerprint of paths, labels, split and pixels")),
        ("device", Cell(experiment.device.description)),
        ("created", Cell(experiment.created, f"edgetl {experiment.edgetl}")),
    ]
    return Section("method", "Method", (definition_list(descriptions), definition_list(facts)))


def _html_table(text_table: TextTable) -> Markup:
    columns = [
        Column(name, "" if text_table.is_text_column(name) else "number")
        for name in text_table.columns
    ]
    rows = [TableRow(tuple(Cell(text) for text in row)) for row in text_table.rows]
    block = table(text_table.title, columns, rows)
    return block + paragraph(text_table.note, "note") if text_table.note else block
