"""Bundle manifest: variants, their parity, accuracy and latency, and the hashes of all files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from edgetl.core.artifacts.confidence import (
    CalibrationRecord,
    CoverageLevel,
    UnknownDetector,
    UnknownRecord,
)
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.artifacts.model_metadata import SplitFiles
from edgetl.core.config.export import MAX_ACCURACY_DROP, InputKind
from edgetl.core.errors import BundleError
from edgetl.core.files import ReadPolicy, read_json_as, sha256_file, write_json
from edgetl.core.formatting import pluralize
from edgetl.core.paths import BundleDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.runtimes import ONNXRUNTIME, RUNTIMES
from edgetl.core.typed_json import FieldError, JsonObject, in_json, to_json

FileStatus = Literal["as proven", "altered", "missing"]
ImageSource = Literal["validation", "training", "given", "generated", "test"]
"""Source of the images that a bundle was proven on, or an accuracy measured on."""
SpeedVerdict = Literal["faster", "slower", "inconclusive"]
CalibrationMethodName = Literal["minmax", "entropy", "percentile"]
"""Calibration method.

`minmax` takes the observed range, `entropy` the range that loses the least information (Migacz,
2017), `percentile` the range that contains all but one in ten thousand values.
"""
MAX_PIXELS = 2**26
"""Largest input image of a variant of fixed size, in pixels."""


@dataclass(frozen=True)
class FileRecord:
    """File of the bundle with its hash."""

    file: str
    """Path relative to the bundle."""
    sha256: str
    bytes: int | None = field(default=None, metadata=in_json(omit_default=True))


@dataclass(frozen=True)
class NetworkParity:
    """Parity of the float32 network with PyTorch on identical tensors."""

    images: int
    kind: ImageSource
    max_abs_diff: float
    """Largest |logit difference|."""
    tolerance: float
    batches: tuple[int, ...] = field(default=(), metadata=in_json(omit_default=True))
    """Batch sizes tested."""


@dataclass(frozen=True)
class PathParity:
    """Parity with PyTorch from decoded image to logits."""

    images: int
    kind: ImageSource
    max_abs_diff: float
    """Largest |logit difference|."""
    tolerance: float
    """Largest accepted |logit difference| on a device."""
    top1_agreement: float
    """Share of images with PyTorch's label; for float32, ties count as equal."""
    mean_abs_diff: float | None = field(default=None, metadata=in_json(omit_default=True))
    """Mean |logit difference|; only for smaller variants."""
    batches: tuple[int, ...] = field(default=(), metadata=in_json(omit_default=True))
    """Batch sizes tested; only for float32, like the following fields."""
    sizes: int | None = field(default=None, metadata=in_json(omit_default=True))
    """Number of additional image sizes tested."""
    max_grey_levels: int | None = None
    """Largest difference of a pixel after the resize in the graph; None if it was not compared."""
    ties: int | None = field(default=None, metadata=in_json(omit_default=True))
    """Number of images whose label differs only because PyTorch's two best logits nearly tie."""


@dataclass(frozen=True)
class ActivationMapParity:
    """Parity of a variant's output `activation_maps` with PyTorch on identical tensors."""

    images: int
    kind: ImageSource
    max_abs_diff: float
    """Largest |difference|; maps have the unit of logits."""
    sqnr_db: float
    """Signal-to-quantization-noise ratio in dB."""
    tolerance: float | None = field(default=None, metadata=in_json(omit_default=True))
    """Largest accepted |difference|; only for float32."""


@dataclass(frozen=True)
class ParityRecord:
    """All parts of a variant's proof."""

    path: PathParity
    network: NetworkParity | None = field(default=None, metadata=in_json(omit_default=True))
    """Only for float32."""
    activation_maps: ActivationMapParity | None = field(
        default=None, metadata=in_json(omit_default=True)
    )
    """None if the graph has no output `activation_maps`."""


@dataclass(frozen=True)
class AccuracyRecord:
    """Accuracy of a variant's ONNX file."""

    split: ImageSource
    images: int
    top1: float
    interval: tuple[float, float] = field(metadata=in_json(key="ci95"))
    """95% interval of `top1`."""
    macro_f1: float
    drop: float
    """Percentage points of top-1 accuracy lost against PyTorch."""
    flips: int
    """Images whose predicted label differs from PyTorch's."""


