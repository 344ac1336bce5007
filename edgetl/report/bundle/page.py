"""HTML report and summary sentences of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import PurePath

from markupsafe import Markup

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bundle import (
    AccuracyRecord,
    BundleRecord,
    FileStatus,
    NetworkParity,
    PathParity,
    VariantRecord,
)
from edgetl.core.artifacts.confidence import UNKNOWN_THRESHOLD, CalibrationFigures
from edgetl.core.artifacts.confidence_summary import (
    METHOD_NAMES,
    format_auroc,
    name_unknown_kind,
)
from edgetl.core.artifacts.variant_agreement import describe_disagreements
from edgetl.core.formatting import (
    MISSING_VALUE,
    format_milliseconds,
    format_percent,
    pluralize,
)
from edgetl.report.html.blocks import (
    Badge,
    Cell,
    Column,
    Section,
    TableRow,
    Tone,
    bullets,
    card,
    definition_list,
    details,
    grid,
    paragraph,
    photo_uri,
    render_page,
    table,
    thumbnails,
)
from edgetl.report.html.text import (
    format_interval,
    format_value,
    join_words,
    value_cell,
    verdict_badge,
)

_MAX_VISIBLE_LABELS = 60
"""Maximum number of labels visible without opening them."""
_STATUS_TONES: dict[FileStatus, Tone] = {"as proven": "good", "altered": "bad", "missing": "bad"}


def render_bundle_report(bundle: BundleRecord) -> str:
    """Render one self-contained HTML page. The output is deterministic.

    Raises:
        BundleError: the manifest refers to a file outside the bundle, or a file cannot be read.
    """
    sections = [
        _summary_section(bundle),
        variants_section(bundle),
        *_npu_sections(bundle),
        confidence_section(bundle),
        _parity_section(bundle),
        _preprocessing_section(bundle),
        _labels_section(bundle),
        _golden_section(bundle),
        _provenance_section(bundle),
    ]
    manifest = bundle.manifest
    lead = (
        f"Exported by edgetl {manifest.edgetl} from run {bundle.run_id}, "
        f"weights {manifest.run.weights_text}."
    )
    return render_page(bundle_title(bundle), lead, sections)


def bundle_title(bundle: BundleRecord) -> str:
    """Return the bundle's title: architecture and number of classes."""
    return f"Bundle of {bundle.model}, {pluralize(len(bundle.labels), 'class', 'classes')}"


def bundle_sentences(bundle: BundleRecord) -> list[str]:
    """Summarize a bundle: recommended file, accuracy, parity, latency, and damaged files.

    Raises:
        BundleError: see `BundleRecord.file_statuses`.
    """
    variant = bundle.manifest.primary_variant
    sentences = ["Recommended: none, no variant met the limits of the export."]
    accuracy_of: Sequence[VariantRecord] = bundle.variants
    if bundle.manifest.recommended:
        size = f"{variant.file}, {variant.bytes / 1e6:.1f} MB"
        count = pluralize(len(bundle.variants), "variant")
        sentences = [f"Recommended: {variant.name} ({size}), of {count}."]
        accuracy_of = [variant]
    for item in accuracy_of:
        sentences.append(_accuracy_sentence(item))
        if item.test_accuracy is not None:
            sentences.append(_test_accuracy_sentence(item.name, item.test_accuracy))
    parity = variant.parity.path
    images = pluralize(parity.images, f"{parity.kind} image")
    sentences.append(
        f"Against PyTorch: max |Δlogit| {parity.max_abs_diff:.2g} on {images}, "
        f"same label on {format_percent(parity.top1_agreement)}."
    )
    sentences.append(_latency_sentence(bundle, variant))
    damaged = [
        f"{file} is {status}"
        for file, status in bundle.file_statuses.items()
        if status != "as proven"
    ]
    if damaged:
        sentences.append(
            f"Files do not match the export: {join_words(damaged)}. Copy or export the bundle again."
        )
    return sentences


def _latency_sentence(bundle: BundleRecord, variant: VariantRecord) -> str:
    latency = variant.latency
    if latency is None or latency.p50_ms is None:
        return (
            "Latency: not measured at export. "
            f"Run `edgetl bench {bundle.directory.path}` on the device."
        )
    text = f"Latency at export: {format_milliseconds(latency.p50_ms)} ms"
    if latency.speedup is not None:
        text += f", {latency.speedup:.2f} times as fast as fp32 ({latency.verdict})"
    return f"{text}, {_latency_conditions(bundle)}."


