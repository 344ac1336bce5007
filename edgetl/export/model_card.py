"""The bundle's README.md: what the model is, how well it does, how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from string import Template
from typing import Any

from edgetl.device.runtime.bundle import Variant

CARD = Template("""# $model: $classes classes

Made by edgetl $version (run `$run_id`, weights from $weights).

**Classes:** $labels

**Accuracy:** $accuracy

**Proof:** on $proof_images $proof_kind images the network gives PyTorch's logits to $network_diff on identical tensors, and to $path_diff
from decoded photo to logits, with the same label on every image.

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
`golden/` holds reference images ($golden) with PyTorch's logits. A device that answers otherwise does not run this model rightly.
""")

_WEB = Template("""
In a browser, which runs $variant by $runtime on the device itself:

    python3 -m http.server -d web      # or any other web server, with this folder

and under Node.js: `cd web && npm install sharp && node predict.mjs photo.jpg`.
""")

_CPP = Template("""
In C++, with ONNX Runtime and OpenCV: `./predict $file photo.jpg`; the head of `predict.cpp` has the lines that build it.
""")


def model_card(manifest: dict[str, Any], variants: Sequence[Variant]) -> str:
    """Markdown for the bundle described by `manifest`; the first variant is fp32."""
    variant = variants[0]
    labels, crop = manifest["labels"], manifest["preprocessing"]["crop"]
    inside = variant.input == "image"
    compared = [one for one in variants if one.size is None]
    return CARD.substitute(
        model=manifest["run"]["model"],
        classes=len(labels),
        version=manifest["edgetl"],
        run_id=manifest["run"]["id"],
        weights=manifest["run"]["weights"],
        labels=", ".join(labels[:20])
        + (f" and {len(labels) - 20} more" if len(labels) > 20 else ""),
        accuracy=_accuracy_text(variant.accuracy),
        proof_images=variant.parity["network"]["images"],
        proof_kind=variant.parity["network"]["kind"],
        network_diff=f"{variant.parity['network']['max_abs_diff']:.2g}",
        path_diff=f"{variant.parity['path']['max_abs_diff']:.2g}",
        input="image" if inside else "pixels",
        input_format=(
            "a photo as uint8 `[batch, height, width, 3]` RGB, of any size"
            if inside
            else f"float32 `[batch, 3, {crop}, {crop}]`, preprocessed as below"
        ),
        where=" (inside the ONNX file)" if inside else "",
        preprocessing=json.dumps(manifest["preprocessing"]),
        cpp=_CPP.substitute(file=f"{manifest['recommended'] or 'fp32'}.onnx") if inside else "",
        files="\n".join(_file_rows(variants)),
        web=_WEB.substitute(manifest["web"]) if "web" in manifest else "",
        variants=_variants_table(manifest, compared) if len(compared) > 1 else "",
        fixed="".join(map(_fixed_size_text, variants)),
        golden=manifest["golden"]["kind"],
    )


def _accuracy_text(accuracy: dict[str, Any]) -> str:
    if not accuracy:
        return "not measured: there were no labelled validation images."
    low, high = accuracy["ci95"]
    return (
        f"{accuracy['top1']:.1%} top-1 (95% interval {low:.1%} to {high:.1%}), macro-F1 {accuracy['macro_f1']:.3f}, measured with "
        f"this ONNX file on {accuracy['images']} {accuracy['split']} images; {accuracy['flips']} labels differ from PyTorch's."
    )


def _fixed_size_text(variant: Variant) -> str:
    if variant.size is None:
        return ""
    height, width = variant.size
    return (
        f"\n`{variant.file}` answers as the float32 file does and takes photos of {width} x {height} pixels only: its shapes are "
        "constant and it has no control flow, for TensorRT and CUDA graphs.\n"
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
        f"Recommended: **{manifest['recommended'] or 'none: no variant met the limits'}**. Latencies are p50 of one image, network only, "
        f"{variants[0].latency.get('threads')} threads, on {variants[0].latency.get('cpu')}; a device has its own: `edgetl bench`.",
        "",
        "| variant | MB | p50 ms | speed-up | top-1 | macro-F1 | labels changed | mean / max difference of logits | made of |",
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
    lines += [
        "",
        *(f"- {name} {reason}." for name, reason in manifest.get("not_recommended", {}).items()),
    ]
    blamed = {
        variant.name: variant.report.get("slow_because", {}).get("to_blame") for variant in variants
    }
    lines += [
        *(
            f"- {name}: its time goes to {operators}."
            for name, operators in blamed.items()
            if operators
        ),
        "",
    ]
    return "\n".join(lines)
