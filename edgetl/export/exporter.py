"""Export of a trained run or a stock architecture to a proven bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import onnx

from edgetl import __version__
from edgetl.core.architectures import file_stem
from edgetl.core.artifacts.bundle import (
    BundleManifest,
    GoldenRecord,
    ImageSource,
    RunReference,
    VariantRecord,
    WebRecord,
    write_bundle_manifest,
)
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.artifacts.run_metrics import HeldOutMetrics, RunMetrics, read_trained_run
from edgetl.core.artifacts.split import SplitEntry, read_split
from edgetl.core.config.export import ExportConfig, name_fixed_size_variant
from edgetl.core.errors import DataError, ExportError
from edgetl.core.paths import BundleDirectory, RunDirectory, StrPath
from edgetl.core.progress import LOGGER, ProgressCallback, log_progress
from edgetl.core.registry import check_installed
from edgetl.device.bench.protocol import QUICK_PROTOCOL
from edgetl.device.hardware.memory import keep_freed_memory
from edgetl.device.runtime.bundle import Bundle
from edgetl.device.runtime.images import list_images
from edgetl.export.accuracy import AccuracyTest
from edgetl.export.bundle_writer import (
    GoldenImages,
    new_bundle,
    read_back,
    record_unknown_scores,
    write_client,
    write_golden,
    write_model,
)
from edgetl.export.confidence.confidence import Confidence
from edgetl.export.confidence.estimator import ConfidenceEstimator, LabeledFiles
from edgetl.export.formats.conversion import convert_to_formats
from edgetl.export.formats.task import ConversionTask, OnnxNetwork
from edgetl.export.golden import GOLDEN_COUNT, choose_golden, generate_images
from edgetl.export.graph.activation_maps import add_activation_maps
from edgetl.export.graph.assemble import assemble
from edgetl.export.graph.torch_export import NetworkGraph, export_network_graph
from edgetl.export.latency import measure_variant_latencies
from edgetl.export.model_card import model_card
from edgetl.export.npu.split import SplitWriter
from edgetl.export.parity.activation_maps import ActivationMapProof
from edgetl.export.parity.metrics import EvaluationImages, Logits, compute_accuracy
from edgetl.export.parity.proof import Parity, ParityProof
from edgetl.export.quantize.images import (
    QuantizationImages,
    check_image_count,
    load_quantization_images,
)
from edgetl.export.quantize.task import QuantizationTask
from edgetl.export.variant_selection import accuracy_drop, choose
from edgetl.export.variants import BuiltVariant, VariantBuilder, draw_flips, make_variant
from edgetl.export.web.export import write_web
from edgetl.export.web.runtime import ensure_runtime_files
from edgetl.train.model.factory import LoadedModel, load_run_model, load_stock_model
from edgetl.train.model.reparameterization import fuse_branches, has_branches


@dataclass(frozen=True)
class _ExportInputs:
    evaluation_images: EvaluationImages
    calibration_files: Sequence[Path]
    calibration_labels: Sequence[str] | None
    calibration_kind: str
    plots: Path | None = None
    metrics: RunMetrics | None = None
    test_images: EvaluationImages | None = None


def export_run(
    run: StrPath, config: ExportConfig | None = None, progress: ProgressCallback | None = None
) -> Bundle:
    """Export a run's best weights and prove them on its validation images.

    Training images are used if the run has no validation images.

    Args:
        run: the run directory.
        config: options of the export; None uses the defaults.
        progress: called with (step, images done, images in total); the counts are 0 for steps
            without any.

    Returns:
        The bundle, in `config.output` or the run's folder `bundle`.

    Raises:
        RunError: `run` is not a run directory, or training ended before the first epoch.
        BundleError: the output already exists.
        ExportError: the model cannot be exported, or its accuracy does not match the run's metrics.
        ParityError: the exported file does not match PyTorch. No files are left behind.
        DataError: images of the run are missing.
    """
    run, config = RunDirectory.open(run), config or ExportConfig()
    trained = read_trained_run(run)
    rows = read_split(run, trained.configuration)
    validation = [row for row in rows if row.split == "val"]
    proof_rows = validation or [row for row in rows if row.split == "train"]
    missing = [row.path for row in proof_rows if not row.path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the run's {len(proof_rows)} images not found, the first is {missing[0]}. "
            "Restore the data set at its old path, or correct `data` in the run's config.json."
        )
    images = EvaluationImages(
        [row.path for row in proof_rows],
        [row.label for row in proof_rows] if validation else None,
        "validation" if validation else "training",
    )
    training = [row for row in rows if row.split == "train" and row.path.is_file()]
    sources = _ExportInputs(
        images,
        [row.path for row in training],
        [row.label for row in training],
        "training",
        run.plots,
        trained.metrics,
        _select_test_images(rows),
    )
    output = config.output or run.bundle
    with new_bundle(output, config.force) as directory:
        manifest = _export(directory, load_run_model(trained), sources, config, progress)
    return Bundle(BundleDirectory(output), manifest)


def export_architecture(
    architecture: str,
    weights: str = "imagenet",
    config: ExportConfig | None = None,
    images: StrPath | None = None,
    image_size: int | None = None,
    progress: ProgressCallback | None = None,
) -> Bundle:
    """Export a stock ImageNet model and prove it on photos.

    Args:
        architecture: a torchvision classification architecture.
        weights: `imagenet` (downloaded by torchvision), a .safetensors or weights-only .pth file
            with 1000 classes, or a folder of <architecture>.safetensors.
        config: options of the export; None uses the defaults.
        images: photo, or folder of photos, for the proof, golden images and calibration; None
            generates images.
        image_size: side of the square input, pixels; None uses the architecture's own.
        progress: see `export_run`.

    Returns:
        The bundle, in `config.output` or bundles/<architecture>.

    Raises:
        ArchitectureError: the architecture is unknown or cannot be built.
        WeightsError: the weights cannot be loaded.
        BundleError: see `export_run`.
        ExportError: see `export_run`.
        ParityError: see `export_run`.
        DataError: there are no images in `images`.
    """
    config = config or ExportConfig()
    output = config.output or Path("bundles") / file_stem(architecture)
    with tempfile.TemporaryDirectory() as folder:
        if images is None:
            proof = EvaluationImages(generate_images(Path(folder), 16), None, "generated")
        else:
            path = Path(images)
            files = list_images(path) if path.is_dir() else [path]
            if not files or not files[0].is_file():
                raise DataError(
                    f"No images in {path}. Give a folder of photos, or omit --images to use generated images."
                )
            proof = EvaluationImages(files, None, "given")
        calibration_files = proof.files if proof.kind == "given" else []
        sources = _ExportInputs(proof, calibration_files, None, "--images")
        with new_bundle(output, config.force) as directory:
            model = load_stock_model(architecture, weights, image_size)
            manifest = _export(directory, model, sources, config, progress)
    return Bundle(BundleDirectory(output), manifest)


def _select_test_images(rows: Sequence[SplitEntry]) -> EvaluationImages | None:
    """Return the test images of a run; None, with a warning, if files are missing."""
    test = [row for row in rows if row.split == "test"]
    missing = [row.path for row in test if not row.path.is_file()]
    if missing:
        LOGGER.warning(
            "The accuracy on test images is left out: %d of %d not found, the first is %s.",
            len(missing),
            len(test),
            missing[0],
        )
    if missing or not test:
        return None
    return EvaluationImages([row.path for row in test], [row.label for row in test], "test")


def _export(
    directory: BundleDirectory,
    model: LoadedModel,
    sources: _ExportInputs,
    config: ExportConfig,
    progress: ProgressCallback | None,
) -> BundleManifest:
    notify = progress or log_progress
    # The proof runs PyTorch hundreds of times, and page faults would take a third of that time;
    # see docs/decisions/003.
    keep_freed_memory()
    if config.split or {"int8", "fp16"} & set(config.variants):
        check_image_count(len(sources.calibration_files), sources.calibration_kind)
    for name in config.formats:
        check_installed(name)
    # Fetch the runtime first, so that a missing npm is reported before anything is computed.
    runtime = ensure_runtime_files() if config.web else None
    notify("Writing the ONNX graph", 0, 0)
    # Parity compares the file with the model as trained, so it covers the fusion.
    graph = export_network_graph(
        fuse_branches(model.model), model.preprocessing.crop, len(model.labels), config.opset
    )
    export = _BundleExport(directory, model, graph, sources, config, notify)
    manifest, built = export.write(runtime)
    if sources.plots is not None:
        _draw_label_flips(built, sources.plots, len(sources.evaluation_images.files))
    return manifest


@dataclass(frozen=True)
class ProvenVariant:
    """A file with its successful proof."""

    name: str
    """Name of the variant."""
    proof: ParityProof
    parity: Parity


@dataclass(frozen=True)
class _BundleExport:
    """One export: writes the files of a bundle and proves them."""

    directory: BundleDirectory
    model: LoadedModel
    graph: NetworkGraph
    sources: _ExportInputs
    config: ExportConfig
    notify: ProgressCallback

    @cached_property
    def _metadata(self) -> ModelMetadata:
        """Metadata written into each ONNX file."""
        return ModelMetadata(
            labels=tuple(self.model.labels),
            preprocessing=self.model.preprocessing,
            input=self.config.input,
            run_id=self.model.run_id,
            version=__version__,
            model=self.model.architecture,
            activation_maps=self.config.explain,
        )

    @cached_property
    def _map_proof(self) -> ActivationMapProof | None:
        if not self.config.explain:
            return None
        images = self.sources.evaluation_images
        return ActivationMapProof(
            self.model.model,
            self.model.preprocessing,
            images.files,
            images.kind,
            self.config.network_tolerance,
        )

    def write(self, runtime: Path | None) -> tuple[BundleManifest, list[BuiltVariant]]:
        """Write and prove the bundle; return its manifest and its smaller variants.

        Args:
            runtime: folder with the files of onnxruntime-web, or None to leave out the web page.
        """
        model, config = self.model, self.config
        confidence = self._estimator.estimate(self.graph.model)
        fp32 = self._write_and_prove("fp32", None, confidence)
        metrics, images = self.sources.metrics, self.sources.evaluation_images
        if metrics is not None:
            self._check_accuracy(metrics.val, fp32.parity.pytorch_logits, images)
        test = self._make_accuracy_test()
        if metrics is not None and test is not None:
            self._check_accuracy(metrics.test, test.pytorch_logits(), test.images)
        builder = VariantBuilder(
            self.directory,
            config,
            model.preprocessing,
            model.labels,
            self._metadata,
            images,
            fp32.parity.pytorch_logits,
            self._estimator,
            confidence,
            test,
            self._map_proof,
        )
        proofs = [fp32]
        if config.fixed_size is not None:
            self.notify("Writing the graph of fixed size", 0, 0)
            name = name_fixed_size_variant(config.fixed_size)
            proofs.append(self._write_and_prove(name, config.fixed_size, confidence))
        fp32_variant = _describe_proven(fp32, builder)
        manifest = self._make_manifest(fp32_variant, self._create_golden_images(proofs))
        task = QuantizationTask(
            onnx.shape_inference.infer_shapes(self.graph.model),
            self.graph.module_outputs,
            partial(_load_quantization_images, self.sources, model),
            config.max_accuracy_drop,
            self.notify,
            config.search,
        )
        built = [
            make_variant(name, task, builder)
            for name in dict.fromkeys(config.variants)
            if name != "fp32"
        ]
        converted, failures = self._convert(builder, built, task)
        runtimes = dict.fromkeys(variant.runtime for variant in converted)
        manifest = replace(
            manifest,
            failed_formats=failures,
            max_accuracy_drop=config.max_accuracy_drop,
            runtime_clients=tuple(
                write_client(self.directory.runtime_client(runtime)) for runtime in runtimes
            ),
        )
        if built or converted or config.max_latency_ms is not None:
            variants = (fp32_variant, *(item.variant for item in built), *converted)
            manifest = replace(manifest, variants=variants)
            manifest = self._recommend_variant(
                _add_latencies(manifest, built, task, self.directory)
            )
        # Added after the choice: a file with a fixed image size is never recommended.
        for fixed in proofs[1:]:
            variant = _describe_proven(fixed, builder, config.fixed_size)
            manifest = replace(manifest, variants=(*manifest.variants, variant))
        if config.split:
            manifest = self._add_split_variants(manifest, builder, task)
        manifest = record_unknown_scores(self.directory, manifest)
        if runtime is not None:
            manifest = replace(manifest, web=self._write_web_page(manifest, runtime))
        self.directory.model_card.write_text(model_card(manifest), encoding="utf-8")
        write_bundle_manifest(self.directory, manifest)
        return manifest, built

    def _convert(
        self, builder: VariantBuilder, built: Sequence[BuiltVariant], task: QuantizationTask
    ) -> tuple[list[VariantRecord], dict[str, str]]:
        """Convert the network for other runtimes; return proven variants and the failures."""
        if not self.config.formats:
            return [], {}

        def assemble_quantized(network: onnx.ModelProto) -> OnnxNetwork:
            confidence = self._estimator.estimate(network, builder.fp32_confidence)
            return self._as_onnx_network(network, confidence)

        int8_networks = [
            self._as_onnx_network(item.quantized_model.network, item.confidence)
            for item in built
            if item.variant.name == "int8"
        ]
        conversion_task = ConversionTask(
            module=self.model.model,
            float32=self._as_onnx_network(self.graph.model, builder.fp32_confidence),
            int8=int8_networks[0] if int8_networks else None,
            wants_int8="int8" in self.config.variants,
            assemble=assemble_quantized,
            crop=self.model.preprocessing.crop,
            load_images=lambda: task.images,
            max_accuracy_drop=self.config.max_accuracy_drop,
            folder=self.directory.path,
            notify=self.notify,
        )
        return convert_to_formats(self.config.formats, conversion_task, builder)

    def _as_onnx_network(self, network: onnx.ModelProto, confidence: Confidence) -> OnnxNetwork:
        model = assemble(
            network, self.model.preprocessing, "tensor", self._metadata, confidence=confidence
        )
        return OnnxNetwork(network, model, confidence)

    def _add_split_variants(
        self, manifest: BundleManifest, builder: VariantBuilder, task: QuantizationTask
    ) -> BundleManifest:
        """Add the variants for NPUs, which are never recommended: the choice is for CPUs."""
        variants = tuple(SplitWriter(builder, task).write())
        limit = self.config.max_accuracy_drop
        reasons = {
            variant.name: f"loses {drop:.1f} points of accuracy, the limit is {limit:g}"
            for variant in variants
            if (drop := accuracy_drop(variant)) > limit
        }
        return replace(
            manifest,
            variants=(*manifest.variants, *variants),
            rejection_reasons={**manifest.rejection_reasons, **reasons},
        )

    def _recommend_variant(self, manifest: BundleManifest) -> BundleManifest:
        choice = choose(manifest.variants, self.config)
        return replace(
            manifest, recommended=choice.name, rejection_reasons=choice.rejection_reasons
        )

    @cached_property
    def _estimator(self) -> ConfidenceEstimator:
        # Labels are there only if the images are validation images.
        images = self.sources.evaluation_images
        return ConfidenceEstimator(
            self._label_files(images.files, images.labels),
            self._label_files(self.sources.calibration_files, self.sources.calibration_labels),
            self.model.preprocessing,
            self.config,
            self.notify,
        )

    def _label_files(self, files: Sequence[Path], labels: Sequence[str] | None) -> LabeledFiles:
        if labels is None:
            return LabeledFiles((), ())
        return LabeledFiles(files, [self.model.labels.index(label) for label in labels])

    def _write_and_prove(
        self, name: str, size: tuple[int, int] | None, confidence: Confidence
    ) -> ProvenVariant:
        """Write a float32 variant and prove it; `size` (height, width) fixes its image size."""
        model, config, images = self.model, self.config, self.sources.evaluation_images
        network = self.graph.model
        if config.explain:
            network = add_activation_maps(network, network)
        assembled = assemble(
            network, model.preprocessing, config.input, self._metadata, size, confidence
        )
        file = write_model(self.directory, name, assembled)
        # Prove the file as read back from disk, not the model in memory.
        proof = ParityProof(
            model.model,
            self.graph,
            read_back(file),
            model.preprocessing,
            config,
            images.kind,
            size,
        )
        step = f"Proving {name} equal to PyTorch"
        parity = proof.prove(images.files, step, self.notify)
        return ProvenVariant(name, proof, parity)

    def _make_accuracy_test(self) -> AccuracyTest | None:
        images = self.sources.test_images
        if images is None:
            return None
        model = self.model
        return AccuracyTest(
            images, model.model, model.labels, model.preprocessing, self.config.input
        )

    def _check_accuracy(
        self, expected: HeldOutMetrics | None, pytorch_logits: Logits, images: EvaluationImages
    ) -> None:
        """Check that PyTorch's accuracy is the one that the run's metrics have."""
        measured = compute_accuracy(pytorch_logits, pytorch_logits, images, self.model.labels)
        if expected is None or measured is None:
            return
        low, high = expected.interval
        if not low <= measured.top1 <= high:
            raise ExportError(
                f"The accuracy on the {measured.images} {images.kind} images is {measured.top1:.1%}, "
                f"but metrics.json has {expected.accuracy:.1%} "
                f"(95% interval {low:.1%} to {high:.1%}): "
                "weights, classes, preprocessing, split.csv or images were changed after training. "
                "Restore them, or run finetune again. No bundle was written."
            )

    def _make_manifest(self, fp32: VariantRecord, golden: GoldenRecord) -> BundleManifest:
        """Copy the clients and return the manifest of a bundle with one variant."""
        model = self.model
        packages = ("torch", "torchvision", "onnx", "onnxscript")
        return BundleManifest(
            edgetl=__version__,
            run=RunReference(
                model.run_id, model.architecture, model.weights_source, model.weights_license
            ),
            labels=tuple(model.labels),
            preprocessing=model.preprocessing,
            golden=golden,
            client=write_client(self.directory.client),
            cpp_client=write_client(self.directory.cpp_client),
            versions={name: version(name) for name in packages},
            variants=(fp32,),
            fused_branches=has_branches(model.model),
        )

    def _create_golden_images(self, proofs: Sequence[ProvenVariant]) -> GoldenRecord:
        """Write the golden images, selected from the proof images or generated and proven here."""
        images = self.sources.evaluation_images
        if self.config.golden == "validation":
            indices = choose_golden(images.files, images.labels)
            files = [images.files[index] for index in indices]
            logits = {proven.name: proven.parity.pytorch_logits[indices] for proven in proofs}
            tolerance = proofs[0].parity.record.path.tolerance
            return self._write_golden(files, images.kind, tolerance, logits)
        with tempfile.TemporaryDirectory() as folder:
            files = generate_images(Path(folder), GOLDEN_COUNT)
            parities = {proven.name: proven.proof.prove(files) for proven in proofs}
            logits = {name: parity.pytorch_logits for name, parity in parities.items()}
            tolerance = parities["fp32"].record.path.tolerance
            return self._write_golden(files, "generated", tolerance, logits)

    def _write_golden(
        self,
        files: Sequence[Path],
        kind: ImageSource,
        tolerance: float,
        logits: dict[str, Logits],
    ) -> GoldenRecord:
        """Write the images with each variant's logits; the tolerance is that of fp32."""
        fp32_logits = logits.pop("fp32")
        golden = GoldenImages(files, self.model.labels, fp32_logits, kind, tolerance, logits)
        return write_golden(self.directory, golden)

    def _write_web_page(self, manifest: BundleManifest, runtime: Path) -> WebRecord:
        self.notify("Proving the page", 0, 0)
        # WebAssembly has no int8 instructions, so the variant that is fastest on this CPU is slower
        # in a browser. The size is the same everywhere.
        variant = manifest.variants[0]
        if self.config.optimise == "size":
            variant = manifest.primary_variant
        return write_web(self.directory, manifest, variant, runtime)


