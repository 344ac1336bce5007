"""The page of one run: what came out of it, how it went, and where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bundle import read_bundle_manifest
from edgetl.core.artifacts.run import RunRecord
from edgetl.core.formatting import MISSING_VALUE, format_duration, format_percent, pluralize
from edgetl.core.paths import BundleDirectory
from edgetl.report.bench.page import bench_sections
from edgetl.report.bundle.page import variants_section
from edgetl.report.charts.confusion import (
    MAX_DRAWN_CLASSES,
    draw_confusion_matrix,
    rank_confused_pairs,
)
from edgetl.report.charts.epochs import (
    TrainingCurve,
    draw_accuracy_over_time,
    draw_metric_over_epochs,
)
from edgetl.report.html.blocks import (
    Badge,
    Cell,
    Column,
    Section,
    TableRow,
    bullets,
    card,
    definition_list,
    details,
    grid,
    paragraph,
    picture,
    plot_uri,
    render_page,
    table,
)
from edgetl.report.run.provenance import data_section, recipe_section, versions_section
from edgetl.report.run.text import format_points, run_sentences, run_title

_MAX_LISTED = 20
"""Mistakes and confused pairs in a table; the rest is counted."""
_MAX_PAIRS_BESIDE_MATRIX = 5
"""Confused pairs beside a matrix that shows them all."""
_BENCH_TITLES = {
    "summary": "Latency",
    "table": "All latencies",
    "ledgers": "Devices measured on",
    "method": "How latency was measured",
}
"""What sections of the bench page are called where they follow on a run's own."""


def render_run_report(run: RunRecord, results: Sequence[BenchResult]) -> str:
    """One self-contained HTML page of a run with its bundle and the bench results it keeps.

    Raises:
        BundleError: the run's bundle is broken.
    """
    data = PurePath(str(run.config.get("data", ""))).name
    lead = f"{run.directory.path.resolve().name}: fine-tuned on {data}." if data else ""
    return render_page(
        run_title(run),
        lead,
        [*run_sections(run), *_bundle_sections(run), *_retitled_bench_sections(results)],
    )


def run_sections(run: RunRecord) -> list[Section]:
    """The sections that show the run alone; those without content have no blocks."""
    return [
        _result_section(run),
        _training_section(run),
        _classes_section(run),
        _confusion_section(run),
        _mistakes_section(run),
        data_section(run),
        recipe_section(run),
        versions_section(run),
    ]


def make_training_curve(run: RunRecord, name: str = "") -> TrainingCurve:
    """The run's epochs, ready to be drawn."""
    return TrainingCurve(
        name or run.directory.path.resolve().name,
        run.history,
        None if run.best_epoch is None else run.best_epoch.epoch,
    )


def _result_section(run: RunRecord) -> Section:
    metrics, keys = run.metrics, []
    badges = [] if metrics is not None else [Badge("not finished", "warn")]
    if metrics is not None:
        val = metrics.validation
        if val is not None:
            low, high = val.accuracy_interval
            keys.append(
                (
                    "validation accuracy",
                    Cell(
                        format_percent(val.accuracy),
                        small=f"[{format_percent(low)}, {format_percent(high)}]",
                    ),
                )
            )
        gap = "" if metrics.gap is None else f"{format_points(metrics.gap)}"
        keys.append(("training accuracy", Cell(format_percent(metrics.train_accuracy), small=gap)))
        keys.append(
            (
                "time",
                Cell(
                    format_duration(metrics.seconds["total"]),
                    small=f"{metrics.device}, {metrics.precision}",
                ),
            )
        )
    elif run.best_epoch is not None:
        keys.append(
            (
                "validation accuracy so far",
                Cell(
                    format_percent(run.best_epoch.val_accuracy),
                    small=f"epoch {run.best_epoch.epoch}",
                ),
            )
        )
    words = bullets(run_sentences(run))
    blocks = [card(run.model, keys, [*([paragraph("", badges=badges)] if badges else []), words])]
    return Section("result", "Result", (grid("cards", blocks), *_metrics_blocks(run)))


def _metrics_blocks(run: RunRecord) -> list[Markup]:
    metrics = run.metrics
    if metrics is None:
        return []
    val = metrics.validation
    pairs: list[tuple[str, Cell]] = []
    if val is not None:
        pairs += (
            [("top-5 accuracy", Cell(format_percent(val.top5_accuracy)))]
            if val.top5_accuracy is not None
            else []
        )
        pairs.append(("macro-F1", Cell(f"{val.macro_f1:.3f}")))
        if val.calibration_error is not None:
            meant = "mean difference between how sure the network is and how often it is right"
            pairs.append(
                ("expected calibration error", Cell(f"{val.calibration_error:.3f}", tooltip=meant))
            )
    for name, value in (
        ("peak memory", metrics.peak_memory_bytes),
        ("peak GPU memory", metrics.peak_gpu_memory_bytes),
    ):
        pairs += [(name, Cell(f"{value / 2**20:,.0f} MiB"))] if value is not None else []
    pairs += [("training ended by", Cell(metrics.stop_reason))] if metrics.stop_reason else []
    return [definition_list(pairs)] if pairs else []


