"""The page of one run: what came out of it, how it went, and where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bundle import read_bundle
from edgetl.core.artifacts.run import TrainedRun
from edgetl.core.formatting import MISSING, counted, duration, percent
from edgetl.core.paths import BundleDirectory
from edgetl.report.bench.page import bench_sections
from edgetl.report.bundle.page import variants_section
from edgetl.report.charts.confusion import DRAWN, draw_matrix, most_confused
from edgetl.report.charts.epochs import Course, draw_over_epochs, draw_over_time
from edgetl.report.html.blocks import (
    Badge,
    Cell,
    Column,
    Section,
    TableRow,
    bullets,
    card,
    facts,
    folded,
    grid,
    paragraph,
    picture,
    render_page,
    sheet_uri,
    table,
)
from edgetl.report.run.provenance import data_section, recipe_section, versions_section
from edgetl.report.run.text import points, run_sentences, title

_LISTED = 20
"""Mistakes and confused pairs in a table; the rest is counted."""
_BESIDE = 5
"""Confused pairs beside a matrix that shows them all."""
_BENCH_TITLES = {
    "summary": "Latency",
    "table": "All latencies",
    "ledgers": "Devices measured on",
    "method": "How latency was measured",
}
"""What sections of the bench page are called where they follow on a run's own."""


def run_report(run: TrainedRun, results: Sequence[BenchResult]) -> str:
    """One self-contained HTML page of a run with its bundle and the bench results it keeps.

    Raises:
        BundleError: the run's bundle is broken.
    """
    data = PurePath(str(run.config.get("data", ""))).name
    lead = f"{run.directory.path.resolve().name}: fine-tuned on {data}." if data else ""
    return render_page(title(run), lead, [*run_sections(run), *_bundle(run), *_bench(results)])


def run_sections(run: TrainedRun) -> list[Section]:
    """The sections that show the run alone; those without content have no blocks."""
    return [
        _result(run),
        _training(run),
        _classes(run),
        _confusion(run),
        _mistakes(run),
        data_section(run),
        recipe_section(run),
        versions_section(run),
    ]


def course(run: TrainedRun, name: str = "") -> Course:
    """The run's epochs, ready to be drawn."""
    return Course(
        name or run.directory.path.resolve().name,
        run.history,
        None if run.kept is None else run.kept.epoch,
    )


def _result(run: TrainedRun) -> Section:
    metrics, keys = run.metrics, []
    badges = [] if metrics is not None else [Badge("not finished", "warn")]
    if metrics is not None:
        val = metrics.validation
        if val is not None:
            low, high = val.interval
            keys.append(
                (
                    "validation accuracy",
                    Cell(percent(val.accuracy), small=f"[{percent(low)}, {percent(high)}]"),
                )
            )
        gap = "" if metrics.gap is None else f"{points(metrics.gap)}"
        keys.append(("training accuracy", Cell(percent(metrics.train_accuracy), small=gap)))
        keys.append(
            (
                "time",
                Cell(
                    duration(metrics.seconds["total"]),
                    small=f"{metrics.device}, {metrics.precision}",
                ),
            )
        )
    elif run.kept is not None:
        keys.append(
            (
                "validation accuracy so far",
                Cell(percent(run.kept.val_accuracy), small=f"epoch {run.kept.epoch}"),
            )
        )
    words = bullets(run_sentences(run))
    blocks = [card(run.model, keys, [*([paragraph("", badges=badges)] if badges else []), words])]
    return Section("result", "Result", (grid("cards", blocks), *_figures_in_words(run)))


def _figures_in_words(run: TrainedRun) -> list[Markup]:
    metrics = run.metrics
    if metrics is None:
        return []
    val = metrics.validation
    pairs: list[tuple[str, Cell]] = []
    if val is not None:
        pairs += (
            [("top-5 accuracy", Cell(percent(val.top5_accuracy)))]
            if val.top5_accuracy is not None
            else []
        )
        pairs.append(("macro-F1", Cell(f"{val.macro_f1:.3f}")))
        if val.calibration_error is not None:
            meant = "mean difference between how sure the network is and how often it is right"
            pairs.append(
                ("expected calibration error", Cell(f"{val.calibration_error:.3f}", title=meant))
            )
    for name, value in (
        ("peak memory", metrics.peak_memory_bytes),
        ("peak GPU memory", metrics.peak_gpu_memory_bytes),
    ):
        pairs += [(name, Cell(f"{value / 2**20:,.0f} MiB"))] if value is not None else []
    pairs += [("training ended by", Cell(metrics.ended))] if metrics.ended else []
    return [facts(pairs)] if pairs else []


def _training(run: TrainedRun) -> Section:
    if not run.history:
        return Section("training", "Training", ())
    own = course(run)
    drawn = [
        draw_over_epochs("Accuracy", "accuracy", own),
        draw_over_epochs("Loss (cross-entropy)", "loss", own),
    ]
    notes = []
    if own.timed:
        drawn.append(draw_over_time("Accuracy over time", [own]))
    else:
        notes = [
            paragraph(
                "No accuracy over time: this run did not record when its epochs ended.", "note"
            )
        ]
    columns = [
        Column(name, "number")
        for name in ("loss", "accuracy", "val loss", "val accuracy", "rate", "s", "elapsed s")
    ]
    body = []
    for epoch in run.history:
        val_loss = MISSING if epoch.val_loss is None else f"{epoch.val_loss:.3f}"
        cells = (
            Cell(
                str(epoch.epoch), badges=(Badge("kept", "good"),) if epoch.epoch == own.kept else ()
            ),
            Cell(str(epoch.phase)),
            *(
                Cell(told)
                for told in (
                    f"{epoch.train_loss:.3f}",
                    percent(epoch.train_accuracy),
                    val_loss,
                    percent(epoch.val_accuracy),
                )
            ),
            Cell(f"{epoch.lr:.1e}"),
            Cell(f"{epoch.seconds:.1f}"),
            Cell(MISSING if epoch.elapsed is None else f"{epoch.elapsed:.1f}"),
        )
        body.append(TableRow(cells))
    epochs = table(
        "Epochs; loss and accuracy are of augmented training images",
        [Column("epoch"), Column("phase", "number"), *columns],
        body,
    )
    return Section(
        "training",
        "Training",
        (grid("figures", drawn), *notes, folded("The epochs as a table", [epochs])),
    )


