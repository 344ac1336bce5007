"""`edgetl export`: a trained run or a stock architecture to a proven bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from edgetl import __version__
from edgetl.core.config.export import ExportConfig, name_fixed_size_variant
from edgetl.core.errors import DataError
from edgetl.core.paths import BundleDirectory, RunDirectory
from edgetl.device.bench.protocol import QUICK_PROTOCOL
from edgetl.device.hardware.memory import keep_freed_memory
from edgetl.device.runtime.bundle import Bundle, Variant, open_bundle
from edgetl.device.runtime.images import list_images
from edgetl.export.bundle_writer import (
    GoldenImages,
    new_bundle,
    read_back,
    refuse_existing,
    write_clients,
    write_golden,
    write_manifest,
    write_model,
)
from edgetl.export.golden import GOLDEN_COUNT, choose_golden, generate_images
from edgetl.export.graph.assemble import assemble
from edgetl.export.graph.torch_export import NetworkGraph, export_network_graph
from edgetl.export.latency import measure_variant_latencies
from edgetl.export.model_card import model_card
from edgetl.export.parity.metrics import EvaluationImages, Logits, compute_accuracy
from edgetl.export.parity.proof import Parity, ParityProof
from edgetl.export.quantize.images import (
    QuantizationImages,
    check_image_count,
    load_quantization_images,
)
from edgetl.export.quantize.task import QuantizationTask
from edgetl.export.selection import choose
from edgetl.export.variants import BuiltVariant, VariantBuilder, draw_flips, make_variant
from edgetl.export.web.export import write_web
from edgetl.export.web.runtime import ensure_runtime_files
from edgetl.train.data.splits import read_split
from edgetl.train.model.factory import LoadedModel, load_run_model, load_stock_model
from edgetl.train.model.final_model import check_accuracy

ExportProgress = Callable[[str, int, int], None]
"""Told of each step in words, with done and total images; both 0 where nothing is counted."""


@dataclass(frozen=True)
class _ExportInputs:
    evaluation_images: EvaluationImages
    calibration_files: Sequence[Path]
    calibration_labels: Sequence[str] | None
    calibration_kind: str
    plots: Path | None = None
    check_accuracy: Callable[[float, int], None] | None = None
    """Given PyTorch's accuracy on the proof images and their number; raises where the run's own figures are others."""


def export_run(
    run: RunDirectory, config: ExportConfig, progress: ExportProgress | None = None
) -> Bundle:
    """Export a run's best weights, proven on its validation images (its training images where it has no others).

    Raises:
        BundleError: the output is there already.
        ExportError, ParityError: see their modules, or the accuracy is not the run's; nothing is left behind.
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
    images = EvaluationImages(
        [row.path for row in chosen],
        [row.label for row in chosen] if validation else None,
        "validation" if validation else "training",
    )
    training = [row for row in rows if row.split == "train" and row.path.is_file()]
    sources = _ExportInputs(
        images,
        [row.path for row in training],
        [row.label for row in training],
        "training",
        run.plots,
        partial(check_accuracy, run),
    )
    return _export(load_run_model(run), sources, output, config, progress)


