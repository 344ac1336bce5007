"""HTML report of one training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bundle import read_bundle_record
from edgetl.core.artifacts.evaluation import EvaluationResult
from edgetl.core.artifacts.run import PredictionRecord, RunRecord
from edgetl.core.artifacts.run_metrics import HeldOutMetrics
from edgetl.core.formatting import format_duration, format_percent
from edgetl.core.paths import BundleDirectory
from edgetl.core.statistics import ClassScore
from edgetl.report.bench.page import bench_sections
from edgetl.report.bundle.page import confidence_section, variants_section
from edgetl.report.charts.confusion import (
    MAX_DRAWN_CLASSES,
    confused_pairs_table,
    draw_confusion_matrix,
    rank_confused_pairs,
)
from edgetl.report.charts.epochs import (
    TrainingCurve,
    draw_accuracy_over_time,
    draw_metric_over_epochs,
)
from edgetl.report.evaluation.page import evaluations_section
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
from edgetl.report.html.text import count_phrase, format_number
from edgetl.report.run.provenance import data_section, recipe_section, versions_section
from edgetl.report.run.text import format_points, run_sentences, run_title

_MAX_LISTED = 20
"""Maximum number of mistakes, confused pairs or classes in a table."""
_MAX_PAIRS_BESIDE_MATRIX = 5
"""Maximum number of confused pairs listed next to a confusion matrix."""
_BENCH_TITLES = {
    "summary": "Latency",
    "table": "All latencies",
    "ledgers": "Benchmark devices",
    "method": "Benchmark method",
}
"""Titles of sections of the benchmark report when they are part of a run's page, by anchor."""


def render_run_report(
    run: RunRecord,
    results: Sequence[BenchResult],
    evaluations: Sequence[EvaluationResult] = (),
) -> str:
    """Render one self-contained HTML page of a run, its bundle, evaluations and bench results.

    Raises:
        BundleError: the run's bundle is broken.
    """
    data = Path(run.configuration.config.data).name
    lead = f"{run.directory.path.resolve().name}: fine-tuned on {data}." if data else ""
    sections = [
        *run_sections(run),
        *_bundle_sections(run, results),
        evaluations_section(evaluations),
        *_retitled_bench_sections(results),
    ]
    return render_page(run_title(run), lead, sections)


def run_sections(run: RunRecord) -> list[Section]:
    """Build the sections about the run itself; sections without content have no blocks."""
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


def _result_section(run: RunRecord) -> Section:
    blocks = []
    if run.metrics is None:
        blocks.append(paragraph("", badges=[Badge("not finished", "warn")]))
    blocks.append(bullets(run_sentences(run)))
    result_card = card(run.model, _key_facts(run), blocks)
    return Section("result", "Result", (grid("cards", [result_card]), *_metrics_blocks(run)))


def _key_facts(run: RunRecord) -> list[tuple[str, Cell]]:
    metrics, best = run.metrics, run.best_epoch
    if metrics is None:
        if best is None:
            return []
        accuracy = Cell(format_percent(best.val_accuracy), small=f"epoch {best.epoch}")
        return [("validation accuracy so far", accuracy)]
    facts = []
    for name, split in (("validation", metrics.val), ("test", metrics.test)):
        if split is not None:
            cell = Cell(format_percent(split.accuracy), small=_format_interval(split))
            facts.append((f"{name} accuracy", cell))
    gap = "" if metrics.gap is None else format_points(metrics.gap)
    time = format_duration(metrics.seconds["total"])
    facts += [
        ("training accuracy", Cell(format_percent(metrics.train.accuracy), small=gap)),
        ("time", Cell(time, small=f"{metrics.device}, {metrics.precision}")),
    ]
    return facts


def _format_interval(metrics: HeldOutMetrics) -> str:
    low, high = metrics.interval
    return f"[{format_percent(low)}, {format_percent(high)}]"


def _metrics_blocks(run: RunRecord) -> list[Markup]:
    metrics = run.metrics
    if metrics is None:
        return []
    pairs: list[tuple[str, Cell]] = []
    if metrics.val is not None and metrics.test is None:
        pairs += _secondary_metrics(metrics.val)
    for name, value in (
        ("peak memory", metrics.peak_memory_bytes),
        ("peak GPU memory", metrics.peak_gpu_memory_bytes),
    ):
        if value is not None:
            pairs.append((name, Cell(f"{value / 2**20:,.0f} MiB")))
    if metrics.stop_reason:
        pairs.append(("training ended by", Cell(metrics.stop_reason)))
    blocks = [definition_list(pairs)] if pairs else []
    if metrics.test is not None:
        blocks.append(_splits_table(metrics.val, metrics.test))
    return blocks


