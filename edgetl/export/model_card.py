"""The bundle's README.md: description, accuracy and usage of the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from string import Template

from edgetl.core.artifacts.bundle import (
    AccuracyRecord,
    BundleManifest,
    LatencyRecord,
    VariantRecord,
)
from edgetl.core.artifacts.confidence import UNKNOWN_THRESHOLD
from edgetl.core.artifacts.confidence_summary import describe_confidence

CARD = Template("""# $model: $classes classes

Exported by edgetl $version (run `$run_id`, weights: $weights).

**Classes:** $labels

**Accuracy:** $accuracy
$test
**Proof:** on $proof_images $proof_kind images the logits differ from PyTorch's by at most
$network_diff on identical tensors, and by at most $path_diff from decoded photo to logits, with the
same label on every image.$fused

**Input** `$input`: $input_format.
**Outputs:** `logits` and `probabilities`, float32 `[batch, classes]`$unknown$maps.

**Preprocessing**$where: `$preprocessing`

## Use

    pip install numpy pillow onnxruntime
    python predict.py photo.jpg

or, with `pip install "edgetl[cpu]"`: `edgetl predict BUNDLE photo.jpg` and `edgetl bench BUNDLE`.
$cpp$web$confidence
## Files

| file | bytes | SHA-256 |
| --- | --- | --- |
$files
$variants$fixed$npu
`golden/` contains golden images ($golden) with PyTorch's logits. On a device with other logits the
model does not run correctly; check with `edgetl verify`.
""")

_ACTIVATION_MAPS = (
    ", and `activation_maps`, float32\n`[batch, classes, h, w]`: the logits of each location alone"
)
_UNKNOWN = f""", and `unknown_score`, float32
`[batch]`: above {UNKNOWN_THRESHOLD:g} the image is of no known class"""

_FUSED = " The parallel branches that PyTorch's model\nwas trained with are fused into single layers here."

_WEB = Template("""
In a browser, with variant $variant and $runtime on the device itself:

    python3 -m http.server -d web      # or any other web server

