"""Mutated bundles: manifest, golden logits and images, ONNX file, with and without valid hashes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from edgetl.core.errors import EdgetlError
from edgetl.core.files import sha256_file
from edgetl.device.predict import predict
from edgetl.device.runtime.bundle import open_bundle
from tests.helpers.bundles import (
    CONTRACT,
    LABELS,
    colour_logits,
    colour_model,
    write_bundle,
    write_pictures,
)
from tests.helpers.confidence import add_confidence
from tools.checks.fuzz.mutation import mutate_json
from tools.checks.fuzz.target import Target, copy_originals, mutate_file, mutate_json_file


def prepare(folder: Path) -> None:
    """Write a bundle with one variant, all its outputs and metadata, and a photo."""
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / "photo.png")
    images = write_pictures(folder / "golden")
    logits = np.stack([colour_logits(np.asarray(Image.open(path))) for path in images])
    write_bundle(folder, {"fp32": colour_model()}, logits, labels=LABELS, contract=CONTRACT)
    add_confidence(folder, threshold=float(logits.max(1).mean()), temperature=1.5)


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Mutate one file. In 70% of the cases update its hash, so that the content is read.

    Half of the mutated ONNX files have other metadata instead of other bytes.
    """
    copy_originals(originals, case)
    manifest = case / "bundle.json"
    others = sorted(path for path in case.rglob("*") if path.is_file() and path != manifest)
    path = generator.choice([manifest, manifest, *others])
    if path == manifest:
        mutate_json_file(path, generator)
        return
    if path.suffix == ".onnx" and generator.random() < 0.5:
        _mutate_metadata(path, generator)
    else:
        mutate_file(path, generator)
    if generator.random() < 0.7:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        golden = content["golden"]
        for entry in (*content["variants"], *golden["images"], golden["logits"]):
            if case / entry["file"] == path:
                entry["sha256"] = sha256_file(path)
        manifest.write_text(json.dumps(content), encoding="utf-8")


def _mutate_metadata(path: Path, generator: random.Random) -> None:
    """Mutate the structure of one value of the metadata."""
    model = onnx.load(path)
    entry = generator.choice(model.metadata_props)
    entry.value = json.dumps(mutate_json(json.loads(entry.value), generator))
    path.write_bytes(model.SerializeToString())


def use(case: Path) -> None:
    """Open the bundle, verify its golden images and classify an image, with and without bundle."""
    errors = []
    for model in (case, case / "fp32.onnx"):
        try:
            list(predict(model, case / "photo.png", threads=1, coverage=0.95))
        except EdgetlError as error:
            errors.append(error)
    open_bundle(case).companion_files()
    if errors:
        raise errors[0]


TARGET = Target(prepare, make_case, use)
