"""The page over an experiment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from edgetl.core.artifacts.experiment import Experiment
from edgetl.core.artifacts.experiment_runs import StrategyRun
from edgetl.core.config.compare import EQUAL_TIME, STRATEGY_DESCRIPTIONS
from edgetl.core.files import read_csv
from edgetl.core.formatting import describe_device, format_duration, format_percent, pluralize
from edgetl.core.paths import RunDirectory
from edgetl.report.charts.compare import draw_freeze_sweep, draw_strategy_curves, draw_trade_off
from edgetl.report.charts.confusion import MAX_DRAWN_CLASSES, draw_confusion_matrix
from edgetl.report.compare.tables import (
    TextTable,
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


@dataclass(frozen=True)
class HardImage:
    """An image that pretrained networks get wrong."""

    path: str
    """In the data folder."""
    label: str
    wrong_labels: tuple[str, ...]
    """The wrong classes, the most frequent first."""
    wrong_runs: int
    total_runs: int


def find_hard_images(folder: Path, runs: Sequence[StrategyRun]) -> list[HardImage]:
    """Images by how many of the pretrained runs get them wrong, the most first; empty where the runs' folders are gone.

    Args:
        folder: the experiment's.
        runs: all of them; those from nothing are left out, which get most images wrong for want of training.
    """
    wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
    read = 0
    for run in runs:
        if run.failed is not None or run.strategy in ("scratch", EQUAL_TIME):
            continue
        try:
            rows = read_csv(RunDirectory(folder / run.folder).predictions)
        except (OSError, ValueError):
            continue
        read += 1
        for row in rows:
            if row["label"] != row["predicted"]:
                wrong[row["path"], row["label"]].append(row["predicted"])
    found = [
        HardImage(
            path,
            label,
            tuple(sorted(set(answers), key=lambda answer: -answers.count(answer))),
            len(answers),
            read,
        )
        for (path, label), answers in wrong.items()
    ]
    return sorted(found, key=lambda hard: (-hard.wrong_runs, hard.path))


_MAX_LISTED_IMAGES = 12
"""Hard images that are listed by name."""


def render_compare_report(found: Experiment) -> str:
    """One self-contained HTML page; the same experiment in the same folder gives the same page."""
    counts = found.data.get("counts", {})
    images = " and ".join(f"{sum(classes.values())} {part}" for part, classes in counts.items())
    lead = f"{found.data.get('folder')}: {pluralize(len(found.classes), 'class', 'classes')}, {images} images; {describe_device(found.device)}."
    return render_page(f"Transfer learning on {found.data.get('folder')}", lead, _sections(found))


def _sections(found: Experiment) -> list[Section]:
    return [
        _result_section(found),
        Section(
            "strategies",
            "Strategies",
            tuple(
                block for network in found.networks for block in _strategy_blocks(found, network)
            ),
        ),
        _accuracy_over_time_section(found),
        _figures_section(
            "latency",
            "Accuracy against latency",
            [draw_trade_off("Networks", found)],
            trade_off_table(found),
        ),
        _figures_section(
            "freezing",
            "What freezing changes",
            [draw_freeze_sweep(network, found.select_rows(network)) for network in found.networks],
            None,
        ),
        Section(
            "differences",
            "Differences",
            tuple(_html_table(one) for one in (differences_table(found),) if one is not None),
        ),
        _confusion_section(found),
        _mistakes_section(found),
        _method_section(found),
    ]


def _result_section(found: Experiment) -> Section:
    cards = []
    sentences = conclusion_sentences(found)
    for network in found.networks:
        row = found.recommend_strategy(network)
        if row is None:
            continue
        reached = row.seconds_to_accuracy(found.target_accuracy)
        keys = [
            (
                "validation accuracy",
                Cell(
                    format_percent(row.val_accuracy),
                    f"{format_percent(row.ci95[0])} to {format_percent(row.ci95[1])}",
                ),
            ),
            ("time", Cell(format_duration(row.seconds))),
            (
                f"to {found.target_accuracy:.0%}",
                Cell("not reached" if reached is None else format_duration(reached)),
            ),
        ]
        one = found.find_deployed_model(network)
        if one is not None and one.p50_ms is not None:
            keys.append(("ONNX p50", Cell(f"{one.p50_ms:.2f} ms", "noisy" if one.noisy else "")))
        said = next((sentence for sentence in sentences if sentence.startswith(f"{network}: ")), "")
        cards.append(
            card(network, keys, [paragraph(said.removeprefix(f"{network}: ").replace("`", ""))])
        )
    rest = [
        sentence
        for sentence in sentences
        if not any(sentence.startswith(f"{network}: ") for network in found.networks)
    ]
    before = latency_budget_table(found)
    budget = [] if before is None else [_html_table(before)]
    return Section(
        "result",
        "Result",
        (*([grid("cards", cards)] if cards else []), *([bullets(rest)] if rest else []), *budget),
    )


def _strategy_blocks(found: Experiment, network: str) -> list[Markup]:
    named = [heading(network)] if len(found.networks) > 1 else []
    later = equal_time_table(found, network)
    blocks = [*named, _html_table(strategies_table(found, network))]
    return blocks if later is None else [*blocks, _html_table(later)]


def _accuracy_over_time_section(found: Experiment) -> Section:
    drawn = [
        draw_strategy_curves(network, found.select_rows(network), found.target_accuracy)
        for network in found.networks
    ]
    return Section("time", "Accuracy over time", (grid("figures", drawn),) if drawn else ())


def _figures_section(
    anchor: str, title: str, drawn: list[Markup | None], below: TextTable | None
) -> Section:
    shown = [one for one in drawn if one is not None]
    blocks = (grid("figures", shown), *([_html_table(below)] if below is not None else []))
    return Section(anchor, title, blocks if shown or below is not None else ())


def _confusion_section(found: Experiment) -> Section:
    if len(found.classes) > MAX_DRAWN_CLASSES:
        said = f"{len(found.classes)} classes are too many to draw; each run's own page lists those that are confused."
        return Section("confusion", "Confusion", (paragraph(said),))
    drawn = [
        draw_confusion_matrix(
            f"{network}, {row.first_run.strategy}", row.best_run.confusion, found.classes
        )
        for network in found.networks
        for row in found.select_rows(network)
    ]
    return Section("confusion", "Confusion", (grid("figures", drawn),) if drawn else ())


def _mistakes_section(found: Experiment) -> Section:
    hard = find_hard_images(found.folder, found.runs)
    blocks: list[Markup] = []
    if hard:
        every = sum(one.wrong_runs == one.total_runs for one in hard)
        said = (
            f"{pluralize(every, 'image')} that no pretrained run gets right; look at their labels first."
            if every
            else ""
        )
        blocks.append(
            paragraph(
                f"{pluralize(len(hard), 'validation image')} wrong in at least one pretrained run. {said}".strip()
            )
        )
        columns = (
            Column("image", "mono"),
            Column("label"),
            Column("taken for"),
            Column("wrong in", "number"),
        )
        rows = [
            TableRow(
                (
                    Cell(one.path),
                    Cell(one.label),
                    Cell(", ".join(one.wrong_labels)),
                    Cell(f"{one.wrong_runs} of {pluralize(one.total_runs, 'run')}"),
                )
            )
            for one in hard[:_MAX_LISTED_IMAGES]
        ]
        blocks.append(
            table(
                "Images that pretrained runs get wrong, those that most get wrong first",
                columns,
                rows,
            )
        )
    for network in found.networks:
        row = found.recommend_strategy(network)
        sheet = (
            None
            if row is None
            else plot_uri(RunDirectory(found.folder / row.best_run.folder).plots / "mistakes.png")
        )
        if row is not None and sheet is not None:
            title = f"{network}, {row.first_run.strategy}: the worst mistakes"
            blocks.append(
                details(
                    title,
                    [picture(title, sheet, "Photos with their label and what they were taken for")],
                )
            )
    return Section("mistakes", "Mistakes", tuple(blocks))


def _method_section(found: Experiment) -> Section:
    recipe, asked = found.config["recipe"], found.config["compare"]
    budget = asked["budget_s"]
    strategies = {row.first_run.strategy for row in found.rows}
    meanings = [
        (name, Cell(STRATEGY_DESCRIPTIONS[name]))
        for name in STRATEGY_DESCRIPTIONS
        if name in strategies
    ]
    shown = [
        (
            "runs",
            Cell(
                f"{len(found.runs)} of {len(found.planned)} ended; each in a process of its own with a new cache"
            ),
        ),
        (
            "epochs",
            Cell(
                f"{asked['epochs']} in every run"
                if budget is None
                else f"as many as fit into {format_duration(budget)}"
            ),
        ),
        ("seeds", Cell(str(asked["seeds"]), "all on one split")),
        ("preset", Cell(str(recipe["preset"]))),
        ("weights", Cell(str(recipe["weights"]).replace("\\", "/").rstrip("/").rpartition("/")[2])),
        (
            "images",
            Cell(
                str(found.data.get("fingerprint", ""))[:16],
                "fingerprint of paths, labels, split and pixels",
            ),
        ),
        ("device", Cell(describe_device(found.device))),
        ("created", Cell(found.created, f"edgetl {found.edgetl}")),
    ]
    return Section("method", "How it was done", (definition_list(meanings), definition_list(shown)))


def _html_table(one: TextTable) -> Markup:
    columns = [Column(name, "" if one.is_text_column(name) else "number") for name in one.columns]
    rows = [TableRow(tuple(Cell(text) for text in row)) for row in one.rows]
    block = table(one.title, columns, rows)
    return block + paragraph(one.note, "note") if one.note else block
