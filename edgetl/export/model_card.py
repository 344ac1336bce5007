"""The bundle's README.md: description, accuracy and usage of the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from string import Template
from typing import Any

from edgetl.device.runtime.bundle import Variant

CARD = Template("""# $model: $classes classes

Exported by edgetl $version (run `$run_id`, weights from $weights).

**Classes:** $labels

**Accuracy:** $accuracy

**Proof:** on $proof_images $proof_kind images the logits differ from PyTorch's by at most
$network_diff on identical tensors, and by at most $path_diff from decoded photo to logits, with the
same label on every image.

**Input** `$input`: $input_format.
**Outputs:** `logits` and `probabilities`, float32 `[batch, classes]`.

**Preprocessing**$where: `$preprocessing`

## Use

    pip install numpy pillow onnxruntime
    python predict.py photo.jpg

or, with `pip install "edgetl[cpu]"`: `edgetl predict BUNDLE photo.jpg` and `edgetl bench BUNDLE`.
$cpp$web
## Files

| file | bytes | SHA-256 |
| --- | --- | --- |
$files
$variants$fixed
`golden/` contains golden images ($golden) with PyTorch's logits. On a device with other logits the
model does not run correctly; check with `edgetl verify`.
""")

_WEB = Template("""
In a browser, with variant $variant and $runtime on the device itself:

    python3 -m http.server -d web      # or any other web server

In Node.js: `cd web && npm install sharp && node predict.mjs photo.jpg`.
""")

_CPP = Template("""
In C++, with ONNX Runtime and OpenCV: `./predict $file photo.jpg`. The build commands are at the top
of `predict.cpp`.
""")


def model_card(manifest: dict[str, Any], variants: Sequence[Variant]) -> str:
    """Return Markdown for the bundle described by `manifest`; the first variant must be fp32."""
    variant = variants[0]
    labels = manifest["labels"]
    crop = manifest["preprocessing"]["crop"]
    has_image_input = variant.input == "image"
    label_text = ", ".join(labels[:20])
    if len(labels) > 20:
        label_text += f" and {len(labels) - 20} more"
    input_format = f"float32 `[batch, 3, {crop}, {crop}]`, preprocessed as below"
    cpp = ""
    if has_image_input:
        input_format = "a photo as uint8 `[batch, height, width, 3]` RGB, of any size"
        cpp = _CPP.substitute(file=f"{manifest['recommended'] or 'fp32'}.onnx")
    compared = [item for item in variants if item.size is None]
    return CARD.substitute(
        model=manifest["run"]["model"],
        classes=len(labels),
        version=manifest["edgetl"],
        run_id=manifest["run"]["id"],
        weights=manifest["run"]["weights"],
        labels=label_text,
        accuracy=_accuracy_text(variant.accuracy),
        proof_images=variant.parity["network"]["images"],
        proof_kind=variant.parity["network"]["kind"],
        network_diff=f"{variant.parity['network']['max_abs_diff']:.2g}",
        path_diff=f"{variant.parity['path']['max_abs_diff']:.2g}",
        input="image" if has_image_input else "pixels",
        input_format=input_format,
        where=" (inside the ONNX file)" if has_image_input else "",
        preprocessing=json.dumps(manifest["preprocessing"]),
        cpp=cpp,
        files="\n".join(_file_rows(variants)),
        web=_WEB.substitute(manifest["web"]) if "web" in manifest else "",
        variants=_variants_table(manifest, compared) if len(compared) > 1 else "",
        fixed="".join(map(_fixed_size_text, variants)),
        golden=manifest["golden"]["kind"],
    )


def _accuracy_text(accuracy: dict[str, Any]) -> str:
    if not accuracy:
        return "not measured; there were no labeled validation images."
    low, high = accuracy["ci95"]
    return (
        f"{accuracy['top1']:.1%} top-1 (95% interval {low:.1%} to {high:.1%}), "
        f"macro-F1 {accuracy['macro_f1']:.3f}, measured with this ONNX file on "
        f"{accuracy['images']} {accuracy['split']} images; "
        f"{accuracy['flips']} labels differ from PyTorch's."
    )


def _fixed_size_text(variant: Variant) -> str:
    if variant.size is None:
        return ""
    height, width = variant.size
    return (
        f"\n`{variant.file}` is the float32 model for photos of {width} x {height} pixels only: "
        "its shapes are constant and it has no control flow, for TensorRT and CUDA graphs.\n"
    )


def _file_rows(variants: Sequence[Variant]) -> Iterator[str]:
    for variant in variants:
        entries = [
            {"file": variant.file, "bytes": variant.bytes, "sha256": variant.sha256},
            variant.report.get("ort"),
        ]
        for entry in entries:
            if entry:
                yield f"| {entry['file']} | {entry['bytes']} | `{entry['sha256']}` |"


def _variants_table(manifest: dict[str, Any], variants: Sequence[Variant]) -> str:
    lines = [
        "",
        "## Variants",
        "",
        f"Recommended: **{manifest['recommended'] or 'none: no variant met the limits'}**. "
        "Latencies are p50 of one image, network only, "
        f"{variants[0].latency.get('threads')} threads, on {variants[0].latency.get('cpu')}. "
        "Measure them on the target device with `edgetl bench`.",
        "",
        "| variant | MB | p50 ms | speed-up | top-1 | macro-F1 | labels changed "
        "| mean / max logit difference | method |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant in variants:
        latency, accuracy, path = variant.latency, variant.accuracy, variant.parity["path"]
        low, high = latency.get("ci95", (0, 0))
        cells = [
            variant.name,
            f"{variant.bytes / 1e6:.2f}",
            f"{latency['p50_ms']:.2f}" if latency.get("p50_ms") else "",
            f"{latency['speedup']:.2f} ({low:.2f} to {high:.2f})" if "speedup" in latency else "",
            f"{accuracy['top1']:.1%}" if accuracy else "",
            f"{accuracy['macro_f1']:.3f}" if accuracy else "",
            str(accuracy["flips"]) if accuracy else "",
            f"{path['mean_abs_diff']:.2g} / {path['max_abs_diff']:.2g}"
            if "mean_abs_diff" in path
            else f"{path['max_abs_diff']:.2g}",
            variant.report.get("chosen", "float32"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for name, reason in manifest.get("not_recommended", {}).items():
        lines.append(f"- {name} {reason}.")
    for variant in variants:
        operators = variant.report.get("slow_because", {}).get("to_blame")
        if operators:
            lines.append(f"- {variant.name} spends its time in {operators}.")
    lines.append("")
    return "\n".join(lines)