@dataclass(frozen=True)
class LatencyRecord:
    """Latency of a variant on the machine that exported it."""

    p50_ms: float | None
    """None if it was not timed."""
    threads: int
    cpu: str | None
    rounds: int
    speedup: float | None = field(default=None, metadata=in_json(omit_default=True))
    """Speed-up over fp32; None for fp32 itself."""
    interval: tuple[float, float] | None = field(
        default=None, metadata=in_json(key="ci95", omit_default=True)
    )
    """95% interval of `speedup`."""
    rounds_won: int | None = field(default=None, metadata=in_json(omit_default=True))
    """Rounds in which it was faster than fp32."""
    verdict: SpeedVerdict | None = field(default=None, metadata=in_json(omit_default=True))
    reason: str | None = field(default=None, metadata=in_json(omit_default=True))
    """Reason why it was not timed."""
    scope: Literal["model"] = "model"
    batch: int = 1
    provider: str = "cpu"


@dataclass(frozen=True)
class QuantizationScheme:
    """Options of static quantization; weights are signed and symmetric."""

    method: CalibrationMethodName
    per_channel: bool
    """True for a scale per output channel of the weights, False for one scale per tensor."""
    activations: Literal["uint8", "int8"]
    reduce_range: bool = False
    """Use 7-bit weights: without VNNI, sums of two 8-bit products saturate in 16 bits."""

    @property
    def weight_bits(self) -> int:
        """Bits of the weights: 8, or 7 with the reduced range."""
        return 7 if self.reduce_range else 8

    @property
    def name(self) -> str:
        """Readable name, such as `U8S8 per channel, minmax`."""
        types = "U8S8" if self.activations == "uint8" else "S8S8"
        weights = " 7-bit weights" if self.reduce_range else ""
        granularity = "channel" if self.per_channel else "tensor"
        return f"{types}{weights} per {granularity}, {self.method}"


@dataclass(frozen=True)
class QuantizationScore:
    """Score of one quantized candidate."""

    top1: float | None
    """Top-1 accuracy on the held-out images; None without labels."""
    drop: float
    """Points of top-1 lost against the float network.

    Without labels it is the share of images, in percent, whose label differs from the float one.
    """
    sqnr_db: float
    """Signal-to-quantization-noise ratio of the logits in dB."""
    ms: float
    """Latency of one image on this machine, network only; a rough timing for choosing."""
    bytes: int


@dataclass(frozen=True)
class CandidateRecord:
    """One candidate of the search for int8."""

    scheme: QuantizationScheme
    score: QuantizationScore = field(metadata=in_json(key="held_back"))
    """Score on the held-out images."""
    repairs: tuple[str, ...] = ()
    """Names of the repairs, in the order applied."""
    restored_layers: tuple[str, ...] = ()
    """Names of the layers that stay in float."""

    @property
    def summary(self) -> str:
        """Scheme, repairs and number of layers in float."""
        text = self.scheme.name
        if self.repairs:
            text += f" after {', '.join(self.repairs)}"
        if self.restored_layers:
            text += f", {len(self.restored_layers)} layers in float"
        return text


@dataclass(frozen=True)
class SearchRecord:
    """Search for the best static int8 network."""

    calibration_images: int
    held_out_images: int = field(metadata=in_json(key="held_back_images"))
    float_score: QuantizationScore = field(metadata=in_json(key="float"))
    vnni: bool
    """Whether this CPU has int8 dot products."""
    chosen_index: int = field(metadata=in_json(key="chosen"))
    is_within_limit: bool = field(metadata=in_json(key="fits"))
    """Whether the chosen candidate meets the accuracy limit on the held-out images."""
    candidates: tuple[CandidateRecord, ...]
    worst_layers: tuple[str, ...] = ()
    """Layers by quantization error, worst first; empty if no repair was needed."""

    def __post_init__(self) -> None:
        if not 0 <= self.chosen_index < len(self.candidates):
            raise FieldError(f"candidate {self.chosen_index} is chosen, but there is none")

    @property
    def chosen(self) -> CandidateRecord:
        """The candidate that became the variant."""
        return self.candidates[self.chosen_index]


@dataclass(frozen=True)
class LargestActivation:
    """Value of the network with the largest magnitude on training images."""

    value: str
    magnitude: float


@dataclass(frozen=True)
class Float16Record:
    """Check of a float16 network for overflow."""

    largest_activation: LargestActivation