def export_architecture(
    architecture: str,
    weights: str,
    config: ExportConfig,
    images: Path | None = None,
    image_size: int | None = None,
    progress: ExportProgress | None = None,
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
            proof = EvaluationImages(generate_images(Path(folder), 16), None, "generated")
        else:
            found = list_images(images) if images.is_dir() else [images]
            if not found or not found[0].is_file():
                raise DataError(
                    f"No images in {images}. Give a folder of photos, or leave --images away to use generated pictures."
                )
            proof = EvaluationImages(found, None, "given")
        given = proof.files if proof.kind == "given" else []
        return _export(
            load_stock_model(architecture, weights, image_size),
            _ExportInputs(proof, given, None, "--images"),
            output,
            config,
            progress,
        )


def _export(
    model: LoadedModel,
    sources: _ExportInputs,
    output: Path,
    config: ExportConfig,
    progress: ExportProgress | None,
) -> Bundle:
    notify = progress or (lambda step, done, total: None)
    # The proof runs PyTorch hundreds of times, and a third of that would be page faults; see docs/decisions/003.
    keep_freed_memory()
    if {"int8", "fp16"} & set(config.variants):
        check_image_count(len(sources.calibration_files), sources.calibration_kind)
    # Before anything is computed: what it may lack is told at once.
    runtime = ensure_runtime_files() if config.web else None
    notify("Writing the ONNX graph", 0, 0)
    graph = export_network_graph(
        model.model, model.preprocessing.crop, len(model.labels), config.opset
    )
    with new_bundle(output, config.force) as directory:
        metadata = {
            "labels": model.labels,
            "preprocessing": model.preprocessing.to_json(),
            "input": config.input,
            "version": __version__,
            "run_id": model.run_id,
            "model": model.architecture,
        }
        file = write_model(
            directory, "fp32", assemble(graph.model, model.preprocessing, config.input, metadata)
        )
        # Proven is what lies on the disk, read back, not what was in memory.
        proof = ParityProof(
            model.model,
            graph,
            read_back(file),
            model.preprocessing,
            config,
            sources.evaluation_images.kind,
        )
        parity = proof.prove(
            sources.evaluation_images.files,
            lambda done, total: notify("Proving it equal to PyTorch", done, total),
        )
        reference = compute_accuracy(
            parity.pytorch_logits, parity.pytorch_logits, sources.evaluation_images, model.labels
        )
        if reference and sources.check_accuracy is not None:
            sources.check_accuracy(reference["top1"], reference["images"])
        workshop = VariantBuilder(
            directory,
            config,
            model.preprocessing,
            model.labels,
            metadata,
            sources.evaluation_images,
            parity.pytorch_logits,
        )
        variants = [workshop.describe("fp32", file, "fp32", parity.to_json(), parity.onnx_logits)]
        proofs = [ProvenVariant("fp32", proof, parity)]
        if config.fixed_size is not None:
            notify("Writing the graph of fixed size", 0, 0)
            fixed = _prove_fixed_size(directory, model, graph, sources, config, metadata, notify)
            proofs.append(fixed)
        golden = _create_golden_images(
            directory, model.labels, proofs, sources.evaluation_images, config
        )
        manifest: dict[str, Any] = {
            "edgetl": __version__,
            "run": {
                "id": model.run_id,
                "model": model.architecture,
                "weights": model.weights_source,
            },
            "labels": model.labels,
            "preprocessing": model.preprocessing.to_json(),
            "recommended": "fp32",
            "golden": golden,
            **write_clients(directory),
            "versions": {
                name: version(name) for name in ("torch", "torchvision", "onnx", "onnxscript")
            },
        }
        task = QuantizationTask(
            onnx.shape_inference.infer_shapes(graph.model),
            graph.module_outputs,
            partial(_load_quantization_images, sources, model),
            config.max_accuracy_drop,
            notify,
            quick=config.search == "quick",
        )
        made = [
            make_variant(name, task, workshop)
            for name in dict.fromkeys(config.variants)
            if name != "fp32"
        ]
        if made or config.max_latency_ms is not None:
            variants = _add_latencies(
                [*variants, *(one.variant for one in made)], made, task, directory, manifest
            )
            choice = choose(variants, config)
            manifest |= {"recommended": choice.name, "not_recommended": choice.rejection_reasons}
        if config.fixed_size is not None:
            # After the choice: a file that takes images of one size only is never the recommended one.
            name = name_fixed_size_variant(config.fixed_size)
            at_size = replace(workshop, reference_logits=fixed.parity.pytorch_logits)
            described = at_size.describe(
                name,
                directory.variant(name),
                "fp32",
                fixed.parity.to_json(),
                fixed.parity.onnx_logits,
            )
            variants = [*variants, replace(described, size=config.fixed_size)]
        if runtime is not None:
            notify("Proving the page", 0, 0)
            # WebAssembly has no instructions for int8: what is fastest on this CPU is slower there. Size is size everywhere.
            smallest = next(
                (one for one in variants if one.name == manifest["recommended"]), variants[0]
            )
            shown = smallest if config.optimise == "size" else variants[0]
            manifest["web"] = write_web(directory, manifest, shown, runtime)
        directory.model_card.write_text(model_card(manifest, variants), encoding="utf-8")
        write_manifest(directory, variants, manifest)
    if sources.plots is not None:
        for one in made:
            try:
                draw_flips(
                    sources.plots / f"flips_{one.variant.name}.png",
                    one.variant.name,
                    one.flips,
                    len(sources.evaluation_images.files),
                )
            except OSError as cause:  # the bundle is complete without the picture
                notify(f"The sheet of changed labels could not be written: {cause}", 0, 0)
    return open_bundle(output)


def _add_latencies(
    variants: list[Variant],
    made: Sequence[BuiltVariant],
    task: QuantizationTask,
    directory: BundleDirectory,
    manifest: dict[str, Any],
) -> list[Variant]:
    """The variants with their latencies, and with the operators to blame where one is not faster."""
    # The benchmark takes whole bundles; this one is moved to its place, and its manifest written anew, when all is done.
    write_manifest(directory, variants, manifest)
    found = measure_variant_latencies(
        directory.path, task.notify, QUICK_PROTOCOL if task.quick else None
    )
    timed = [replace(variant, latency=found[variant.name]) for variant in variants]
    by_name = {one.variant.name: one for one in made}
    return [
        replace(by_name[variant.name], variant=variant).with_profile()
        if variant.name in by_name
        else variant
        for variant in timed
    ]


def _load_quantization_images(sources: _ExportInputs, model: LoadedModel) -> QuantizationImages:
    labels = sources.calibration_labels
    numbers = None if labels is None else [model.labels.index(label) for label in labels]
    return load_quantization_images(
        sources.calibration_files, numbers, model.preprocessing, sources.calibration_kind
    )


@dataclass(frozen=True)
class ProvenVariant:
    """A file's proof that held."""

    name: str
    """Of the variant."""
    proof: ParityProof
    parity: Parity


def _prove_fixed_size(
    directory: BundleDirectory,
    model: LoadedModel,
    graph: NetworkGraph,
    sources: _ExportInputs,
    config: ExportConfig,
    metadata: dict[str, Any],
    notify: ExportProgress,
) -> ProvenVariant:
    """Write the variant for images of one size and prove it on the proof images resized to that size."""
    assert config.fixed_size is not None
    name = name_fixed_size_variant(config.fixed_size)
    assembled = assemble(
        graph.model, model.preprocessing, config.input, metadata, config.fixed_size
    )
    file = write_model(directory, name, assembled)
    proof = ParityProof(
        model.model,
        graph,
        read_back(file),
        model.preprocessing,
        config,
        sources.evaluation_images.kind,
        config.fixed_size,
    )
    shown = f"Proving {name} equal to PyTorch"
    parity = proof.prove(
        sources.evaluation_images.files, lambda done, total: notify(shown, done, total)
    )
    return ProvenVariant(name, proof, parity)


def _create_golden_images(
    directory: BundleDirectory,
    labels: Sequence[str],
    proofs: Sequence[ProvenVariant],
    images: EvaluationImages,
    config: ExportConfig,
) -> dict[str, Any]:
    """Write the reference images: some of those that the export was proven on, or generated ones, proven here."""
    if config.golden == "validation":
        chosen = choose_golden(images.files, images.labels)
        files = [images.files[index] for index in chosen]
        return _write_golden(
            directory,
            labels,
            files,
            images.kind,
            proofs,
            [one.parity.pytorch_logits[chosen] for one in proofs],
        )
    with tempfile.TemporaryDirectory() as folder:
        files = generate_images(Path(folder), GOLDEN_COUNT)
        logits = [one.proof.prove(files).pytorch_logits for one in proofs]
        return _write_golden(directory, labels, files, "generated", proofs, logits)


def _write_golden(
    directory: BundleDirectory,
    labels: Sequence[str],
    files: Sequence[Path],
    kind: str,
    proofs: Sequence[ProvenVariant],
    logits: Sequence[Logits],
) -> dict[str, Any]:
    # The first is fp32's, whose tolerance is the bundle's; the others' stand with their variants.
    fixed = {one.name: values for one, values in zip(proofs[1:], logits[1:], strict=True)}
    return write_golden(
        directory,
        GoldenImages(files, labels, logits[0], kind, proofs[0].parity.end_to_end.tolerance, fixed),
    )