def variants_section(bundle: BundleRecord, results: Sequence[BenchResult] = ()) -> Section:
    """Build the section with size, parity, accuracy and latency of every variant.

    Variants that are not recommended are listed with their reasons.

    Args:
        bundle: the bundle.
        results: benchmark results; contradictions to the recommendation are listed.
    """
    timed = any(variant.p50_ms is not None for variant in bundle.variants)
    latency_columns = [
        Column("p50 ms", "number"),
        Column("speed-up", "short", "against fp32, with its 95% interval and verdict"),
    ]
    tested = any(variant.test_accuracy is not None for variant in bundle.variants)
    accuracy_columns = [Column("top-1 [95%]", "short")]
    if tested:
        accuracy_columns = [
            Column("validation [95%]", "short", "top-1 on the images that also chose the epoch"),
            Column("test [95%]", "short", "top-1 on images that had no influence on the model"),
        ]
    columns = [
        Column("variant"),
        Column("MB", "number"),
        *accuracy_columns,
        Column("lost", "number", "top-1 accuracy lost against PyTorch, in points"),
        Column("flips", "number", "images with another label than PyTorch"),
        Column("max |Δlogit|", "number", "against PyTorch"),
        *(latency_columns if timed else []),
        Column("method", "short"),
    ]
    rows = [TableRow(_variant_cells(bundle, variant, timed, tested)) for variant in bundle.variants]
    blocks: list[Markup] = [table("Files of the bundle", columns, rows)]
    if timed:
        blocks.append(
            paragraph(
                f"Latencies at export: {_latency_conditions(bundle)}. "
                "Run edgetl bench to measure another device.",
                "note",
            )
        )
    if bundle.manifest.recommended is None:
        badges = [Badge("none recommended", "bad")]
        blocks.append(paragraph("No variant met the limits of the export.", badges=badges))
    reasons = [f"{name} {reason}." for name, reason in bundle.manifest.rejection_reasons.items()]
    reasons += [
        f"{variant.name}: slow operators: {variant.report.slow_because.summary}."
        for variant in bundle.variants
        if variant.report.slow_because is not None and variant.report.slow_because.summary
    ]
    if reasons:
        blocks += [paragraph("Reasons against the other variants:"), bullets(reasons)]
    for result in results:
        for sentence in describe_disagreements(bundle.manifest, result):
            text = f"Measured on {result.device.description}: {sentence}"
            blocks.append(paragraph(text, badges=[Badge("disagreement", "warn")]))
    if not timed:
        text = "Latencies were not measured at export: run edgetl bench on the device."
        blocks.append(paragraph(text, "note"))
    return Section("variants", "Variants", tuple(blocks))


def _npu_sections(bundle: BundleRecord) -> list[Section]:
    """Return the section of the variants for NPUs, if there are any."""
    rows = [
        TableRow((Cell(variant.name), Cell(item.provider), Cell(item.summary), Cell(item.source)))
        for variant in bundle.variants
        if variant.split is not None
        for item in variant.split.coverage
    ]
    if not rows:
        return []
    text = (
        "Network files of static shapes, with preprocessing and postprocessing in files beside "
        "them. The providers' published lists say which operators they take; nothing was run on "
        "an NPU."
    )
    columns = [
        Column("variant"),
        Column("provider"),
        Column("nodes", "short"),
        Column("list", "short"),
    ]
    blocks = (paragraph(text), table("Nodes by provider", columns, rows))
    return [Section("npu", "NPUs", blocks)]


def _variant_cells(
    bundle: BundleRecord, variant: VariantRecord, timed: bool, tested: bool
) -> tuple[Cell, ...]:
    accuracy, latency = variant.accuracy, variant.latency
    recommended = variant.name == bundle.manifest.recommended
    badges = (Badge("recommended", "good"),) if recommended else ()
    top1 = Cell(MISSING_VALUE, tooltip="no labeled validation images")
    drop, flips = Cell(MISSING_VALUE), Cell(MISSING_VALUE)
    if accuracy is not None:
        top1 = _accuracy_cell(accuracy)
        drop, flips = Cell(f"{accuracy.drop:.1f}"), Cell(str(accuracy.flips))
    test = Cell(MISSING_VALUE)
    if variant.test_accuracy is not None:
        test = _accuracy_cell(variant.test_accuracy)
    cells = [
        Cell(variant.name, badges=badges),
        Cell(f"{variant.bytes / 1e6:.1f}"),
        top1,
        *([test] if tested else []),
        drop,
        flips,
        Cell(f"{variant.parity.path.max_abs_diff:.2g}"),
    ]
    if timed:
        reason = None if latency is None else latency.reason
        p50 = Cell(format_milliseconds(variant.p50_ms), tooltip=reason or "")
        cells += [p50, _speedup_cell(variant)]
    precision = "float32" if variant.precision == "fp32" else variant.precision
    return (*cells, Cell(variant.report.method or precision))