@dataclass(frozen=True)
class LabelFlip:
    """Image that the variant labels differently from PyTorch."""

    image: str
    """Folder and file name, so that no path of the exporting machine is published."""
    truth: str | None
    expected: str = field(metadata=in_json(key="pytorch"))
    """PyTorch's label."""
    predicted: str = field(metadata=in_json(key="onnx"))


@dataclass(frozen=True)
class OperatorTime:
    """Cost of one operator type."""

    nodes: int
    share: float
    """Share of the inference time."""


@dataclass(frozen=True)
class SlowOperators:
    """Time profile of a quantized network that is not faster than fp32."""

    operators: Mapping[str, OperatorTime]
    """Operator types after ONNX Runtime's fusions, the most expensive first."""
    summary: str = field(metadata=in_json(key="to_blame"))


@dataclass(frozen=True)
class BuildReport:
    """Method and findings of a variant's build."""

    method: str | None = field(default=None, metadata=in_json(key="chosen", omit_default=True))
    """Short description of the quantization; None for float32."""
    search: SearchRecord | Float16Record | None = field(
        default=None, metadata=in_json(none_is_empty=True, omit_default=True)
    )
    flips: tuple[LabelFlip, ...] | None = field(default=None, metadata=in_json(omit_default=True))
    """Images with another label than PyTorch's, the first of them; None for float32."""
    divergence: str | None = field(
        default=None, metadata=in_json(key="diverges", omit_default=True)
    )
    """The first module that diverges, if the accuracy limit is exceeded."""
    slow_because: SlowOperators | None = field(default=None, metadata=in_json(omit_default=True))
    ort: FileRecord | None = field(default=None, metadata=in_json(omit_default=True))
    """The same variant in ORT format."""


@dataclass(frozen=True)
class ProviderCoverage:
    """Nodes of a network that an execution provider takes, by its published list of operators.

    Nothing was run on the provider.
    """

    provider: str
    """Name, such as `QNN`."""
    nodes: int
    """Number of nodes of the network."""
    source: str
    """List of operators, with its version or date."""
    unsupported: Mapping[str, int] = field(default_factory=dict)
    """Operators outside the list, with the number of their nodes."""

    @property
    def is_whole(self) -> bool:
        """Whether the list has every operator of the network."""
        return not self.unsupported

    @property
    def summary(self) -> str:
        """Clause such as `all 141 nodes` or `2 of 141 nodes not listed: HardSwish (2)`."""
        if self.is_whole:
            return f"all {self.nodes} nodes"
        operators = ", ".join(
            f"{operator} ({count})" for operator, count in sorted(self.unsupported.items())
        )
        return f"{sum(self.unsupported.values())} of {self.nodes} nodes not listed: {operators}"


@dataclass(frozen=True)
class SplitRecord:
    """Files beside a variant's network file, and the providers that the network suits."""

    preprocessing: FileRecord
    """File from photos to the network's input."""
    postprocessing: FileRecord
    """File from the network's outputs to probabilities and unknown scores."""
    coverage: tuple[ProviderCoverage, ...] = ()

    @property
    def records(self) -> tuple[FileRecord, FileRecord]:
        """Both files."""
        return self.preprocessing, self.postprocessing

    @property
    def files(self) -> SplitFiles:
        """Names of the files."""
        return SplitFiles(self.preprocessing.file, self.postprocessing.file)

    @property
    def coverage_lines(self) -> Iterator[str]:
        """Lines such as `QNN, NNAPI: all 141 nodes`, one for the providers with equal coverage."""
        providers: dict[str, list[str]] = {}
        for item in self.coverage:
            providers.setdefault(item.summary, []).append(item.provider)
        for summary, names in providers.items():
            yield f"{', '.join(names)}: {summary}"