def _classes(run: TrainedRun) -> Section:
    val = None if run.metrics is None else run.metrics.validation
    if val is None:
        return Section("classes", "Classes", ())
    columns = [
        Column("class"),
        Column("images", "number"),
        Column("precision", "number"),
        Column("recall", "number"),
        Column("F1", "short"),
    ]
    body = [
        TableRow(
            (
                Cell(label),
                Cell(str(one.images)),
                Cell(percent(one.precision)),
                Cell(percent(one.recall)),
                _f1(one.f1),
            )
        )
        for label, one in val.per_class.items()
    ]
    told = table(f"Validation images by class; macro-F1 {val.macro_f1:.3f}", columns, body)
    worst = sorted(val.per_class.items(), key=lambda entry: entry[1].f1)[:_LISTED]
    if len(val.per_class) <= 2 * _LISTED:
        return Section("classes", "Classes", (told,))
    few = [
        TableRow(
            (
                Cell(label),
                Cell(str(one.images)),
                Cell(percent(one.precision)),
                Cell(percent(one.recall)),
                _f1(one.f1),
            )
        )
        for label, one in worst
    ]
    return Section(
        "classes",
        "Classes",
        (
            table(f"The {_LISTED} classes with the lowest F1", columns, few),
            folded("All classes", [told]),
        ),
    )


def _f1(value: float) -> Cell:
    return Cell(f"{value:.3f}", share=min(1.0, max(0.0, value)))


def _confusion(run: TrainedRun) -> Section:
    confusion, blocks = run.confusion, []
    if confusion is None:
        drawn = (
            sheet_uri(run.directory.plots / "confusion_matrix.png")
            if run.metrics and run.metrics.validation
            else None
        )
        if drawn is not None:
            blocks = [
                picture(
                    "",
                    drawn,
                    "Confusion matrix of the validation images, as it was drawn after training",
                )
            ]
        return Section("confusion", "Confusion", tuple(blocks))
    listed = _LISTED
    if len(run.classes) <= DRAWN:
        blocks.append(draw_matrix("Confusion matrix", confusion, run.classes))
        listed = _BESIDE
    pairs = most_confused(confusion, run.classes)
    if not pairs:
        return Section(
            "confusion", "Confusion", (*blocks, paragraph("No class was taken for another."))
        )
    if len(run.classes) > 3:
        columns = [
            Column("true class"),
            Column("taken for"),
            Column("images", "number"),
            Column("of the true class", "number"),
        ]
        body = [
            TableRow(
                (
                    Cell(pair.true),
                    Cell(pair.predicted),
                    Cell(str(pair.count)),
                    Cell(f"{pair.count / pair.images:.0%}"),
                )
            )
            for pair in pairs[:listed]
        ]
        blocks.append(table(f"Confused most{_of(len(pairs), 'pair', listed)}", columns, body))
    return Section("confusion", "Confusion", tuple(blocks))


def _mistakes(run: TrainedRun) -> Section:
    if run.metrics is None or run.metrics.validation is None:
        return Section("mistakes", "Mistakes", ())
    blocks = []
    mistakes = run.mistakes
    if run.answers is not None and not mistakes:
        return Section(
            "mistakes",
            "Mistakes",
            (paragraph(f"All {len(run.answers)} validation images were recognised."),),
        )
    sheet = sheet_uri(run.directory.plots / "mistakes.png")
    if sheet is not None:
        blocks.append(
            picture(
                "",
                sheet,
                "The wrong answers that the network was surest of: photo, true class and predicted class",
            )
        )
    if run.answers is None:
        blocks.append(
            paragraph("No list of wrong answers: this run did not keep its predictions.", "note")
        )
    else:
        columns = [
            Column("image"), Column("true class"), Column("predicted"), Column("probability", "number"),
            Column("of the true class", "number", "probability that the network gives the true class"),
        ]  # fmt: skip
        body = [
            TableRow(
                (
                    Cell(answer.path),
                    Cell(answer.label),
                    Cell(answer.predicted),
                    Cell(percent(answer.probability)),
                    Cell(percent(answer.label_probability)),
                )
            )
            for answer in mistakes[:_LISTED]
        ]
        blocks.append(
            table(f"Surest wrong answers{_of(len(mistakes), 'wrong answer')}", columns, body)
        )
    return Section("mistakes", "Mistakes", tuple(blocks))


def _of(count: int, thing: str, listed: int = _LISTED) -> str:
    return (
        f": {listed} of {counted(count, thing)}" if count > listed else f": {counted(count, thing)}"
    )


def _bundle(run: TrainedRun) -> list[Section]:
    return (
        [variants_section(read_bundle(run.directory.bundle))]
        if BundleDirectory.is_one(run.directory.bundle)
        else []
    )


def _bench(results: Sequence[BenchResult]) -> list[Section]:
    if not results:
        return []
    return [
        replace(section, title=_BENCH_TITLES.get(section.anchor, section.title))
        for section in bench_sections(results)
    ]
