"""Web page that runs the model in a browser, with its proof in Node.js (`edgetl export --web`)."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np

from edgetl.core.artifacts.bundle import BundleManifest, FileRecord, VariantRecord, WebRecord
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ExportError, ParityError
from edgetl.core.files import sha256_file, write_json
from edgetl.core.paths import BundleDirectory
from edgetl.core.typed_json import JsonObject, to_json
from edgetl.device.runtime.bundle import Bundle
from edgetl.device.runtime.golden import GoldenOutputs
from edgetl.device.runtime.images import load_image
from edgetl.export.web.runtime import RUNTIME, SHA256, VERSION

STATIC = (
    "index.html",
    "page.css",
    "page.js",
    "worker.js",
    "predict.mjs",
    "onnxruntime-LICENSE.txt",
)
"""Files copied unchanged from edgetl.export.web.page."""
_TIMEOUT_S = 600


def write_web(
    directory: BundleDirectory, manifest: BundleManifest, variant: VariantRecord, runtime: Path
) -> WebRecord:
    """Write the self-contained folder `web/` of a bundle and prove it on the golden images.

    Args:
        directory: must contain the variant's file and the golden images.
        manifest: the bundle's manifest.
        variant: run by the page; its input must be `image`.
        runtime: folder returned by `edgetl.export.web.runtime.ensure_runtime_files`.

    Raises:
        ParityError: onnxruntime-web's logits do not match PyTorch's, or its other outputs their
            references.
        ExportError: onnxruntime-web cannot run the file.
    """
    web = directory.web
    web.mkdir()
    for name in STATIC:
        (web / name).write_bytes((files("edgetl.export.web.page") / name).read_bytes())
    for name in SHA256:
        shutil.copyfile(runtime / name, web / name)
    shutil.copyfile(directory.path / variant.file, web / variant.file)
    write_json(web / "model.json", _make_model_json(manifest, variant))
    records = tuple(
        FileRecord(f"web/{path.name}", sha256_file(path), path.stat().st_size)
        for path in sorted(web.iterdir())
    )
    proof = _prove_page(directory, manifest, variant)
    return WebRecord(f"{RUNTIME} {VERSION}", variant.name, proof, records)


def _make_model_json(manifest: BundleManifest, variant: VariantRecord) -> JsonObject:
    accuracy: JsonObject | None = None
    if variant.accuracy is not None:
        content = to_json(variant.accuracy)
        accuracy = {key: content[key] for key in ("top1", "ci95", "images", "split")}
    return {
        "kind": "web",
        "file": variant.file,
        "variant": variant.name,
        "labels": manifest.labels,
        "side": manifest.preprocessing.crop,
        "accuracy": accuracy,
        "model": manifest.run.model,
        "run_id": manifest.run.id,
        "runtime": f"{RUNTIME} {VERSION}",
        "edgetl": manifest.edgetl,
    }


def _prove_page(
    directory: BundleDirectory, manifest: BundleManifest, variant: VariantRecord
) -> GateResult:
    node = shutil.which("node")
    if node is None:
        return GateResult.failure("Node.js was not installed on the exporting machine")
    golden = Bundle(directory, manifest).load_golden()
    outputs = _run_in_nodejs(node, directory, golden.files, variant)
    verdict = golden.check(variant, "cpu", outputs)
    if not verdict.passed:
        raise ParityError(
            f"{RUNTIME} {VERSION} with {variant.file} does not match PyTorch on the golden images: "
            f"{verdict.reason}. No bundle was written. Export other {{variants}} or without {{web}}.",
            ExportConfig,
        )
    return verdict


def _run_in_nodejs(
    node: str, directory: BundleDirectory, images: list[Path], variant: VariantRecord
) -> GoldenOutputs:
    """Run the page's model in Node.js on images decoded by edgetl."""
    with tempfile.TemporaryDirectory(prefix="edgetl-web-") as folder:
        entries = []
        for number, path in enumerate(images):
            pixels = load_image(path)
            pixel_file = Path(folder, f"{number}.rgb")
            pixel_file.write_bytes(pixels.tobytes())
            height, width = pixels.shape[:2]
            entries.append({"pixels": str(pixel_file), "height": height, "width": width})
        image_list = Path(folder, "images.json")
        image_list.write_text(json.dumps(entries), encoding="utf-8")
        script = Path(folder, "prove.mjs")
        script.write_bytes((files("edgetl.export.web.page") / "prove.mjs").read_bytes())
        command = [node, str(script), str(directory.web.absolute()), str(image_list)]
        try:
            process = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
            )
            outputs = json.loads(process.stdout)
            return GoldenOutputs.from_numbers(
                outputs["logits"],
                outputs["probabilities"],
                np.ravel(outputs.get("unknown_score", ())),
            )
        except (subprocess.SubprocessError, ValueError) as cause:
            lines = (getattr(cause, "stderr", "") or str(cause)).strip().splitlines()
            last_line = lines[-1] if lines else "no output"
            reason = next((line for line in lines if "rror" in line), last_line)
            raise ExportError(
                f"{RUNTIME} {VERSION} cannot run {variant.file}: {reason.strip()} "
                "No bundle was written. Export other {variants} or without {web}.",
                ExportConfig,
            ) from cause