@dataclass(frozen=True)
class VariantRecord:
    """One variant: the file of a runtime with its parity, accuracy and latency."""

    name: str
    file: str
    sha256: str
    bytes: int
    precision: str
    """Precision that the network is to be computed in: fp32, bf16, fp16 or int8."""
    input: InputKind
    """Input of the file, or of edgetl's preprocessing in front of it if `runtime` is not ONNX
    Runtime."""
    opset: int
    """Opset of the ONNX file, or of the one that the file was converted from."""
    parity: ParityRecord
    accuracy: AccuracyRecord | None = field(metadata=in_json(none_is_empty=True))
    """None if there were no labeled validation images."""
    latency: LatencyRecord | None = field(default=None, metadata=in_json(none_is_empty=True))
    """Latency on the exporting machine; None if variants were not compared."""
    report: BuildReport = field(default_factory=BuildReport)
    size: tuple[int, int] | None = None
    """Fixed input image size (height, width); None for any size or preprocessed tensors."""
    test_accuracy: AccuracyRecord | None = field(default=None, metadata=in_json(omit_default=True))
    """Accuracy on the test images; None if the run has none."""
    calibration: CalibrationRecord | None = field(default=None, metadata=in_json(omit_default=True))
    """None if there were no labeled validation images."""
    unknown: UnknownRecord | None = field(default=None, metadata=in_json(omit_default=True))
    """None if the graph has no output `unknown_score`."""
    prediction_sets: tuple[CoverageLevel, ...] = field(
        default=(), metadata=in_json(omit_default=True)
    )
    runtime: str = field(default=ONNXRUNTIME, metadata=in_json(omit_default=True))
    """Runtime that the file was written for, see `edgetl.core.runtimes`."""
    extra_files: tuple[FileRecord, ...] = field(default=(), metadata=in_json(omit_default=True))
    """Further files of a format of several files, in the order of the runtime's suffixes."""
    split: SplitRecord | None = field(default=None, metadata=in_json(omit_default=True))
    """Files that run before and after `file`; None for a self-contained file."""

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise FieldError(
                f"the runtime of variant {self.name} must be one of {', '.join(RUNTIMES)}, "
                f"got {self.runtime!r}"
            )
        if self.size is not None and not (
            min(self.size) > 0 and self.size[0] * self.size[1] <= MAX_PIXELS
        ):
            raise FieldError(
                f"the image size of variant {self.name} must be above 0 and at most {MAX_PIXELS} "
                f"pixels, got {self.size[0]} x {self.size[1]}"
            )

    def runs_on(self, runtime: str) -> bool:
        """Return whether a runtime can run the variant: its own, or another that reads ONNX."""
        if runtime == self.runtime:
            return True
        # The other runtimes get the network alone, which does not exist for a fixed image size.
        is_plain = self.size is None and self.split is None
        return self.runtime == ONNXRUNTIME and RUNTIMES[runtime].reads_onnx and is_plain

    @property
    def total_bytes(self) -> int:
        """Size of the files that are needed to run the variant."""
        split_files = () if self.split is None else self.split.records
        return self.bytes + sum(record.bytes or 0 for record in (*self.extra_files, *split_files))

    @property
    def tolerance(self) -> float:
        """Largest accepted |logit difference| to PyTorch on a device."""
        return self.parity.path.tolerance

    @property
    def temperature(self) -> float:
        """Divisor of the logits in the graph's softmax."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def detector(self) -> UnknownDetector | None:
        """Detector of unknown images; None if the graph has no output `unknown_score`."""
        return None if self.unknown is None else self.unknown.detector

    @property
    def p50_ms(self) -> float | None:
        """Latency on the exporting machine; None if it was not timed."""
        return None if self.latency is None else self.latency.p50_ms

    @property
    def is_faster(self) -> bool:
        """Whether it was significantly faster than fp32 on the exporting machine."""
        return self.latency is not None and self.latency.verdict == "faster"

    @property
    def search(self) -> SearchRecord | None:
        """Search for this int8 variant; None for other variants."""
        return self.report.search if isinstance(self.report.search, SearchRecord) else None

    @property
    def files(self) -> Iterator[FileRecord]:
        """The variant's files."""
        yield FileRecord(self.file, self.sha256, self.bytes)
        yield from self.extra_files
        if self.split is not None:
            yield from self.split.records
        if self.report.ort is not None:
            yield self.report.ort


@dataclass(frozen=True)
class RunReference:
    """Run, or stock weights, that the bundle was exported from."""

    id: str
    model: str
    weights: str
    weights_license: str | None = field(default=None, metadata=in_json(omit_default=True))
    """SPDX identifier of the license of the pretrained weights, if their source states it."""

    @property
    def weights_text(self) -> str:
        """Source of the pretrained weights with their license."""
        if self.weights_license is None:
            return self.weights
        return f"{self.weights} ({self.weights_license})"


@dataclass(frozen=True)
class GoldenRecord:
    """Golden images and PyTorch's logits for them."""

    kind: ImageSource
    tolerance: float
    """Largest accepted |logit difference| of fp32."""
    images: tuple[FileRecord, ...]
    logits: FileRecord

    def __post_init__(self) -> None:
        if not self.images:
            raise FieldError("there are no golden images")