def _secondary_metrics(metrics: HeldOutMetrics) -> list[tuple[str, Cell]]:
    pairs = []
    if metrics.top5_accuracy is not None:
        pairs.append(("top-5 accuracy", Cell(format_percent(metrics.top5_accuracy))))
    pairs.append(("macro-F1", Cell(f"{metrics.macro_f1:.3f}")))
    if metrics.calibration_error is not None:
        tooltip = "mean gap between confidence and accuracy"
        cell = Cell(f"{metrics.calibration_error:.3f}", tooltip=tooltip)
        pairs.append(("expected calibration error", cell))
    return pairs


def _splits_table(val: HeldOutMetrics | None, test: HeldOutMetrics) -> Markup:
    splits = [(name, split) for name, split in (("validation", val), ("test", test)) if split]
    columns = [Column("split"), Column("images", "number"), Column("accuracy [95%]", "number")]
    columns += [Column(name, "number") for name, _ in _secondary_metrics(test)]
    rows = [
        TableRow(
            (
                Cell(name),
                Cell(str(split.images)),
                Cell(f"{format_percent(split.accuracy)} {_format_interval(split)}"),
                *(cell for _, cell in _secondary_metrics(split)),
            )
        )
        for name, split in splits
    ]
    title = "The best epoch was chosen on the validation images; test images chose nothing"
    return table(title, columns, rows)


def _training_section(run: RunRecord) -> Section:
    if not run.history:
        return Section("training", "Training", ())
    best_epoch = None if run.best_epoch is None else run.best_epoch.epoch
    curve = TrainingCurve(run.directory.path.resolve().name, run.history, best_epoch)
    figures = [
        draw_metric_over_epochs("Accuracy", "accuracy", curve),
        draw_metric_over_epochs("Loss (cross-entropy)", "loss", curve),
    ]
    notes = []
    if curve.has_times:
        figures.append(draw_accuracy_over_time("Accuracy over time", [curve]))
    else:
        text = "No plot of accuracy over time: this run did not record the time of each epoch."
        notes.append(paragraph(text, "note"))
    epochs = details("Epochs as a table", [_epochs_table(run, curve.best_epoch)])
    return Section("training", "Training", (grid("figures", figures), *notes, epochs))


def _epochs_table(run: RunRecord, best_epoch: int | None) -> Markup:
    columns = [
        Column("epoch"),
        Column("phase", "number"),
        Column("loss", "number"),
        Column("accuracy", "number"),
        Column("val loss", "number"),
        Column("val accuracy", "number"),
        Column("learning rate", "number"),
        Column("s", "number"),
        Column("elapsed s", "number"),
    ]
    body = []
    for epoch in run.history:
        badges = (Badge("best", "good"),) if epoch.epoch == best_epoch else ()
        cells = (
            Cell(str(epoch.epoch), badges=badges),
            Cell(str(epoch.phase)),
            Cell(f"{epoch.train_loss:.3f}"),
            Cell(format_percent(epoch.train_accuracy)),
            Cell(format_number(epoch.val_loss, 3)),
            Cell(format_percent(epoch.val_accuracy)),
            Cell(f"{epoch.lr:.1e}"),
            Cell(f"{epoch.seconds:.1f}"),
            Cell(format_number(epoch.elapsed)),
        )
        body.append(TableRow(cells))
    title = "Epochs; training loss and accuracy are measured on augmented images"
    return table(title, columns, body)


def _classes_section(run: RunRecord) -> Section:
    blocks = []
    if run.metrics is not None:
        for name, split in (("Validation", run.metrics.val), ("Test", run.metrics.test)):
            if split is not None:
                blocks += _class_blocks(name, split)
    return Section("classes", "Classes", tuple(blocks))


def _class_blocks(name: str, split: HeldOutMetrics) -> list[Markup]:
    title = f"{name} images by class; macro-F1 {split.macro_f1:.3f}"
    all_classes = _class_table(title, list(split.per_class.items()))
    if len(split.per_class) <= 2 * _MAX_LISTED:
        return [all_classes]
    worst = sorted(split.per_class.items(), key=lambda entry: entry[1].f1)[:_MAX_LISTED]
    title = f"The {_MAX_LISTED} classes with the lowest F1 on the {name.lower()} images"
    return [_class_table(title, worst), details("All classes", [all_classes])]