def _accuracy_cell(accuracy: AccuracyRecord) -> Cell:
    low, high = accuracy.interval
    interval = f"[{format_percent(low)}, {format_percent(high)}]"
    return Cell(format_percent(accuracy.top1), small=interval)


def _speedup_cell(variant: VariantRecord) -> Cell:
    latency = variant.latency
    if latency is not None and latency.speedup is not None:
        return Cell(
            f"{latency.speedup:.2f}×",
            small=format_interval(*latency.interval, 2) if latency.interval else "",
            badges=(verdict_badge(latency.verdict),) if latency.verdict else (),
        )
    if variant.name == "fp32" and variant.p50_ms is not None:
        return Cell("1", small="baseline")
    return Cell(MISSING_VALUE, tooltip="not timed")


def _summary_section(bundle: BundleRecord) -> Section:
    variant = bundle.manifest.primary_variant
    facts = [
        ("recommended", Cell(bundle.manifest.recommended or "none")),
        ("size", Cell(f"{variant.bytes / 1e6:.1f} MB")),
    ]
    if variant.accuracy is not None:
        name = "accuracy" if variant.test_accuracy is None else "validation accuracy"
        facts.append((name, _accuracy_cell(variant.accuracy)))
    if variant.test_accuracy is not None:
        facts.append(("test accuracy", _accuracy_cell(variant.test_accuracy)))
    if variant.p50_ms is not None:
        p50 = f"{format_milliseconds(variant.p50_ms)} ms"
        facts.append(("p50, one image", Cell(p50, small="on the exporting machine")))
    blocks = []
    if any(status != "as proven" for status in bundle.file_statuses.values()):
        blocks.append(paragraph("", badges=[Badge("not as proven", "bad")]))
    blocks.append(bullets(bundle_sentences(bundle)))
    summary_card = card(bundle.model, facts, blocks)
    return Section("summary", "Summary", (grid("cards", [summary_card]),))


def _accuracy_sentence(variant: VariantRecord) -> str:
    accuracy = variant.accuracy
    if accuracy is None:
        return f"Accuracy of {variant.name}: not measured, there were no labeled validation images."
    low, high = accuracy.interval
    images = pluralize(accuracy.images, f"{accuracy.split} image")
    comparison = "same as PyTorch"
    if accuracy.drop:
        direction = "above" if accuracy.drop < 0 else "below"
        comparison = f"{abs(accuracy.drop):.1f} points {direction} PyTorch"
    return (
        f"Accuracy of {variant.name}: {format_percent(accuracy.top1)} of {images} "
        f"(95% interval {format_percent(low)} to {format_percent(high)}), {comparison}."
    )


def _test_accuracy_sentence(name: str, accuracy: AccuracyRecord) -> str:
    low, high = accuracy.interval
    return (
        f"Test accuracy of {name}: {format_percent(accuracy.top1)} of "
        f"{pluralize(accuracy.images, 'test image')} (95% interval {format_percent(low)} to "
        f"{format_percent(high)}), which had no influence on the model."
    )


def _latency_conditions(bundle: BundleRecord) -> str:
    latency = next(variant.latency for variant in bundle.variants if variant.latency is not None)
    threads = pluralize(latency.threads, "thread")
    return f"p50 of one image, network only, {threads}, on {latency.cpu or 'an unknown CPU'}"


def confidence_section(bundle: BundleRecord) -> Section:
    """Build the section with calibration, unknown images and prediction sets of every variant.

    It has no blocks if the export recorded none of them.
    """
    tables = [_calibration_table(bundle), _unknown_table(bundle), _prediction_sets_table(bundle)]
    blocks = tuple(block for table_blocks in tables for block in table_blocks)
    return Section("confidence", "Confidence", blocks)