@dataclass(frozen=True)
class WebRecord:
    """Web page that runs a variant in the browser."""

    runtime: str
    variant: str
    proof: GateResult
    """Verdict on the golden images in Node.js."""
    files: tuple[FileRecord, ...] = ()


@dataclass(frozen=True, repr=False)
class BundleManifest:
    """Content of bundle.json."""

    edgetl: str
    """Version that exported the bundle."""
    run: RunReference
    labels: tuple[str, ...]
    """Class names in the order of the logits."""
    preprocessing: Preprocessing
    golden: GoldenRecord
    client: FileRecord
    versions: Mapping[str, str]
    """Versions of the packages that wrote the graph."""
    variants: tuple[VariantRecord, ...]
    """Variants; the first is fp32."""
    recommended: str | None = "fp32"
    """Name of a variant; None if none met the limits of the export."""
    rejection_reasons: Mapping[str, str] = field(
        default_factory=dict, metadata=in_json(key="not_recommended")
    )
    """Reasons against variants that are not recommended, by name."""
    cpp_client: FileRecord | None = field(default=None, metadata=in_json(omit_default=True))
    web: WebRecord | None = field(default=None, metadata=in_json(omit_default=True))
    fused_branches: bool = field(default=False, metadata=in_json(omit_default=True))
    """Whether the files have fused branches that the PyTorch model was trained with (RepVGG)."""
    runtime_clients: tuple[FileRecord, ...] = field(default=(), metadata=in_json(omit_default=True))
    """Stand-alone clients of the runtimes of converted files; they import `client`."""
    failed_formats: Mapping[str, str] = field(
        default_factory=dict, metadata=in_json(omit_default=True)
    )
    """Reasons why converted files were left out, by the name of the variant or format."""
    max_accuracy_drop: float = field(default=MAX_ACCURACY_DROP, metadata=in_json(omit_default=True))
    """Largest accepted loss of top-1 accuracy against PyTorch, in percentage points."""
    kind: Literal["bundle"] = "bundle"

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or not self.labels:
            raise FieldError("there are no variants or no labels")
        if len(set(names)) < len(names):
            raise FieldError(f"two variants have the same name: {', '.join(names)}")
        if self.recommended is not None and self.recommended not in names:
            raise FieldError(f"the recommended variant {self.recommended!r} does not exist")
        if self.primary_variant.runtime != ONNXRUNTIME:
            raise FieldError(f"the recommended variant {self.recommended!r} is not an ONNX file")

    def __repr__(self) -> str:
        names = ", ".join(variant.name for variant in self.variants)
        classes = pluralize(len(self.labels), "class", "classes")
        return f"BundleManifest({self.run.model!r}, {classes}, {names})"

    @property
    def primary_variant(self) -> VariantRecord:
        """The recommended variant, or the first if none is recommended."""
        by_name = {variant.name: variant for variant in self.variants}
        return by_name.get(self.recommended or "", self.variants[0])

    @property
    def companion_files(self) -> tuple[FileRecord, ...]:
        """Files that are not needed to run the model: clients, and the web page if any."""
        web_files = () if self.web is None else self.web.files
        clients = (self.client,) if self.cpp_client is None else (self.client, self.cpp_client)
        return (*clients, *self.runtime_clients, *web_files)

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """All files of the bundle with their hashes."""
        variant_files = (file for variant in self.variants for file in variant.files)
        golden = self.golden
        return (*variant_files, *self.companion_files, golden.logits, *golden.images)


