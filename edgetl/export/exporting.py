"""`edgetl export`: a trained run or a stock architecture to a proven bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl import __version__
from edgetl.core.config import ExportConfig
from edgetl.core.errors import DataError
from edgetl.core.files import sha256_file
from edgetl.core.layout import BundleDirectory, RunDirectory
from edgetl.core.statistics import macro_f1, wilson_interval
from edgetl.device.bundle import Bundle, Variant, open_bundle
from edgetl.device.images import IMAGE_SUFFIXES
from edgetl.export.card import model_card
from edgetl.export.golden import GOLDEN_COUNT, choose_golden, generated_pictures
from edgetl.export.graph import assemble
from edgetl.export.network_graph import network_graph
from edgetl.export.parity import Parity, ParityProof
from edgetl.export.writing import (
    GoldenImages,
    new_bundle,
    refuse_existing,
    write_client,
    write_golden,
    write_manifest,
    write_model,
)
from edgetl.train.models import RunModel, load_run_model, load_stock_model
from edgetl.train.splits import read_split

Progress = Callable[[str, int, int], None]
"""Told of each step in words, with done and total images; both 0 where nothing is counted."""


@dataclass(frozen=True)
class ProofImages:
    """The images that an export is proven on."""

    files: Sequence[Path]
    labels: Sequence[str] | None
    """True labels, where accuracy may be measured on these images."""
    kind: str
    """`validation`, `training`, `given` or `generated`."""


def export_run(run: RunDirectory, config: ExportConfig, progress: Progress | None = None) -> Bundle:
    """Export a run's best weights, proven on its validation images (its training images where it has no others).

    Raises:
        BundleError: the output is there already.
        ExportError, ParityError: see their modules; nothing is left behind.
        DataError: the run's images are gone.
    """
    output = config.output or run.bundle
    refuse_existing(output, config.force)
    rows = read_split(run)
    validation = [row for row in rows if row.split == "val"]
    chosen = validation or [row for row in rows if row.split == "train"]
    missing = [row.path for row in chosen if not row.path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the run's {len(chosen)} images are gone, the first is {missing[0]}. "
            "Put the data set back where it was, or correct `data` in the run's config.json."
        )
    images = ProofImages(
        [row.path for row in chosen], [row.label for row in chosen] if validation else None, "validation" if validation else "training"
    )
    return _export(load_run_model(run), images, output, config, progress)


def export_architecture(
    architecture: str,
    weights: str,
    config: ExportConfig,
    images: Path | None = None,
    image_size: int | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export a stock ImageNet model, proven on the photos in `images`, or on generated pictures where none are given.

    Raises:
        ArchitectureError, WeightsError: the model cannot be had.
        BundleError, ExportError, ParityError, DataError: as `export_run`.
    """
    output = config.output or Path("bundles") / architecture
    refuse_existing(output, config.force)
    with tempfile.TemporaryDirectory() as folder:
        if images is None:
            proof = ProofImages(generated_pictures(Path(folder), 16), None, "generated")
        else:
            found = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES) if images.is_dir() else [images]
            if not found or not found[0].is_file():
                raise DataError(f"No images in {images}. Give a folder of photos, or leave --images away to use generated pictures.")
            proof = ProofImages(found, None, "given")
        return _export(load_stock_model(architecture, weights, image_size), proof, output, config, progress)


def _export(model: RunModel, images: ProofImages, output: Path, config: ExportConfig, progress: Progress | None) -> Bundle:
    notify = progress or (lambda step, done, total: None)
    notify("Writing the ONNX graph", 0, 0)
    graph = network_graph(model.network, model.preprocessing.crop, len(model.labels), config.opset)
    metadata = {
        "labels": model.labels,
        "preprocessing": model.preprocessing.to_json(),
        "input": config.input,
        "version": __version__,
        "run_id": model.run_id,
        "model": model.architecture,
    }
    assembled = assemble(graph.model, model.preprocessing, config.input, metadata)
    with new_bundle(output, config.force) as directory:
        file = write_model(directory, "fp32", assembled)
        # Proven is what lies on the disk, read back, not what was in memory.
        proof = ParityProof(model.network, graph, onnx.load(file), model.preprocessing, config, images.kind)
        parity = proof.prove(images.files, lambda done, total: notify("Proving it equal to PyTorch", done, total))
        variant = Variant(
            name="fp32",
            file=file.name,
            sha256=sha256_file(file),
            bytes=file.stat().st_size,
            precision="fp32",
            input=config.input,
            opset=config.opset,
            parity=parity.to_json(),
            accuracy=_accuracy(parity, images, model.labels),
        )
        manifest = {
            "edgetl": __version__,
            "run": {"id": model.run_id, "model": model.architecture, "weights": model.weights_source},
            "labels": model.labels,
            "preprocessing": model.preprocessing.to_json(),
            "recommended": "fp32",
            "golden": _golden(directory, proof, images, parity, config),
            "client": write_client(directory),
            "versions": {name: version(name) for name in ("torch", "torchvision", "onnx", "onnxscript")},
        }
        directory.card.write_text(model_card(manifest, variant), encoding="utf-8")
        write_manifest(directory, [variant], manifest)
    return open_bundle(output)


def _golden(directory: BundleDirectory, proof: ParityProof, images: ProofImages, parity: Parity, config: ExportConfig) -> dict[str, Any]:
    """Write the reference images: some of those that the export was proven on, or generated ones, proven here."""
    if config.golden == "validation":
        chosen = choose_golden(images.files, images.labels)
        files = [images.files[index] for index in chosen]
        return write_golden(directory, GoldenImages(files, parity.pytorch_logits[chosen], images.kind, config.path_tolerance))
    with tempfile.TemporaryDirectory() as folder:
        files = generated_pictures(Path(folder), GOLDEN_COUNT)
        return write_golden(directory, GoldenImages(files, proof.prove(files).pytorch_logits, "generated", config.path_tolerance))


def _accuracy(parity: Parity, images: ProofImages, labels: list[str]) -> dict[str, Any]:
    """What this file itself got right; empty where there are no labels to compare with."""
    if images.labels is None:
        return {}
    truth = np.array([labels.index(label) for label in images.labels])
    predicted = parity.onnx_logits.argmax(1)
    confusion: NDArray[np.int64] = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    hits = int((truth == predicted).sum())
    return {
        "split": images.kind,
        "images": len(truth),
        "top1": hits / len(truth),
        "ci95": list(wilson_interval(hits, len(truth))),
        "macro_f1": macro_f1(confusion.tolist()),
        "flips": int((predicted != parity.pytorch_logits.argmax(1)).sum()),
    }
