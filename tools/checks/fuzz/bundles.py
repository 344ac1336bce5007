"""Mutated bundles: manifest, golden logits and images, ONNX file, with and without valid hashes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from edgetl.core.files import sha256_file
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.classifier import open_verified_classifier
from tests.helpers.bundles import (
    CONTRACT,
    LABELS,
    colour_logits,
    colour_model,
    write_bundle,
    write_pictures,
)
from tools.checks.fuzz.target import Target, copy_originals, mutate_file, mutate_json_file


def prepare(folder: Path) -> None:
    """Write a bundle with one variant."""
    images = write_pictures(folder / "golden")
    logits = np.stack([colour_logits(np.asarray(Image.open(path))) for path in images])
    write_bundle(folder, {"fp32": colour_model()}, logits, labels=LABELS, contract=CONTRACT)


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Mutate one file. In 70% of the cases update its hash, so that the content is read."""
    copy_originals(originals, case)
    manifest = case / "bundle.json"
    others = sorted(path for path in case.rglob("*") if path.is_file() and path != manifest)
    path = generator.choice([manifest, manifest, *others])
    if path == manifest:
        mutate_json_file(path, generator)
        return
    mutate_file(path, generator)
    if generator.random() < 0.7:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        golden = content["golden"]
        for entry in (*content["variants"], *golden["images"], golden["logits"]):
            if case / entry["file"] == path:
                entry["sha256"] = sha256_file(path)
        manifest.write_text(json.dumps(content), encoding="utf-8")


def use(case: Path) -> None:
    """Open the bundle, verify its golden images and classify an image."""
    open_bundle(case).companion_files()
    classifier = open_verified_classifier(case, threads=1)
    classifier.classify(np.zeros((40, 50, 3), np.uint8))


TARGET = Target(prepare, make_case, use)