def _calibration_table(bundle: BundleRecord) -> list[Markup]:
    columns = [
        Column("variant"),
        Column("temperature", "number"),
        Column("error before [95%]", "short", "expected calibration error, 15 bins"),
        Column("error after [95%]", "short", "by cross-fitting"),
        Column("log loss", "number", "before and after"),
        Column("Brier score", "number", "before and after"),
    ]
    rows = []
    images = 0
    for variant in bundle.variants:
        record = variant.calibration
        if record is None:
            continue
        images = record.images
        before, after = record.before, record.after
        not_applied = (Badge("not applied", "warn"),) if record.temperature == 1 else ()
        cells = (
            Cell(variant.name),
            Cell(f"{record.temperature:.3f}", badges=not_applied),
            _calibration_error_cell(before),
            _calibration_error_cell(after),
            Cell(f"{before.log_loss:.3f} → {after.log_loss:.3f}"),
            Cell(f"{before.brier:.3f} → {after.brier:.3f}"),
        )
        rows.append(TableRow(cells))
    if not rows:
        return []
    note = (
        "The logits are divided by the temperature before the softmax; labels do not change. "
        f"Fitted on {pluralize(images, 'validation image')}; after: each image scored with a "
        "temperature fitted on others. Not applied: it does not help."
    )
    return [table("Calibration of the probabilities", columns, rows), paragraph(note, "note")]


def _calibration_error_cell(figures: CalibrationFigures) -> Cell:
    return Cell(
        f"{figures.calibration_error:.3f}", small=format_interval(*figures.interval, digits=3)
    )


def _unknown_table(bundle: BundleRecord) -> list[Markup]:
    records = {
        variant.name: variant.unknown for variant in bundle.variants if variant.unknown is not None
    }
    if not records:
        return []
    kinds = list(dict.fromkeys(kind for record in records.values() for kind in record.figures))
    columns = [
        Column("variant"),
        Column("score"),
        Column("known accepted", "number", "share of the validation images up to the threshold"),
        *(
            Column(f"{name_unknown_kind(kind)} caught", "short", "share above the threshold")
            for kind in kinds
        ),
    ]
    rows = []
    for name, record in records.items():
        cells = [
            Cell(name),
            Cell(METHOD_NAMES[record.detector.method]),
            Cell(format_percent(record.detector.known_share)),
        ]
        for kind in kinds:
            figures = record.figures.get(kind)
            if figures is None:
                cells.append(Cell(MISSING_VALUE))
            else:
                cells.append(Cell(format_percent(figures.caught), small=format_auroc(figures)))
        rows.append(TableRow(tuple(cells)))
    images = pluralize(next(iter(records.values())).images, "validation image")
    note = (
        f"Images with an unknown_score above {UNKNOWN_THRESHOLD:g} are unknown. The threshold was "
        f"set on {images}; a class left out is near the known ones, generated images are far from them."
    )
    return [table("Unknown images", columns, rows), paragraph(note, "note")]


def _prediction_sets_table(bundle: BundleRecord) -> list[Markup]:
    levels = {
        variant.name: {level.coverage: level.min_probability for level in variant.prediction_sets}
        for variant in bundle.variants
        if variant.prediction_sets
    }
    if not levels:
        return []
    coverages = sorted({coverage for thresholds in levels.values() for coverage in thresholds})
    columns = [
        Column("variant"),
        *(Column(f"{100 * coverage:g}%", "number") for coverage in coverages),
    ]
    rows = []
    for name, thresholds in levels.items():
        cells = [thresholds.get(coverage) for coverage in coverages]
        formatted = (MISSING_VALUE if cell is None else f"{cell:.3g}" for cell in cells)
        rows.append(TableRow((Cell(name), *map(Cell, formatted))))
    note = (
        "The set of an image contains all classes with at least this probability. It contains the "
        "true class of at least the coverage of new images like the validation images."
    )
    title = "Prediction sets: least probability of their classes by coverage"
    return [table(title, columns, rows), paragraph(note, "note")]


def _parity_section(bundle: BundleRecord) -> Section:
    columns = [
        Column("variant"),
        Column("compared on", "short"),
        Column("images", "number"),
        Column("max |Δlogit|", "number"),
        Column("tolerance", "number", "largest difference allowed on a device"),
        Column("same label", "number"),
    ]
    rows = []
    for variant in bundle.variants:
        network, path = variant.parity.network, variant.parity.path
        if network is not None:
            rows.append(_parity_row(variant, "identical tensors", network, None))
        rows.append(_parity_row(variant, "decoded images", path, path.top1_agreement))
    blocks = (table("Outputs against PyTorch", columns, rows),)
    return Section("proof", "Parity", blocks)