In Node.js: `cd web && npm install sharp && node predict.mjs photo.jpg`.
""")

_CPP = Template("""
In C++, with ONNX Runtime and OpenCV: `./predict $file photo.jpg`. The build commands are at the top
of `predict.cpp`.
""")


def model_card(manifest: BundleManifest) -> str:
    """Return Markdown for the bundle described by `manifest`."""
    variants = manifest.variants
    variant = variants[0]
    labels = manifest.labels
    crop = manifest.preprocessing.crop
    has_image_input = variant.input == "image"
    label_text = ", ".join(labels[:20])
    if len(labels) > 20:
        label_text += f" and {len(labels) - 20} more"
    input_format = f"float32 `[batch, 3, {crop}, {crop}]`, preprocessed as below"
    cpp = ""
    if has_image_input:
        input_format = "a photo as uint8 `[batch, height, width, 3]` RGB, of any size"
        cpp = _CPP.substitute(file=f"{manifest.recommended or 'fp32'}.onnx")
    compared = [item for item in variants if item.size is None]
    network, path = variant.parity.network, variant.parity.path
    assert network is not None, "the first variant is float32"
    return CARD.substitute(
        model=manifest.run.model,
        classes=len(labels),
        version=manifest.edgetl,
        run_id=manifest.run.id,
        weights=manifest.run.weights_text,
        labels=label_text,
        accuracy=_accuracy_text(variant.accuracy),
        test=_test_accuracy_text(variant.test_accuracy),
        unknown="" if variant.unknown is None else _UNKNOWN,
        maps="" if variant.parity.activation_maps is None else _ACTIVATION_MAPS,
        confidence=_confidence_text(compared),
        proof_images=network.images,
        proof_kind=network.kind,
        network_diff=f"{network.max_abs_diff:.2g}",
        path_diff=f"{path.max_abs_diff:.2g}",
        fused=_FUSED if manifest.fused_branches else "",
        input="image" if has_image_input else "pixels",
        input_format=input_format,
        where=" (inside the ONNX file)" if has_image_input else "",
        preprocessing=json.dumps(manifest.preprocessing.to_json()),
        cpp=cpp,
        files="\n".join(_file_rows(variants)),
        web="" if manifest.web is None else _WEB.substitute(vars(manifest.web)),
        variants=_variants_table(manifest, compared) if len(compared) > 1 else "",
        fixed="".join(map(_fixed_size_text, variants)),
        npu="".join(_split_text(variants)),
        golden=manifest.golden.kind,
    )


def _accuracy_text(accuracy: AccuracyRecord | None) -> str:
    if accuracy is None:
        return "not measured; there were no labeled validation images."
    low, high = accuracy.interval
    return (
        f"{accuracy.top1:.1%} top-1 (95% interval {low:.1%} to {high:.1%}), "
        f"macro-F1 {accuracy.macro_f1:.3f}, measured with this ONNX file on "
        f"{accuracy.images} {accuracy.split} images; "
        f"{accuracy.flips} labels differ from PyTorch's."
    )


def _test_accuracy_text(accuracy: AccuracyRecord | None) -> str:
    if accuracy is None:
        return ""
    low, high = accuracy.interval
    return (
        f"\n**Test accuracy:** {accuracy.top1:.1%} top-1 (95% interval {low:.1%} to {high:.1%}), "
        f"macro-F1 {accuracy.macro_f1:.3f}, on {accuracy.images} test images, which had no "
        "influence on the model.\n"
    )


def _confidence_text(variants: Sequence[VariantRecord]) -> str:
    lines = [
        f"- {variant.name}: {sentence}"
        for variant in variants
        for sentence in describe_confidence(variant)
    ]
    introduction = "Brackets are 95% intervals. Unknown images are of no known class."
    return "\n".join(["", "## Confidence", "", introduction, "", *lines, ""]) if lines else ""


def _fixed_size_text(variant: VariantRecord) -> str:
    if variant.size is None:
        return ""
    height, width = variant.size
    return (
        f"\n`{variant.file}` is the float32 model for photos of {width} x {height} pixels only: "
        "its shapes are constant and it has no control flow, for TensorRT and CUDA graphs.\n"
    )


def _split_text(variants: Sequence[VariantRecord]) -> Iterator[str]:
    split_variants = [(item, item.split) for item in variants if item.split is not None]
    if split_variants:
        yield (
            "\n## For NPUs\n\nThese networks have static shapes for one image and no control flow. "
            "Run\n`NAME.preprocessing.onnx` before them and `NAME.postprocessing.onnx` after them "
            "on the CPU, as\n`edgetl predict BUNDLE --variant NAME --provider PROVIDER` does. By "
            "the providers' published lists\nof operators; nothing was run on an NPU:\n\n"
        )
    for variant, split in split_variants:
        for line in split.coverage_lines:
            yield f"- `{variant.file}`, {line}.\n"


def _file_rows(variants: Sequence[VariantRecord]) -> Iterator[str]:
    for variant in variants:
        for record in variant.files:
            yield f"| {record.file} | {record.bytes} | `{record.sha256}` |"


def _variants_table(manifest: BundleManifest, variants: Sequence[VariantRecord]) -> str:
    baseline = variants[0].latency
    measured = ""
    if baseline is not None:
        measured = (
            "Latencies are p50 of one image, network only, "
            f"{baseline.threads} threads, on {baseline.cpu}. "
        )
    tested = any(variant.test_accuracy is not None for variant in variants)
    accuracy_columns = "validation top-1 | test top-1" if tested else "top-1"
    columns = (
        f"variant | MB | p50 ms | speed-up | {accuracy_columns} | macro-F1 | labels changed | "
        "mean / max logit difference | method"
    )
    lines = [
        "",
        "## Variants",
        "",
        f"Recommended: **{manifest.recommended or 'none: no variant met the limits'}**. {measured}"
        "Measure them on the target device with `edgetl bench`.",
        "",
        f"| {columns} |",
        f"|{' --- |' * (columns.count('|') + 1)}",
    ]
    lines += [f"| {' | '.join(_variant_cells(variant, tested))} |" for variant in variants]
    lines.append("")
    for name, reason in manifest.rejection_reasons.items():
        lines.append(f"- {name} {reason}.")
    for variant in variants:
        slow_because = variant.report.slow_because
        if slow_because is not None and slow_because.summary:
            lines.append(f"- {variant.name} spends its time in {slow_because.summary}.")
    lines.append("")
    return "\n".join(lines)


def _variant_cells(variant: VariantRecord, tested: bool) -> Iterator[str]:
    yield variant.name
    yield f"{variant.bytes / 1e6:.2f}"
    yield "" if variant.p50_ms is None else f"{variant.p50_ms:.2f}"
    yield _speedup_text(variant.latency)
    accuracy, test = variant.accuracy, variant.test_accuracy
    yield "" if accuracy is None else f"{accuracy.top1:.1%}"
    if tested:
        yield "" if test is None else f"{test.top1:.1%}"
    yield "" if accuracy is None else f"{accuracy.macro_f1:.3f}"
    yield "" if accuracy is None else str(accuracy.flips)
    path = variant.parity.path
    mean = "" if path.mean_abs_diff is None else f"{path.mean_abs_diff:.2g} / "
    yield f"{mean}{path.max_abs_diff:.2g}"
    yield variant.report.method or "float32"


def _speedup_text(latency: LatencyRecord | None) -> str:
    if latency is None or latency.speedup is None or latency.interval is None:
        return ""
    low, high = latency.interval
    return f"{latency.speedup:.2f} ({low:.2f} to {high:.2f})"