def _describe_proven(
    proven: ProvenVariant, builder: VariantBuilder, size: tuple[int, int] | None = None
) -> VariantRecord:
    parity = proven.parity
    return replace(builder, reference_logits=parity.pytorch_logits).describe(
        proven.name,
        builder.directory.variant(proven.name),
        "fp32",
        parity.record,
        parity.onnx_logits,
        builder.fp32_confidence,
        size,
    )


def _add_latencies(
    manifest: BundleManifest,
    built: Sequence[BuiltVariant],
    task: QuantizationTask,
    directory: BundleDirectory,
) -> BundleManifest:
    """Measure the variants; return them with latencies, and with operator times if not faster."""
    # The benchmark needs a complete bundle, so write a preliminary manifest; the final one
    # replaces it.
    write_bundle_manifest(directory, manifest)
    latencies = measure_variant_latencies(
        directory.path, task.notify, QUICK_PROTOCOL if task.search == "quick" else None
    )
    built_by_name = {item.variant.name: item for item in built}
    timed = []
    for variant in manifest.variants:
        variant = replace(variant, latency=latencies[variant.name])
        if variant.name in built_by_name:
            variant = replace(built_by_name[variant.name], variant=variant).with_profile()
        timed.append(variant)
    return replace(manifest, variants=tuple(timed))


def _load_quantization_images(sources: _ExportInputs, model: LoadedModel) -> QuantizationImages:
    labels = sources.calibration_labels
    indices = None if labels is None else [model.labels.index(label) for label in labels]
    return load_quantization_images(
        sources.calibration_files, indices, model.preprocessing, sources.calibration_kind
    )


def _draw_label_flips(built: Sequence[BuiltVariant], folder: Path, images: int) -> None:
    for item in built:
        name = item.variant.name
        try:
            draw_flips(folder / f"flips_{name}.png", name, item.flips, images)
        except OSError as cause:  # the bundle is complete without the plot
            LOGGER.warning("Cannot write the plot of changed labels: %s", cause)