def _class_table(title: str, classes: Sequence[tuple[str, ClassScore]]) -> Markup:
    columns = [
        Column("class"),
        Column("images", "number"),
        Column("precision", "number"),
        Column("recall", "number"),
        Column("F1", "short"),
    ]
    rows = [
        TableRow(
            (
                Cell(label),
                Cell(str(metrics.images)),
                Cell(format_percent(metrics.precision)),
                Cell(format_percent(metrics.recall)),
                Cell(f"{metrics.f1:.3f}", bar_share=min(1.0, max(0.0, metrics.f1))),
            )
        )
        for label, metrics in classes
    ]
    return table(title, columns, rows)


def _confusion_section(run: RunRecord) -> Section:
    val, test = run.confusion, run.test_confusion
    blocks = [] if val else _confusion_plot_blocks(run)
    if val is not None:
        title = "Confusion matrix" if test is None else "Validation images"
        blocks += _confusion_blocks(title, val, run.classes, "validation images")
    if test is not None:
        blocks += _confusion_blocks("Test images", test, run.classes, "test images")
    return Section("confusion", "Confusion", tuple(blocks))


def _confusion_blocks(
    title: str, confusion: Sequence[Sequence[int]], classes: Sequence[str], images: str
) -> list[Markup]:
    blocks = []
    max_pairs = _MAX_LISTED
    if len(classes) <= MAX_DRAWN_CLASSES:
        blocks.append(draw_confusion_matrix(title, confusion, classes, images))
        max_pairs = _MAX_PAIRS_BESIDE_MATRIX
    pairs = rank_confused_pairs(confusion, classes)
    if not pairs:
        blocks.append(paragraph("No classes were confused."))
    elif len(classes) > 3:
        blocks.append(confused_pairs_table(pairs, max_pairs))
    return blocks


def _confusion_plot_blocks(run: RunRecord) -> list[Markup]:
    """Return the plot written after training, for a run without predictions."""
    if run.metrics is None or not run.metrics.val:
        return []
    plot = plot_uri(run.directory.plots / "confusion_matrix.png")
    if plot is None:
        return []
    alt = "Confusion matrix of the validation images, drawn after training"
    return [picture("", plot, alt)]


def _mistakes_section(run: RunRecord) -> Section:
    if run.metrics is None or run.metrics.val is None:
        return Section("mistakes", "Mistakes", ())
    if run.predictions is not None and not run.mistakes:
        text = f"All {len(run.predictions)} validation images were classified correctly."
        return Section("mistakes", "Mistakes", (paragraph(text),))
    blocks = []
    sheet = plot_uri(run.directory.plots / "mistakes.png")
    if sheet is not None:
        alt = "Most confident mistakes: image, true class and predicted class"
        blocks.append(picture("", sheet, alt))
    if run.predictions is None:
        text = "No list of mistakes: this run did not save its predictions."
        blocks.append(paragraph(text, "note"))
    else:
        blocks.append(_mistakes_table(run.mistakes))
    return Section("mistakes", "Mistakes", tuple(blocks))


def _mistakes_table(mistakes: Sequence[PredictionRecord]) -> Markup:
    columns = [
        Column("image"),
        Column("true class"),
        Column("predicted"),
        Column("probability", "number"),
        Column("of the true class", "number", "predicted probability of the true class"),
    ]
    rows = [
        TableRow(
            (
                Cell(mistake.path),
                Cell(mistake.label),
                Cell(mistake.predicted),
                Cell(format_percent(mistake.probability)),
                Cell(format_percent(mistake.label_probability)),
            )
        )
        for mistake in mistakes[:_MAX_LISTED]
    ]
    count = count_phrase(len(mistakes), "mistake", _MAX_LISTED)
    return table(f"Most confident mistakes: {count}", columns, rows)


def _bundle_sections(run: RunRecord, results: Sequence[BenchResult]) -> list[Section]:
    if not BundleDirectory.exists_at(run.directory.bundle):
        return []
    bundle = read_bundle_record(run.directory.bundle)
    return [variants_section(bundle, results), confidence_section(bundle)]


def _retitled_bench_sections(results: Sequence[BenchResult]) -> list[Section]:
    if not results:
        return []
    return [
        replace(section, title=_BENCH_TITLES.get(section.anchor, section.title))
        for section in bench_sections(results)
    ]