@dataclass(frozen=True, repr=False)
class BundleRecord:
    """A bundle on disk: its manifest and the integrity of its files."""

    directory: BundleDirectory
    manifest: BundleManifest

    def __repr__(self) -> str:
        names = ", ".join(variant.name for variant in self.variants)
        classes = pluralize(len(self.labels), "class", "classes")
        name = type(self).__name__
        return f"{name}({str(self.directory.path)!r}, {self.model!r}, {classes}, {names})"

    @property
    def model(self) -> str:
        """Name of the architecture."""
        return self.manifest.run.model

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self.manifest.run.id

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.manifest.labels

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the model."""
        return self.manifest.preprocessing

    @property
    def variants(self) -> tuple[VariantRecord, ...]:
        """All variants; the first is fp32."""
        return self.manifest.variants

    def select_variant(self, name: str | None = None, runtime: str | None = None) -> VariantRecord:
        """Return the variant called `name`, or the recommended one of a runtime.

        Args:
            name: Name of the variant; None chooses one.
            runtime: Runtime to run it; None is the one that the variant was written for.

        Raises:
            BundleError: There is no such variant, the runtime cannot run it, or there is no name
                and no recommended variant.
        """
        if runtime is not None and name is None:
            name = self._choose_variant(runtime)
        name = name or self.manifest.recommended
        available = ", ".join(variant.name for variant in self.variants)
        if name is None:
            raise BundleError(
                f"{self.directory.path} recommends no variant: none met the limits of the export. "
                f"Choose with --variant: {available}."
            )
        for variant in self.variants:
            if variant.name == name:
                if runtime is not None and not variant.runs_on(runtime):
                    raise BundleError(
                        f"{variant.name} is a file for {RUNTIMES[variant.runtime].title}, which "
                        f"{RUNTIMES[runtime].title} cannot run. Leave out one of --variant and "
                        "--runtime."
                    )
                return variant
        raise BundleError(f"{self.directory.path} has no variant {name!r}. Available: {available}.")

    def variants_for(self, runtime: str) -> tuple[VariantRecord, ...]:
        """Return the variants that a runtime runs: those written for it, else the ONNX files.

        Raises:
            BundleError: There are none.
        """
        variants = tuple(variant for variant in self.variants if variant.runtime == runtime)
        if not variants:
            variants = tuple(variant for variant in self.variants if variant.runs_on(runtime))
        if not variants:
            raise BundleError(
                f"{self.directory.path} has no variant for {RUNTIMES[runtime].title}. Export the "
                f"run again with --format {runtime}."
            )
        return variants

    def _choose_variant(self, runtime: str) -> str | None:
        """Return the name of a runtime's fastest variant within the accuracy limit."""
        variants = self.variants_for(runtime)
        if variants[0].runtime == ONNXRUNTIME:
            return self.manifest.recommended
        limit = self.manifest.max_accuracy_drop
        accurate = [
            variant
            for variant in variants
            if variant.accuracy is None or variant.accuracy.drop <= limit
        ]
        # Untimed variants last; with equal times the first, which is float32.
        best = min(
            accurate or variants,
            key=lambda variant: (variant.p50_ms is None, variant.p50_ms or 0.0),
        )
        return best.name

    def resolve_path(self, file: str) -> Path:
        """Return the path of a file in the bundle.

        Raises:
            BundleError: The manifest names a file outside the bundle.
        """
        path = self.directory.path / file
        if "\0" in file or not path.resolve().is_relative_to(self.directory.path.resolve()):
            raise BundleError(
                f"bundle.json names a file outside the bundle: {file!r}. Do not use this bundle."
            )
        return path

    @cached_property
    def file_statuses(self) -> dict[str, FileStatus]:
        """Integrity of each file: whether it is the one that was checked at export.

        Raises:
            BundleError: A file cannot be read or lies outside the bundle.
        """
        return {record.file: self._check_file(record) for record in self.manifest.files}

    def _check_file(self, record: FileRecord) -> FileStatus:
        path = self.resolve_path(record.file)
        if not path.is_file():
            return "missing"
        try:
            return "as proven" if sha256_file(path) == record.sha256 else "altered"
        except OSError as cause:
            raise BundleError(
                f"Cannot read {path} ({cause.strerror or cause}). Copy the bundle again."
            ) from cause

    def to_json(self) -> JsonObject:
        """Return the manifest with the path and the integrity of the files, for `--json`."""
        statuses: JsonObject = dict(self.file_statuses)
        return {"path": str(self.directory.path), **to_json(self.manifest), "files": statuses}


def read_bundle_manifest(directory: BundleDirectory) -> BundleManifest:
    """Read bundle.json.

    Raises:
        BundleError: It is missing, or a field is missing, unknown or of the wrong type.
    """
    policy = ReadPolicy(BundleError, "Copy or export the bundle again.")
    return read_json_as(BundleManifest, directory.manifest, "The bundle's manifest", policy)


def write_bundle_manifest(directory: BundleDirectory, manifest: BundleManifest) -> None:
    """Write bundle.json; it must be the last file written."""
    write_json(directory.manifest, to_json(manifest))


def read_bundle_record(path: Path) -> BundleRecord:
    """Read the bundle at `path`, or in the run directory at `path`.

    Raises:
        BundleError: There is no bundle, or its manifest is broken.
    """
    directory = BundleDirectory.find(path)
    return BundleRecord(directory, read_bundle_manifest(directory))