def _training_section(run: RunRecord) -> Section:
    if not run.history:
        return Section("training", "Training", ())
    own = make_training_curve(run)
    drawn = [
        draw_metric_over_epochs("Accuracy", "accuracy", own),
        draw_metric_over_epochs("Loss (cross-entropy)", "loss", own),
    ]
    notes = []
    if own.has_times:
        drawn.append(draw_accuracy_over_time("Accuracy over time", [own]))
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
        val_loss = MISSING_VALUE if epoch.val_loss is None else f"{epoch.val_loss:.3f}"
        cells = (
            Cell(
                str(epoch.epoch),
                badges=(Badge("kept", "good"),) if epoch.epoch == own.best_epoch else (),
            ),
            Cell(str(epoch.phase)),
            *(
                Cell(told)
                for told in (
                    f"{epoch.train_loss:.3f}",
                    format_percent(epoch.train_accuracy),
                    val_loss,
                    format_percent(epoch.val_accuracy),
                )
            ),
            Cell(f"{epoch.lr:.1e}"),
            Cell(f"{epoch.seconds:.1f}"),
            Cell(MISSING_VALUE if epoch.elapsed is None else f"{epoch.elapsed:.1f}"),
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
        (grid("figures", drawn), *notes, details("The epochs as a table", [epochs])),
    )


def _classes_section(run: RunRecord) -> Section:
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
                Cell(format_percent(one.precision)),
                Cell(format_percent(one.recall)),
                _f1_cell(one.f1),
            )
        )
        for label, one in val.per_class.items()
    ]
    told = table(f"Validation images by class; macro-F1 {val.macro_f1:.3f}", columns, body)
    worst = sorted(val.per_class.items(), key=lambda entry: entry[1].f1)[:_MAX_LISTED]
    if len(val.per_class) <= 2 * _MAX_LISTED:
        return Section("classes", "Classes", (told,))
    few = [
        TableRow(
            (
                Cell(label),
                Cell(str(one.images)),
                Cell(format_percent(one.precision)),
                Cell(format_percent(one.recall)),
                _f1_cell(one.f1),
            )
        )
        for label, one in worst
    ]
    return Section(
        "classes",
        "Classes",
        (
            table(f"The {_MAX_LISTED} classes with the lowest F1", columns, few),
            details("All classes", [told]),
        ),
    )


def _f1_cell(value: float) -> Cell:
    return Cell(f"{value:.3f}", bar_share=min(1.0, max(0.0, value)))


def _confusion_section(run: RunRecord) -> Section:
    confusion, blocks = run.confusion, []
    if confusion is None:
        drawn = (
            plot_uri(run.directory.plots / "confusion_matrix.png")
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
    listed = _MAX_LISTED
    if len(run.classes) <= MAX_DRAWN_CLASSES:
        blocks.append(draw_confusion_matrix("Confusion matrix", confusion, run.classes))
        listed = _MAX_PAIRS_BESIDE_MATRIX
    pairs = rank_confused_pairs(confusion, run.classes)
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
                    Cell(f"{pair.count / pair.true_class_images:.0%}"),
                )
            )
            for pair in pairs[:listed]
        ]
        blocks.append(
            table(f"Confused most{_count_phrase(len(pairs), 'pair', listed)}", columns, body)
        )
    return Section("confusion", "Confusion", tuple(blocks))


def _mistakes_section(run: RunRecord) -> Section:
    if run.metrics is None or run.metrics.validation is None:
        return Section("mistakes", "Mistakes", ())
    blocks = []
    mistakes = run.mistakes
    if run.predictions is not None and not mistakes:
        return Section(
            "mistakes",
            "Mistakes",
            (paragraph(f"All {len(run.predictions)} validation images were recognised."),),
        )
    sheet = plot_uri(run.directory.plots / "mistakes.png")
    if sheet is not None:
        blocks.append(
            picture(
                "",
                sheet,
                "The wrong answers that the network was surest of: photo, true class and predicted class",
            )
        )
    if run.predictions is None:
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
                    Cell(format_percent(answer.probability)),
                    Cell(format_percent(answer.label_probability)),
                )
            )
            for answer in mistakes[:_MAX_LISTED]
        ]
        blocks.append(
            table(
                f"Surest wrong answers{_count_phrase(len(mistakes), 'wrong answer')}", columns, body
            )
        )
    return Section("mistakes", "Mistakes", tuple(blocks))


def _count_phrase(count: int, thing: str, listed: int = _MAX_LISTED) -> str:
    return (
        f": {listed} of {pluralize(count, thing)}"
        if count > listed
        else f": {pluralize(count, thing)}"
    )


def _bundle_sections(run: RunRecord) -> list[Section]:
    return (
        [variants_section(read_bundle_manifest(run.directory.bundle))]
        if BundleDirectory.exists_at(run.directory.bundle)
        else []
    )


def _retitled_bench_sections(results: Sequence[BenchResult]) -> list[Section]:
    if not results:
        return []
    return [
        replace(section, title=_BENCH_TITLES.get(section.anchor, section.title))
        for section in bench_sections(results)
    ]
