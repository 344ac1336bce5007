"""The page of one bundle: what it answers, which file to take, and what was proven of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import PurePath

from markupsafe import Markup

from edgetl.core.artifacts.bundle import BundleManifest, FileStatus, VariantRecord
from edgetl.core.formatting import MISSING_VALUE, format_milliseconds, format_percent, pluralize
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
"""Labels that are shown at once."""
_STATUS_TONES: dict[FileStatus, Tone] = {"as proven": "good", "altered": "bad", "missing": "bad"}


def render_bundle_report(bundle: BundleManifest) -> str:
    """One self-contained HTML page; the same bundle gives the same page.

    Raises:
        BundleError: the manifest names a file outside the bundle, or a file cannot be read.
    """
    sections = [
        _summary_section(bundle),
        variants_section(bundle),
        _parity_section(bundle),
        _preprocessing_section(bundle),
        _labels_section(bundle),
        _golden_section(bundle),
        _provenance_section(bundle),
    ]
    lead = f"A bundle that edgetl {bundle.edgetl} exported from run {bundle.run_id}, weights from {bundle.weights}."
    return render_page(bundle_title(bundle), lead, sections)


def bundle_title(bundle: BundleManifest) -> str:
    """What is in the bundle."""
    return f"Bundle of {bundle.model}, {pluralize(len(bundle.labels), 'class', 'classes')}"


def bundle_sentences(bundle: BundleManifest) -> list[str]:
    """Which file to take, its accuracy, its proof and its latency; and which files are not what was proven.

    Raises:
        BundleError: see `BundleCard.states`.
    """
    best = bundle.primary_variant
    size = f"{best.file}, {best.bytes / 1e6:.1f} MB"
    found = [
        f"Recommended: {best.name} ({size}), of {pluralize(len(bundle.variants), 'variant')}."
        if bundle.recommended
        else "Recommended: none, no variant met the limits that the bundle was exported with."
    ]
    found += [
        _accuracy_sentence(variant)
        for variant in ([best] if bundle.recommended else bundle.variants)
    ]
    if best.path is not None:
        told = f"max |Δlogit| {best.path.difference:.2g} on {pluralize(best.path.images, f'{best.path.kind} image')}"
        agree = (
            ""
            if best.path.agreement is None
            else f", PyTorch's label on {format_percent(best.path.agreement)}"
        )
        found.append(f"Against PyTorch: {told}{agree}.")
    latency = best.latency
    if latency.p50_ms is not None:
        pair = (
            ""
            if latency.speedup is None
            else f", {latency.speedup:.2f} times as fast as fp32 ({latency.verdict})"
        )
        found.append(
            f"Latency where it was exported: {format_milliseconds(latency.p50_ms)} ms{pair}, {_latency_conditions(bundle)}."
        )
    else:
        found.append(
            f"Latency: not timed at export; `edgetl bench {bundle.directory.path}` measures it on this device."
        )
    wrong = [
        f"{file} is {state}" for file, state in bundle.file_statuses.items() if state != "as proven"
    ]
    return [
        *found,
        *(
            [f"Not as it was proven: {join_words(wrong)}. Copy or export the bundle again."]
            if wrong
            else []
        ),
    ]


def variants_section(bundle: BundleManifest) -> Section:
    """Size, proof, accuracy and latency of every file; which is recommended, and why the others are not."""
    timed = any(variant.latency.p50_ms is not None for variant in bundle.variants)
    columns = [
        Column("variant"), Column("MB", "number"), Column("top-1 [95%]", "short"),
        Column("lost", "number", "points of top-1 against PyTorch"),
        Column("flips", "number", "images labelled otherwise than by PyTorch"), Column("max |Δlogit|", "number", "against PyTorch"),
        *([Column("p50 ms", "number"), Column("speed-up", "short", "against fp32, with its 95% interval and verdict")] if timed else []),
        Column("made of", "short"),
    ]  # fmt: skip
    rows = [TableRow(_variant_cells(bundle, variant, timed)) for variant in bundle.variants]
    blocks: list[Markup] = [table("Files of the bundle", columns, rows)]
    if timed:
        blocks.append(
            paragraph(
                f"Latencies where it was exported: {_latency_conditions(bundle)}. Another device has its own: run edgetl bench there.",
                "note",
            )
        )
    if bundle.recommended is None:
        blocks.append(
            paragraph(
                "No variant met the limits that the bundle was exported with.",
                badges=[Badge("none recommended", "bad")],
            )
        )
    reasons = [f"{name} {reason}." for name, reason in bundle.against.items()]
    reasons += [
        f"{variant.name}: its time goes to {variant.slow_because}."
        for variant in bundle.variants
        if variant.slow_because
    ]
    if reasons:
        blocks += [paragraph("Why the others are not recommended:"), bullets(reasons)]
    if not timed:
        blocks.append(
            paragraph(
                "Latencies were not measured at export: run edgetl bench on the device.", "note"
            )
        )
    return Section("variants", "Variants", tuple(blocks))


def _variant_cells(bundle: BundleManifest, variant: VariantRecord, timed: bool) -> tuple[Cell, ...]:
    accuracy, latency = variant.accuracy, variant.latency
    top1 = Cell(MISSING_VALUE, tooltip="no labelled validation images")
    if accuracy is not None:
        low, high = accuracy.interval
        top1 = Cell(
            format_percent(accuracy.top1), small=f"[{format_percent(low)}, {format_percent(high)}]"
        )
    cells = [
        Cell(
            variant.name,
            badges=(Badge("recommended", "good"),) if variant.name == bundle.recommended else (),
        ),
        Cell(f"{variant.bytes / 1e6:.1f}"),
        top1,
        Cell(MISSING_VALUE if accuracy is None else f"{accuracy.drop:.1f}"),
        Cell(MISSING_VALUE if accuracy is None else str(accuracy.flips)),
        Cell(MISSING_VALUE if variant.path is None else f"{variant.path.difference:.2g}"),
    ]
    if timed:
        cells += [
            Cell(format_milliseconds(latency.p50_ms), tooltip=latency.reason or ""),
            _speedup_cell(variant),
        ]
    return (
        *cells,
        Cell(variant.made_of or ("float32" if variant.precision == "fp32" else variant.precision)),
    )


def _speedup_cell(variant: VariantRecord) -> Cell:
    latency = variant.latency
    if latency.speedup is None:
        return (
            Cell("1", small="baseline")
            if variant.name == "fp32" and latency.p50_ms is not None
            else Cell(MISSING_VALUE, tooltip="not timed")
        )
    badges = (verdict_badge(latency.verdict),) if latency.verdict else ()
    return Cell(
        f"{latency.speedup:.2f}×",
        small=format_interval(*latency.interval, 2) if latency.interval else "",
        badges=badges,
    )


def _summary_section(bundle: BundleManifest) -> Section:
    best = bundle.primary_variant
    keys = [
        ("recommended", Cell(bundle.recommended or "none")),
        ("size", Cell(f"{best.bytes / 1e6:.1f} MB")),
    ]
    if best.accuracy is not None:
        low, high = best.accuracy.interval
        keys.append(
            (
                "accuracy",
                Cell(
                    format_percent(best.accuracy.top1),
                    small=f"[{format_percent(low)}, {format_percent(high)}]",
                ),
            )
        )
    if best.latency.p50_ms is not None:
        keys.append(
            (
                "p50, one image",
                Cell(
                    f"{format_milliseconds(best.latency.p50_ms)} ms", small="where it was exported"
                ),
            )
        )
    sound = all(state == "as proven" for state in bundle.file_statuses.values())
    doubt = [] if sound else [paragraph("", badges=[Badge("not as proven", "bad")])]
    words = bullets(bundle_sentences(bundle))
    return Section(
        "summary", "Summary", (grid("cards", [card(bundle.model, keys, [*doubt, words])]),)
    )


def _accuracy_sentence(variant: VariantRecord) -> str:
    accuracy = variant.accuracy
    if accuracy is None:
        return (
            f"Accuracy of {variant.name}: not measured, there were no labelled validation images."
        )
    low, high = accuracy.interval
    told = f"{format_percent(accuracy.top1)} of {pluralize(accuracy.images, f'{accuracy.split} image')}"
    drop = (
        f"{abs(accuracy.drop):.1f} points {'more' if accuracy.drop < 0 else 'less'} than PyTorch"
        if accuracy.drop
        else "as PyTorch"
    )
    return f"Accuracy of {variant.name}: {told} (95% interval {format_percent(low)} to {format_percent(high)}), {drop}."


def _latency_conditions(bundle: BundleManifest) -> str:
    latency = next(
        (variant.latency for variant in bundle.variants if variant.latency.threads is not None),
        bundle.variants[0].latency,
    )
    threads = "" if latency.threads is None else f", {pluralize(latency.threads, 'thread')}"
    return f"p50 of one image, network alone{threads}, on {latency.cpu or 'a CPU that does not tell its name'}"


def _parity_section(bundle: BundleManifest) -> Section:
    columns = [
        Column("variant"), Column("compared on", "short"), Column("images", "number"), Column("max |Δlogit|", "number"),
        Column("at most", "number", "what a device may show as well"), Column("same label", "number"),
    ]  # fmt: skip
    rows = [
        TableRow(
            (
                Cell(variant.name),
                Cell(on),
                Cell(str(proof.images), small=proof.kind),
                Cell(f"{proof.difference:.2g}"),
                Cell(MISSING_VALUE if proof.tolerance is None else f"{proof.tolerance:.2g}"),
                Cell(MISSING_VALUE if proof.agreement is None else format_percent(proof.agreement)),
            )
        )
        for variant in bundle.variants
        for on, proof in (("identical tensors", variant.network), ("decoded photos", variant.path))
        if proof is not None
    ]
    return Section(
        "proof", "Proof", (table("Answers against PyTorch's", columns, rows),) if rows else ()
    )


def _preprocessing_section(bundle: BundleManifest) -> Section:
    contract, first = bundle.preprocessing, bundle.variants[0]
    inside = first.input == "image"
    taken = (
        "uint8 [batch, height, width, 3], RGB, photos of any size"
        if inside
        else f"float32 [batch, 3, {contract.crop}, {contract.crop}]"
    )
    steps = [
        "Decode to RGB, upright by EXIF, on a white ground where there is transparency.",
        f"Resize the shorter side to {contract.resize} pixels, antialiased {contract.interpolation}.",
        f"Cut out the centre, {contract.crop}×{contract.crop}.",
        f"Scale to [0, 1]; subtract {_format_channels(contract.mean)}, divide by {_format_channels(contract.std)}, by channel.",
    ]
    where = (
        "The ONNX file does all of this but the decoding."
        if inside
        else "The caller does all of this before the ONNX file."
    )
    pairs = [
        ("input", Cell(taken)),
        ("outputs", Cell("logits and probabilities, float32 [batch, classes]")),
        ("opset", Cell(str(first.opset))),
    ]
    every = [(name, Cell(format_value(value))) for name, value in asdict(contract).items()]
    blocks = (
        definition_list(pairs),
        paragraph(where),
        bullets(steps),
        details("The contract as it stands in the file", [definition_list(every)]),
    )
    return Section("contract", "Input and preprocessing", blocks)


def _format_channels(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _labels_section(bundle: BundleManifest) -> Section:
    shown = paragraph(", ".join(bundle.labels))
    count = pluralize(len(bundle.labels), "label")
    blocks = (
        (shown,)
        if len(bundle.labels) <= _MAX_VISIBLE_LABELS
        else (details(f"All {count}", [shown]),)
    )
    return Section(
        "labels", "Labels", (paragraph(f"{count}, in the order of the outputs:"), *blocks)
    )


def _golden_section(bundle: BundleManifest) -> Section:
    text = (
        f"{pluralize(len(bundle.golden_files), 'image')} ({bundle.golden_kind}) with PyTorch's logits, which a device is checked with before it "
        f"is measured: fp32 may be {bundle.golden_tolerance:g} off, a smaller variant as far as its proof says."
    )
    photos = [
        (uri, PurePath(file).name)
        for file in bundle.golden_files
        if (uri := photo_uri(bundle.resolve_path(file))) is not None
    ]
    left_out = len(bundle.golden_files) - len(photos)
    blocks = [paragraph(text)]
    blocks += [thumbnails(photos)] if photos else []
    if left_out:
        blocks.append(
            paragraph(
                f"{pluralize(left_out, 'image')} not shown here: large, missing, or in a format that browsers do not show.",
                "note",
            )
        )
    return Section("golden", "Golden images", tuple(blocks))


def _provenance_section(bundle: BundleManifest) -> Section:
    pairs = [
        ("architecture", Cell(bundle.model)),
        ("run", Cell(bundle.run_id)),
        ("weights", Cell(bundle.weights)),
        ("edgetl", Cell(bundle.edgetl)),
        *((name, value_cell(value)) for name, value in bundle.versions.items()),
    ]
    columns = [Column("file"), Column("now", "short"), Column("SHA-256", "mono")]
    rows = [
        TableRow(
            (
                Cell(file),
                Cell(
                    "",
                    badges=(
                        Badge(
                            bundle.file_statuses[file], _STATUS_TONES[bundle.file_statuses[file]]
                        ),
                    ),
                ),
                Cell(sha256),
            )
        )
        for file, sha256 in bundle.file_hashes.items()
    ]
    return Section(
        "provenance", "Provenance", (definition_list(pairs), table("Files", columns, rows))
    )
