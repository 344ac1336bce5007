"""HTML report of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgetl.core.artifacts.evaluation import (
    ClassEvaluation,
    CorruptionEvaluation,
    Estimate,
    EvaluationFigures,
    EvaluationResult,
    UnscoredImage,
    average_over_corruptions,
)
from edgetl.core.formatting import MISSING_VALUE, format_duration, format_percent, pluralize
from edgetl.report.charts.confusion import (
    MAX_DRAWN_CLASSES,
    ConfusedPair,
    confused_pairs_table,
    draw_confusion_matrix,
    sort_confused_pairs,
)
from edgetl.report.charts.evaluation import (
    MAX_VARIANTS,
    draw_accuracy_by_kind,
    draw_accuracy_by_severity,
    draw_reliability_diagram,
    draw_risk_coverage,
)
from edgetl.report.evaluation.text import evaluation_sentences, evaluation_title
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
    render_page,
    table,
)
from edgetl.report.html.text import (
    OUTCOME_TONES,
    device_and_host,
    format_interval,
    value_cell,
    verdict_badge,
)

_MAX_LISTED = 20
"""Maximum number of classes, mistakes, groups or files in a table that is open."""
_MAX_PAIRS_BESIDE_MATRIX = 5
"""Maximum number of confused pairs listed next to a confusion matrix."""
_COVERAGES = (0.5, 0.8, 0.9, 0.95, 1.0)
"""Shares of answered images whose error rates are tabulated."""


@dataclass(frozen=True)
class _Scored:
    """A variant that passed the gate."""

    name: str
    figures: EvaluationFigures


def render_evaluation_report(result: EvaluationResult) -> str:
    """Render one self-contained HTML page. The output is deterministic."""
    scored = [
        _Scored(variant.name, variant.figures)
        for variant in result.variants
        if variant.figures is not None
    ]
    sections = [
        _summary_section(result),
        _limits_section(result),
        _accuracy_section(result, scored),
        _classes_section(scored),
        _confusion_section(result, scored),
        _calibration_section(scored),
        _risk_section(scored),
        _unknown_section(result, scored),
        _prediction_sets_section(scored),
        _groups_section(scored),
        _corruptions_section(scored),
        _mistakes_section(scored),
        _images_section(result),
        _method_section(result),
    ]
    lead = (
        f"{pluralize(result.data.images, 'image')} ({result.data.description}), evaluated by "
        f"edgetl {result.edgetl} on {device_and_host(result.device)}."
    )
    return render_page(evaluation_title(result), lead, sections)


def evaluations_section(results: Sequence[EvaluationResult]) -> Section:
    """List the evaluations of a run: data, accuracy and calibration of each variant."""
    columns = [
        Column("evaluated"),
        Column("images"),
        Column("variant"),
        Column("accuracy [95%]", "short"),
        Column("macro-F1 [95%]", "short"),
        Column("calibration error [95%]", "short"),
    ]
    rows = []
    for result in sorted(results, key=lambda result: result.created):
        for variant in result.variants:
            figures = variant.figures
            if figures is None:
                continue
            cells = (
                Cell(result.created[:10], small="" if result.path is None else result.path.name),
                Cell(result.data.description, small=pluralize(result.data.images, "image")),
                Cell(variant.name),
                _share_cell(figures.accuracy),
                _number_cell(figures.macro_f1),
                _number_cell(figures.calibration.calibration_error),
            )
            rows.append(TableRow(cells))
    if not rows:
        return Section("evaluations", "Evaluations", ())
    note = "edgetl report with the file of an evaluation writes its page."
    blocks = (table("Results of edgetl evaluate", columns, rows), paragraph(note, "note"))
    return Section("evaluations", "Evaluations", blocks)


def _summary_section(result: EvaluationResult) -> Section:
    cards = []
    for variant in result.variants:
        outcomes = {check.outcome for check in result.limit_checks if check.row == variant.name}
        badges = [Badge(name, tone) for name, tone in OUTCOME_TONES.items() if name in outcomes]
        if variant.figures is None:
            blocks = [paragraph(variant.gate.reason or "", badges=[Badge("failed gate", "bad")])]
            cards.append(card(variant.name, [], blocks))
            continue
        figures = variant.figures
        facts = [
            ("accuracy", _share_cell(figures.accuracy)),
            ("macro-F1", _number_cell(figures.macro_f1)),
            ("calibration error", _number_cell(figures.calibration.calibration_error)),
        ]
        if figures.unknown is not None:
            facts.append(("rejected as unknown", _share_cell(figures.unknown.rejected)))
        if badges:
            facts.append(("limits", Cell("", badges=tuple(badges))))
        cards.append(card(variant.name, facts, []))
    sentences = bullets(evaluation_sentences(result))
    return Section("summary", "Summary", (grid("cards", cards), sentences))


def _limits_section(result: EvaluationResult) -> Section:
    columns = [
        Column("variant"),
        Column("limit", "short"),
        Column("outcome", "short"),
        Column("reason"),
    ]
    rows = [
        TableRow(
            (
                Cell(check.row),
                Cell(f"--{check.limit}"),
                Cell("", badges=(Badge(check.outcome, OUTCOME_TONES[check.outcome]),)),
                Cell(check.why),
            )
        )
        for check in result.limit_checks
    ]
    if not rows:
        return Section("limits", "Limits", ())
    note = "Undecided: the 95% interval contains the limit."
    blocks = (table("Limits", columns, rows), paragraph(note, "note"))
    return Section("limits", "Limits", blocks)


def _accuracy_section(result: EvaluationResult, scored: Sequence[_Scored]) -> Section:
    if not scored:
        return Section("accuracy", "Accuracy", ())
    top_k = list(dict.fromkeys(k for variant in scored for k in variant.figures.top_k))
    columns = [
        Column("variant"),
        Column("accuracy [95%]", "short"),
        *(Column(f"top-{k} [95%]", "short") for k in top_k),
        Column("balanced accuracy [95%]", "short", "mean recall of the classes that have images"),
        Column("macro-F1 [95%]", "short", "mean F1 of the classes that have images"),
    ]
    rows = []
    for variant in scored:
        figures = variant.figures
        cells = (
            Cell(variant.name, small=f"{figures.correct} of {result.data.images} correct"),
            _share_cell(figures.accuracy),
            *(_share_cell(figures.top_k.get(k)) for k in top_k),
            _share_cell(figures.balanced_accuracy),
            _number_cell(figures.macro_f1),
        )
        rows.append(TableRow(cells))
    blocks = [table("Accuracy of each variant", columns, rows), *_difference_blocks(result)]
    return Section("accuracy", "Accuracy", tuple(blocks))


def _difference_blocks(result: EvaluationResult) -> list[Markup]:
    columns = [
        Column("candidate"),
        Column("baseline"),
        Column("points [95%]", "short", "accuracy of the candidate minus that of the baseline"),
        Column("the candidate is", "short"),
        Column("only candidate correct", "number"),
        Column("only baseline correct", "number"),
        Column("same label", "number"),
        Column("p", "number", "McNemar's exact test, corrected (Holm)"),
    ]
    rows = []
    for pair in result.comparisons:
        points = pair.difference
        cells = (
            Cell(pair.candidate),
            Cell(pair.baseline),
            Cell(
                f"{100 * points.value:+.1f}",
                small=f"[{100 * points.low:+.1f}, {100 * points.high:+.1f}]",
            ),
            Cell("", badges=(verdict_badge(pair.verdict),)),
            Cell(str(pair.only_candidate)),
            Cell(str(pair.only_baseline)),
            Cell(str(pair.equal_labels)),
            Cell(f"{pair.corrected_p:.2g}"),
        )
        rows.append(TableRow(cells))
    if not rows:
        return []
    note = "Paired, on the same images. Inconclusive: the 95% interval contains 0."
    return [table("Differences between variants", columns, rows), paragraph(note, "note")]


def _classes_section(scored: Sequence[_Scored]) -> Section:
    blocks = [
        block
        for index, variant in enumerate(scored)
        for block in _class_blocks(variant, is_open=index == 0)
    ]
    return Section("classes", "Classes", tuple(blocks))


def _class_blocks(variant: _Scored, is_open: bool) -> list[Markup]:
    per_class = variant.figures.per_class
    all_classes = _class_table(f"Classes, {variant.name}", list(per_class.items()))
    if not is_open:
        return [details(f"Classes, {variant.name}", [all_classes])]
    if len(per_class) <= 2 * _MAX_LISTED:
        return [all_classes]
    with_images = [entry for entry in per_class.items() if entry[1].f1 is not None]
    worst = sorted(with_images, key=lambda entry: _value(entry[1].f1))[:_MAX_LISTED]
    title = f"The {len(worst)} classes with the lowest F1, {variant.name}"
    return [_class_table(title, worst), details(f"All classes, {variant.name}", [all_classes])]


def _class_table(title: str, classes: Sequence[tuple[str, ClassEvaluation]]) -> Markup:
    columns = [
        Column("class"),
        Column("images", "number"),
        Column("predicted", "number", "images predicted as the class"),
        Column("precision [95%]", "short"),
        Column("recall [95%]", "short"),
        Column("F1 [95%]", "short"),
    ]
    rows = []
    for label, figures in classes:
        cells = (
            Cell(label),
            Cell(str(figures.images)),
            Cell(str(figures.predicted)),
            _share_cell(figures.precision),
            _share_cell(figures.recall),
            _number_cell(figures.f1, with_bar=True),
        )
        rows.append(TableRow(cells, "" if figures.images else "dim"))
    return table(title, columns, rows)


def _confusion_section(result: EvaluationResult, scored: Sequence[_Scored]) -> Section:
    has_matrix = len(result.labels) <= MAX_DRAWN_CLASSES
    figures, tables = [], []
    for variant in scored:
        pairs = sort_confused_pairs(
            ConfusedPair(
                cell.label,
                cell.predicted,
                cell.images,
                variant.figures.per_class[cell.label].images,
            )
            for cell in variant.figures.confusion
            if cell.label != cell.predicted
        )
        if has_matrix:
            matrix = variant.figures.confusion_matrix(result.labels)
            title = f"Confusion matrix, {variant.name}"
            figures.append(draw_confusion_matrix(title, matrix, result.labels, "images"))
        if pairs and len(result.labels) > 3:
            most = _MAX_PAIRS_BESIDE_MATRIX if has_matrix else _MAX_LISTED
            tables.append(confused_pairs_table(pairs, most, f", {variant.name}"))
        elif not pairs:
            tables.append(paragraph(f"{variant.name}: no classes were confused."))
    blocks = (grid("figures", figures), *tables) if figures else tuple(tables)
    return Section("confusion", "Confusion", blocks)


def _calibration_section(scored: Sequence[_Scored]) -> Section:
    if not scored:
        return Section("calibration", "Calibration", ())
    columns = [
        Column("variant"),
        Column("calibration error [95%]", "short", "expected calibration error (ECE)"),
        Column(
            "Brier score [95%]", "short", "squared error of the probabilities, over all classes"
        ),
        Column("mean confidence", "number"),
        Column("accuracy", "number"),
    ]
    rows = []
    for variant in scored:
        calibration, accuracy = variant.figures.calibration, variant.figures.accuracy.value
        over = calibration.mean_confidence > variant.figures.accuracy.high
        under = calibration.mean_confidence < variant.figures.accuracy.low
        badges = [Badge("overconfident", "warn")] if over else []
        badges += [Badge("underconfident", "warn")] if under else []
        cells = (
            Cell(variant.name, badges=tuple(badges)),
            _number_cell(calibration.calibration_error),
            _number_cell(calibration.brier),
            Cell(format_percent(calibration.mean_confidence)),
            Cell(format_percent(accuracy)),
        )
        rows.append(TableRow(cells))
    diagrams = [
        draw_reliability_diagram(f"Reliability, {variant.name}", variant.figures.calibration)
        for variant in scored[:MAX_VARIANTS]
    ]
    note = (
        "Over- or underconfident: the mean confidence is outside the 95% interval of the accuracy."
    )
    blocks = (
        grid("figures", diagrams),
        table("Calibration of the probabilities", columns, rows),
        paragraph(note, "note"),
    )
    return Section("calibration", "Calibration", blocks)


def _risk_section(scored: Sequence[_Scored]) -> Section:
    if not scored:
        return Section("risk", "Risk and coverage", ())
    curves = {variant.name: variant.figures.risk_coverage for variant in scored}
    columns = [
        Column("variant"),
        Column("area [95%]", "short", "area under the risk-coverage curve; 0 is best"),
        *(Column(f"errors at {share:.0%} [95%]", "short") for share in _COVERAGES),
    ]
    rows = []
    for name, curve in curves.items():
        cells = [Cell(name), _number_cell(curve.aurc, 4)]
        for share in _COVERAGES:
            point = min(curve.points, key=lambda point: abs(point.coverage - share))
            near = abs(point.coverage - share) < 0.03
            risk = Estimate(point.risk, point.interval) if near else None
            tooltip = f"probability {point.min_confidence:.3f} or more" if near else ""
            cells.append(_share_cell(risk, tooltip))
        rows.append(TableRow(tuple(cells)))
    drawing = draw_risk_coverage("Error rate of the most confident images", curves)
    note = "Errors at 90%: share of mistakes if the least confident tenth of the images is refused."
    blocks = (
        drawing,
        table("Error rate by share of answered images", columns, rows),
        paragraph(note, "note"),
    )
    return Section("risk", "Risk and coverage", blocks)


def _unknown_section(result: EvaluationResult, scored: Sequence[_Scored]) -> Section:
    columns = [
        Column("variant"),
        Column("rejected [95%]", "short", "known images above the threshold"),
        Column("mistakes rejected [95%]", "short", "share of the wrongly classified images"),
        Column("accuracy of the others [95%]", "short", "on images that are not rejected"),
    ]
    if result.unknown_data is not None:
        columns += [
            Column("unknown caught [95%]", "short", "unknown images above the threshold"),
            Column("AUROC [95%]", "short", "of the unknown score"),
        ]
    rows = []
    for variant in scored:
        unknown = variant.figures.unknown
        if unknown is None:
            continue
        cells = [
            Cell(variant.name, small=f"threshold {unknown.threshold:g}"),
            _share_cell(unknown.rejected),
            _share_cell(unknown.rejected_mistakes),
            _share_cell(unknown.accepted_accuracy),
        ]
        if result.unknown_data is not None:
            images = unknown.unknown_images
            cells += [
                _share_cell(None if images is None else images.caught),
                _number_cell(None if images is None else images.auroc),
            ]
        rows.append(TableRow(tuple(cells)))
    if not rows:
        return Section("unknown", "Unknown images", ())
    blocks = [table("Images recognized as unknown", columns, rows)]
    if result.unknown_data is not None:
        source = result.unknown_data
        text = f"Unknown images: {pluralize(source.images, 'image')} of {source.path}."
        blocks.append(paragraph(text, "note"))
        blocks += _unscored_blocks(source.unscored)
    return Section("unknown", "Unknown images", tuple(blocks))


def _prediction_sets_section(scored: Sequence[_Scored]) -> Section:
    columns = [
        Column("variant"),
        Column("level", "number", "coverage that the sets were made for"),
        Column("covered [95%]", "short", "share of images whose set contains their class"),
        Column("mean size [95%]", "short"),
        Column("one class", "number"),
        Column("empty", "number"),
        Column("least probability", "number", "of the classes in a set"),
    ]
    rows = []
    for variant in scored:
        for sets in variant.figures.prediction_sets:
            badges = () if sets.is_consistent else (Badge("below the level", "bad"),)
            covered = _share_cell(sets.covered)
            cells = (
                Cell(variant.name),
                Cell(f"{100 * sets.coverage_level:g}%"),
                Cell(covered.text, covered.small, badges=badges),
                _number_cell(sets.mean_size, 2),
                Cell(format_percent(sets.single)),
                Cell(format_percent(sets.empty)),
                Cell(f"{sets.min_probability:.3g}"),
            )
            rows.append(TableRow(cells))
    if not rows:
        return Section("sets", "Prediction sets", ())
    note = (
        "A set contains all classes with at least the least probability. Below the level: the 95% "
        "interval does not reach it, so these images differ from the validation images."
    )
    blocks = (table("Prediction sets", columns, rows), paragraph(note, "note"))
    return Section("sets", "Prediction sets", blocks)


def _groups_section(scored: Sequence[_Scored]) -> Section:
    names = list(dict.fromkeys(name for variant in scored for name in variant.figures.groups))
    blocks = []
    for name in names:
        values = list(
            dict.fromkeys(
                value for variant in scored for value in variant.figures.groups.get(name, {})
            )
        )
        groups_table = _groups_table(name, values, scored)
        is_open = len(values) <= 2 * _MAX_LISTED
        title = f"{name}: {pluralize(len(values), 'group')}"
        blocks.append(groups_table if is_open else details(title, [groups_table]))
    return Section("groups", "Groups", tuple(blocks))


def _groups_table(name: str, values: Sequence[str], scored: Sequence[_Scored]) -> Markup:
    rejects = any(
        group.rejected is not None
        for variant in scored
        for group in variant.figures.groups.get(name, {}).values()
    )
    columns = [
        Column("group"),
        Column("variant"),
        Column("images", "number"),
        Column("accuracy [95%]", "short"),
        Column("balanced accuracy [95%]", "short"),
        *([Column("rejected as unknown [95%]", "short")] if rejects else []),
    ]
    rows = []
    for value in values:
        for variant in scored:
            group = variant.figures.groups.get(name, {}).get(value)
            if group is None:
                continue
            overall = variant.figures.accuracy
            low, high = group.accuracy.interval
            badges = [Badge("below", "bad")] if high < overall.low else []
            badges += [Badge("above", "good")] if low > overall.high else []
            cells = [
                Cell(value or "(none)", badges=tuple(badges)),
                Cell(variant.name),
                Cell(str(group.images)),
                _share_cell(group.accuracy, bar_share=group.accuracy.value),
                _share_cell(group.balanced_accuracy),
            ]
            if rejects:
                cells.append(_share_cell(group.rejected))
            rows.append(TableRow(tuple(cells)))
    title = f"By {name}; below, above: the 95% interval lies outside that of all images"
    return table(title, columns, rows)


def _corruptions_section(scored: Sequence[_Scored]) -> Section:
    corrupted = [variant for variant in scored if variant.figures.corruptions]
    if not corrupted:
        return Section("corruptions", "Corruptions", ())
    clean = {variant.name: variant.figures.accuracy for variant in corrupted}
    corruptions = {variant.name: variant.figures.corruptions for variant in corrupted}
    images = corrupted[0].figures.corruptions[0].images
    text = (
        f"Accuracy on {pluralize(images, 'image')} that were corrupted as in ImageNet-C (Hendrycks "
        "and Dietterich, 2019). Models can be compared with each other, not with published figures."
    )
    drawings = [
        draw_accuracy_by_severity("Accuracy by severity", clean, corruptions),
        draw_accuracy_by_kind("Accuracy by kind", clean, corruptions),
    ]
    blocks = [paragraph(text), grid("figures", drawings)]
    for index, variant in enumerate(corrupted):
        corruption_table = _corruption_table(variant)
        title = f"Corruptions, {variant.name}"
        blocks.append(corruption_table if index == 0 else details(title, [corruption_table]))
    note = (
        "Means of several kinds or severities are on the same images; their intervals are the means "
        "of the intervals' bounds, which are at least as wide as needed."
    )
    return Section("corruptions", "Corruptions", (*blocks, paragraph(note, "note")))


def _corruption_table(variant: _Scored) -> Markup:
    entries = {(entry.kind, entry.severity): entry for entry in variant.figures.corruptions}
    kinds = list(dict.fromkeys(kind for kind, _ in entries))
    severities = sorted({severity for _, severity in entries})
    columns = [
        Column("corruption"),
        *(Column(f"severity {severity} [95%]", "short") for severity in severities),
        Column("mean [95%]", "short"),
    ]
    rows = []
    for kind in (*kinds, None):
        chosen = [entry for entry in entries.values() if kind in (None, entry.kind)]
        cells = [Cell("mean of all kinds" if kind is None else kind.replace("_", " "))]
        for severity in severities:
            at_severity = [entry for entry in chosen if entry.severity == severity]
            mean = average_over_corruptions(at_severity) if at_severity else None
            cells.append(_share_cell(mean, tooltip=_rejected_text(at_severity)))
        cells.append(_share_cell(average_over_corruptions(chosen)))
        rows.append(TableRow(tuple(cells)))
    clean = format_percent(variant.figures.accuracy.value)
    title = f"Accuracy under corruptions, {variant.name}; uncorrupted {clean}"
    return table(title, columns, rows)


def _mistakes_section(scored: Sequence[_Scored]) -> Section:
    columns = [
        Column("image"),
        Column("true class"),
        Column("predicted"),
        Column("probability", "number"),
    ]
    blocks: list[Markup] = []
    for variant in scored:
        mistakes = variant.figures.mistakes
        rows = [
            TableRow(
                (
                    Cell(mistake.path),
                    Cell(mistake.label),
                    Cell(mistake.predicted),
                    Cell(format_percent(mistake.probability)),
                )
            )
            for mistake in mistakes[:_MAX_LISTED]
        ]
        if not rows:
            continue
        title = f"Most confident mistakes, {variant.name}"
        mistakes_table = table(title, columns, rows)
        blocks.append(details(title, [mistakes_table]) if blocks else mistakes_table)
    return Section("mistakes", "Mistakes", tuple(blocks))


def _images_section(result: EvaluationResult) -> Section:
    data = result.data
    pairs = [
        ("images", Cell(str(data.images))),
        ("source", Cell(data.description)),
        ("path", Cell(data.path)),
    ]
    counts = [
        TableRow((Cell(label), Cell(str(count))), "" if count else "dim")
        for label, count in data.per_class.items()
    ]
    columns = [Column("class"), Column("images", "number")]
    counts_table = table("Images by class", columns, counts)
    many = len(counts) > _MAX_LISTED
    blocks = [
        definition_list(pairs),
        details("Images by class", [counts_table]) if many else counts_table,
    ]
    if data.ignored_classes:
        rows = [
            TableRow((Cell(label), Cell(str(count))))
            for label, count in data.ignored_classes.items()
        ]
        blocks.append(table("Left out: classes that the model does not know", columns, rows))
    blocks += _unscored_blocks(data.unscored)
    return Section("images", "Images", tuple(blocks))


def _unscored_blocks(unscored: Sequence[UnscoredImage]) -> list[Markup]:
    if not unscored:
        return []
    rows = [TableRow((Cell(image.path), Cell(image.reason))) for image in unscored]
    title = f"Not scored: {pluralize(len(unscored), 'image')}"
    unscored_table = table(title, [Column("image"), Column("reason")], rows)
    return [details(title, [unscored_table]) if len(rows) > _MAX_LISTED else unscored_table]


def _method_section(result: EvaluationResult) -> Section:
    pairs = [
        ("evaluated", Cell(result.created)),
        ("edgetl", Cell(result.edgetl)),
        ("bundle", Cell(result.target)),
        ("run", value_cell(result.model.run_id)),
        ("result file", value_cell(None if result.path is None else result.path.name)),
        ("device", Cell(device_and_host(result.device))),
        ("provider", Cell(f"{result.provider}, {pluralize(result.threads, 'thread')}")),
        ("decoding and inference", Cell(format_duration(result.seconds))),
    ]
    columns = [
        Column("variant"),
        Column("gate", "short", "golden images on this device"),
        Column("max |Δlogit|", "number", "against PyTorch"),
        Column("precision", "short"),
        Column("SHA-256", "mono"),
    ]
    rows = []
    for variant in result.variants:
        gate = variant.gate
        badge = Badge("passed", "good") if gate.passed else Badge("failed", "bad")
        if gate.passed is None:
            badge = Badge("not checked", "warn")
        difference = gate.max_logit_difference
        cells = (
            Cell(variant.name),
            Cell("", badges=(badge,)),
            Cell(MISSING_VALUE if difference is None else f"{difference:.2g}"),
            Cell(variant.precision),
            Cell(variant.file_sha256),
        )
        rows.append(TableRow(cells))
    intervals = (
        "Brackets and bars are 95% intervals: of shares and F1 by Wilson (1927), of means over "
        "classes by Zou and Donner (2008), of paired differences by Agresti and Min (2005), of AUROC "
        "by Newcombe (2006), of Brier scores and set sizes by Student's t, of calibration errors and "
        "areas by a bootstrap over the images."
    )
    blocks = [definition_list(pairs), table("Variants", columns, rows), paragraph(intervals)]
    return Section("method", "Method", tuple(blocks))


def _share_cell(
    estimate: Estimate | None, tooltip: str = "", bar_share: float | None = None
) -> Cell:
    if estimate is None:
        return Cell(MISSING_VALUE)
    interval = f"[{format_percent(estimate.low)}, {format_percent(estimate.high)}]"
    return Cell(format_percent(estimate.value), interval, tooltip, bar_share=bar_share)


def _number_cell(estimate: Estimate | None, digits: int = 3, with_bar: bool = False) -> Cell:
    if estimate is None:
        return Cell(MISSING_VALUE)
    return Cell(
        f"{estimate.value:.{digits}f}",
        format_interval(estimate.low, estimate.high, digits),
        bar_share=min(1.0, max(0.0, estimate.value)) if with_bar else None,
    )


def _rejected_text(entries: Sequence[CorruptionEvaluation]) -> str:
    """Return the share rejected as unknown, for a single corruption."""
    if len(entries) != 1 or entries[0].rejected is None:
        return ""
    return f"{format_percent(entries[0].rejected.value)} rejected as unknown"


def _value(estimate: Estimate | None) -> float:
    return 0.0 if estimate is None else estimate.value
