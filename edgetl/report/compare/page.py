"""The page over an experiment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from edgetl.core.artifacts.experiment import Experiment
from edgetl.core.artifacts.experiment_runs import Run
from edgetl.core.config.compare import EQUAL_TIME, MEANINGS
from edgetl.core.files import read_csv
from edgetl.core.formatting import counted, device_name, duration, percent
from edgetl.core.paths import RunDirectory
from edgetl.report.charts.compare import draw_courses, draw_sweep, draw_trade_off
from edgetl.report.charts.confusion import DRAWN, draw_matrix
from edgetl.report.compare.tables import (
    TextTable,
    conclusions,
    equal_time,
    results,
    timed_before,
    trade_off,
    verdicts,
)
from edgetl.report.html.blocks import (
    Cell,
    Column,
    Section,
    TableRow,
    bullets,
    card,
    facts,
    folded,
    grid,
    heading,
    paragraph,
    picture,
    render_page,
    sheet_uri,
    table,
)


@dataclass(frozen=True)
class Hard:
    """An image that pretrained networks get wrong."""

    path: str
    """In the data folder."""
    label: str
    answers: tuple[str, ...]
    """The wrong classes, the most frequent first."""
    wrong: int
    runs: int


def hard_images(folder: Path, runs: Sequence[Run]) -> list[Hard]:
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
        Hard(
            path,
            label,
            tuple(sorted(set(answers), key=lambda answer: -answers.count(answer))),
            len(answers),
            read,
        )
        for (path, label), answers in wrong.items()
    ]
    return sorted(found, key=lambda hard: (-hard.wrong, hard.path))


_LISTED = 12
"""Hard images that are listed by name."""


def compare_report(found: Experiment) -> str:
    """One self-contained HTML page; the same experiment in the same folder gives the same page."""
    counts = found.data.get("counts", {})
    images = " and ".join(f"{sum(classes.values())} {part}" for part, classes in counts.items())
    lead = f"{found.data.get('folder')}: {counted(len(found.classes), 'class', 'classes')}, {images} images; {device_name(found.device)}."
    return render_page(f"Transfer learning on {found.data.get('folder')}", lead, _sections(found))


def _sections(found: Experiment) -> list[Section]:
    return [
        _summary(found),
        Section(
            "strategies",
            "Strategies",
            tuple(block for network in found.networks for block in _strategies(found, network)),
        ),
        _courses(found),
        _figures(
            "latency",
            "Accuracy against latency",
            [draw_trade_off("Networks", found)],
            trade_off(found),
        ),
        _figures(
            "freezing",
            "What freezing changes",
            [draw_sweep(network, found.rows_of(network)) for network in found.networks],
            None,
        ),
        Section(
            "differences",
            "Differences",
            tuple(_table(one) for one in (verdicts(found),) if one is not None),
        ),
        _confusion(found),
        _mistakes(found),
        _method(found),
    ]


def _summary(found: Experiment) -> Section:
    cards = []
    sentences = conclusions(found)
    for network in found.networks:
        row = found.recommended(network)
        if row is None:
            continue
        reached = row.seconds_to(found.target_accuracy)
        keys = [
            (
                "validation accuracy",
                Cell(
                    percent(row.val_accuracy), f"{percent(row.ci95[0])} to {percent(row.ci95[1])}"
                ),
            ),
            ("time", Cell(duration(row.seconds))),
            (
                f"to {found.target_accuracy:.0%}",
                Cell("not reached" if reached is None else duration(reached)),
            ),
        ]
        one = found.deployment(network)
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
    before = timed_before(found)
    budget = [] if before is None else [_table(before)]
    return Section(
        "result",
        "Result",
        (*([grid("cards", cards)] if cards else []), *([bullets(rest)] if rest else []), *budget),
    )


def _strategies(found: Experiment, network: str) -> list[Markup]:
    named = [heading(network)] if len(found.networks) > 1 else []
    later = equal_time(found, network)
    blocks = [*named, _table(results(found, network))]
    return blocks if later is None else [*blocks, _table(later)]


def _courses(found: Experiment) -> Section:
    drawn = [
        draw_courses(network, found.rows_of(network), found.target_accuracy)
        for network in found.networks
    ]
    return Section("time", "Accuracy over time", (grid("figures", drawn),) if drawn else ())


def _figures(
    anchor: str, title: str, drawn: list[Markup | None], below: TextTable | None
) -> Section:
    shown = [one for one in drawn if one is not None]
    blocks = (grid("figures", shown), *([_table(below)] if below is not None else []))
    return Section(anchor, title, blocks if shown or below is not None else ())


def _confusion(found: Experiment) -> Section:
    if len(found.classes) > DRAWN:
        said = f"{len(found.classes)} classes are too many to draw; each run's own page lists those that are confused."
        return Section("confusion", "Confusion", (paragraph(said),))
    drawn = [
        draw_matrix(f"{network}, {row.first.strategy}", row.best.confusion, found.classes)
        for network in found.networks
        for row in found.rows_of(network)
    ]
    return Section("confusion", "Confusion", (grid("figures", drawn),) if drawn else ())


def _mistakes(found: Experiment) -> Section:
    hard = hard_images(found.folder, found.runs)
    blocks: list[Markup] = []
    if hard:
        every = sum(one.wrong == one.runs for one in hard)
        said = (
            f"{counted(every, 'image')} that no pretrained run gets right; look at their labels first."
            if every
            else ""
        )
        blocks.append(
            paragraph(
                f"{counted(len(hard), 'validation image')} wrong in at least one pretrained run. {said}".strip()
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
                    Cell(", ".join(one.answers)),
                    Cell(f"{one.wrong} of {counted(one.runs, 'run')}"),
                )
            )
            for one in hard[:_LISTED]
        ]
        blocks.append(
            table(
                "Images that pretrained runs get wrong, those that most get wrong first",
                columns,
                rows,
            )
        )
    for network in found.networks:
        row = found.recommended(network)
        sheet = (
            None
            if row is None
            else sheet_uri(RunDirectory(found.folder / row.best.folder).plots / "mistakes.png")
        )
        if row is not None and sheet is not None:
            title = f"{network}, {row.first.strategy}: the worst mistakes"
            blocks.append(
                folded(
                    title,
                    [picture(title, sheet, "Photos with their label and what they were taken for")],
                )
            )
    return Section("mistakes", "Mistakes", tuple(blocks))


def _method(found: Experiment) -> Section:
    recipe, asked = found.config["recipe"], found.config["compare"]
    budget = asked["budget_s"]
    strategies = {row.first.strategy for row in found.rows}
    meanings = [(name, Cell(MEANINGS[name])) for name in MEANINGS if name in strategies]
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
                else f"as many as fit into {duration(budget)}"
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
        ("device", Cell(device_name(found.device))),
        ("created", Cell(found.created, f"edgetl {found.edgetl}")),
    ]
    return Section("method", "How it was done", (facts(meanings), facts(shown)))


def _table(one: TextTable) -> Markup:
    columns = [Column(name, "" if one.is_words(name) else "number") for name in one.columns]
    rows = [TableRow(tuple(Cell(text) for text in row)) for row in one.rows]
    block = table(one.title, columns, rows)
    return block + paragraph(one.note, "note") if one.note else block
