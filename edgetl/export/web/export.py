"""`edgetl export --web`: a page that runs the model in a browser, and its proof under Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.errors import ExportError, ParityError
from edgetl.core.files import sha256_file, write_json
from edgetl.core.paths import BundleDirectory
from edgetl.device.runtime.bundle import Variant
from edgetl.device.runtime.golden import check_logits
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
"""Copied as they are from edgetl.export.web.page."""
_TIMEOUT_S = 600


def write_web(
    directory: BundleDirectory, manifest: Mapping[str, Any], variant: Variant, runtime: Path
) -> dict[str, Any]:
    """Write the bundle's `web/`, whole in itself, and prove it on the reference images; returns the manifest's `web`.

    Args:
        directory: holds the variant's file and the reference images already.
        manifest: labels, preprocessing, run and golden are read from it.
        variant: what the page runs; its input is `image`.
        runtime: the folder that `edgetl.export.web.runtime.runtime_files` gave.

    Raises:
        ParityError: onnxruntime-web does not give PyTorch's answers with this file.
        ExportError: it does not take the file at all.
    """
    web = directory.web
    web.mkdir()
    for name in STATIC:
        (web / name).write_bytes((files("edgetl.export.web.page") / name).read_bytes())
    for name in SHA256:
        shutil.copyfile(runtime / name, web / name)
    shutil.copyfile(directory.path / variant.file, web / variant.file)
    write_json(web / "model.json", _make_model_json(manifest, variant))
    entries = [
        {"file": f"web/{path.name}", "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(web.iterdir())
    ]
    proof = _prove_page(directory, manifest, variant)
    return {
        "runtime": f"{RUNTIME} {VERSION}",
        "variant": variant.name,
        "proof": proof,
        "files": entries,
    }


def _make_model_json(manifest: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    return {
        "kind": "web",
        "file": variant.file,
        "variant": variant.name,
        "labels": manifest["labels"],
        "side": manifest["preprocessing"]["crop"],
        "accuracy": {name: variant.accuracy[name] for name in ("top1", "ci95", "images", "split")}
        if variant.accuracy
        else None,
        "model": manifest["run"]["model"],
        "run_id": manifest["run"]["id"],
        "runtime": f"{RUNTIME} {VERSION}",
        "edgetl": manifest["edgetl"],
    }


def _prove_page(
    directory: BundleDirectory, manifest: Mapping[str, Any], variant: Variant
) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        return {
            "checked": False,
            "passed": False,
            "reason": "Node.js is not installed where it was exported",
        }
    golden = manifest["golden"]
    answers = _run_in_nodejs(
        node, directory, [directory.path / image["file"] for image in golden["images"]], variant
    )
    with np.load(directory.golden_logits, allow_pickle=False) as arrays:
        verdict = check_logits(
            answers, arrays["logits"], max(golden["tolerance"], variant.tolerance or 0.0)
        )
    if not verdict["passed"]:
        raise ParityError(
            f"{RUNTIME} {VERSION} does not answer as PyTorch does with {variant.file}: {verdict['reason']}, on the reference images. "
            "No bundle was written. Export with other --variants, or without --web."
        )
    return verdict


def _run_in_nodejs(
    node: str, directory: BundleDirectory, images: list[Path], variant: Variant
) -> NDArray[np.float64]:
    """Logits [n, classes] under Node.js, from pixels that are edgetl's own."""
    with tempfile.TemporaryDirectory(prefix="edgetl-web-") as folder:
        questions = []
        for number, path in enumerate(images):
            pixels = load_image(path)
            Path(folder, f"{number}.rgb").write_bytes(pixels.tobytes())
            questions.append(
                {
                    "pixels": str(Path(folder, f"{number}.rgb")),
                    "height": pixels.shape[0],
                    "width": pixels.shape[1],
                }
            )
        asked, script = Path(folder, "questions.json"), Path(folder, "prove.mjs")
        asked.write_text(json.dumps(questions), encoding="utf-8")
        script.write_bytes((files("edgetl.export.web.page") / "prove.mjs").read_bytes())
        command = [node, str(script), str(directory.web.absolute()), str(asked)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
            )
            return np.asarray(json.loads(done.stdout), np.float64)
        except (subprocess.SubprocessError, ValueError) as cause:
            said = (getattr(cause, "stderr", "") or str(cause)).strip().splitlines()
            reason = next(
                (line for line in said if "rror" in line), said[-1] if said else "no answer"
            )
            raise ExportError(
                f"{RUNTIME} {VERSION} cannot run {variant.file}: {reason.strip()} "
                "No bundle was written. Export with other --variants, or without --web."
            ) from cause