def _parity_row(
    variant: VariantRecord, inputs: str, parity: NetworkParity | PathParity, agreement: float | None
) -> TableRow:
    cells = (
        Cell(variant.name),
        Cell(inputs),
        Cell(str(parity.images), small=parity.kind),
        Cell(f"{parity.max_abs_diff:.2g}"),
        Cell(f"{parity.tolerance:.2g}"),
        Cell(format_percent(agreement)),
    )
    return TableRow(cells)


def _preprocessing_section(bundle: BundleRecord) -> Section:
    preprocessing, variant = bundle.preprocessing, bundle.variants[0]
    crop = preprocessing.crop
    input_type = f"float32 [batch, 3, {crop}, {crop}]"
    text = "The caller must do all of this before calling the ONNX model."
    if variant.input == "image":
        input_type = "uint8 [batch, height, width, 3], RGB, images of any size"
        text = "The ONNX model includes all of this except decoding."
    outputs = "logits and probabilities, float32 [batch, classes]"
    if variant.unknown is not None:
        outputs += "; unknown_score, float32 [batch]"
    if variant.parity.activation_maps is not None:
        outputs += "; activation_maps, float32 [batch, classes, h, w]"
    mean, std = _format_channels(preprocessing.mean), _format_channels(preprocessing.std)
    steps = [
        "Decode to RGB, apply the EXIF orientation, and replace transparency by white.",
        f"Resize the shorter side to {preprocessing.resize} pixels, "
        f"antialiased {preprocessing.interpolation}.",
        f"Center-crop to {crop}×{crop}.",
        f"Scale to [0, 1], subtract the mean {mean} and divide by the standard deviation {std}, "
        "per channel.",
    ]
    pairs = [
        ("input", Cell(input_type)),
        ("outputs", Cell(outputs)),
        ("opset", Cell(str(variant.opset))),
    ]
    parameters = [
        (name, Cell(format_value(value))) for name, value in asdict(preprocessing).items()
    ]
    blocks = (
        definition_list(pairs),
        paragraph(text),
        bullets(steps),
        details("Preprocessing parameters", [definition_list(parameters)]),
    )
    return Section("contract", "Input and preprocessing", blocks)


def _format_channels(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _labels_section(bundle: BundleRecord) -> Section:
    count = pluralize(len(bundle.labels), "label")
    labels = paragraph(", ".join(bundle.labels))
    if len(bundle.labels) > _MAX_VISIBLE_LABELS:
        labels = details(f"All {count}", [labels])
    blocks = (paragraph(f"{count}, in the order of the outputs:"), labels)
    return Section("labels", "Labels", blocks)


def _golden_section(bundle: BundleRecord) -> Section:
    golden = bundle.manifest.golden
    count = pluralize(len(golden.images), "image")
    text = (
        f"{count} ({golden.kind}) with the logits of PyTorch, used to check a device before "
        f"it is benchmarked. The tolerance of fp32 is {golden.tolerance:g}; "
        "the tolerances of the other variants are listed under parity."
    )
    images = []
    for record in golden.images:
        uri = photo_uri(bundle.resolve_path(record.file))
        if uri is not None:
            images.append((uri, PurePath(record.file).name))
    blocks = [paragraph(text)]
    if images:
        blocks.append(thumbnails(images))
    omitted = len(golden.images) - len(images)
    if omitted:
        reasons = "too large, missing, or in a format that browsers do not support"
        blocks.append(paragraph(f"{pluralize(omitted, 'image')} not shown: {reasons}.", "note"))
    return Section("golden", "Golden images", tuple(blocks))


def _provenance_section(bundle: BundleRecord) -> Section:
    manifest = bundle.manifest
    pairs = [
        ("architecture", Cell(bundle.model)),
        ("run", Cell(bundle.run_id)),
        ("weights", Cell(manifest.run.weights_text)),
        ("edgetl", Cell(manifest.edgetl)),
        *((name, value_cell(value)) for name, value in manifest.versions.items()),
    ]
    columns = [Column("file"), Column("status", "short"), Column("SHA-256", "mono")]
    statuses = bundle.file_statuses
    rows = []
    for record in manifest.files:
        status = statuses[record.file]
        badge = Badge(status, _STATUS_TONES[status])
        rows.append(TableRow((Cell(record.file), Cell("", badges=(badge,)), Cell(record.sha256))))
    blocks = (definition_list(pairs), table("Files", columns, rows))
    return Section("provenance", "Provenance", blocks)
