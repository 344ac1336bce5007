"""Bundle manifest: variants, their parity, accuracy and latency, and the integrity of files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from edgetl.core.errors import BundleError, ConfigError
from edgetl.core.files import read_json, sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.core.preprocessing import Preprocessing

FileStatus = Literal["as proven", "altered", "missing"]


@dataclass(frozen=True)
class VariantAccuracy:
    """Accuracy of a variant's ONNX file."""

    split: str
    images: int
    top1: float
    interval: tuple[float, float]
    macro_f1: float
    drop: float
    """Percentage points of top-1 accuracy lost against PyTorch."""
    flips: int
    """Images whose predicted label differs from PyTorch's."""


@dataclass(frozen=True)
class VariantLatency:
    """Latency of a variant on the machine that exported it."""

    p50_ms: float | None
    speedup: float | None
    """Speed-up over fp32."""
    interval: tuple[float, float] | None
    verdict: str | None
    threads: int | None
    cpu: str | None
    reason: str | None
    """Reason why it was not timed."""


@dataclass(frozen=True)
class ParityRecord:
    """One parity check against PyTorch."""

    images: int
    kind: str
    difference: float
    """Largest |Δlogit|."""
    tolerance: float | None
    agreement: float | None
    """Share of images with the same predicted label as PyTorch."""


@dataclass(frozen=True)
class VariantRecord:
    """One variant: an ONNX file with its parity, accuracy and latency."""

    name: str
    file: str
    sha256: str
    bytes: int
    precision: str
    input: str
    opset: int
    network: ParityRecord | None
    """Parity on identical tensors; only for fp32."""
    path: ParityRecord | None
    """Parity from decoded image to logits."""
    accuracy: VariantAccuracy | None
    latency: VariantLatency
    made_of: str
    """Description of the quantization."""
    slow_because: str
    """The slowest operators if the variant is not faster."""


@dataclass(frozen=True)
class BundleManifest:
    """Content of bundle.json."""

    directory: BundleDirectory
    model: str
    run_id: str
    weights: str
    edgetl: str
    labels: list[str]
    preprocessing: Preprocessing
    variants: tuple[VariantRecord, ...]
    recommended: str | None
    against: Mapping[str, str]
    """Reasons against the variants that are not recommended, by name."""
    golden_kind: str
    golden_tolerance: float
    golden_files: Mapping[str, str]
    """Golden images: file to SHA-256."""
    other_files: Mapping[str, str]
    """Clients, golden logits, web page and files in ORT format: file to SHA-256."""
    versions: Mapping[str, Any]

    @property
    def primary_variant(self) -> VariantRecord:
        """The recommended variant, or the first if none is recommended."""
        return next(
            (variant for variant in self.variants if variant.name == self.recommended),
            self.variants[0],
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything except the hashes, for `--json`."""
        excluded = ("directory", "golden_files", "other_files")
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in excluded
        }
        return {
            "path": str(self.directory.path),
            **values,
            "preprocessing": self.preprocessing.to_json(),
            "variants": [asdict(variant) for variant in self.variants],
            "files": self.file_statuses,
        }

    def resolve_path(self, file: str) -> Path:
        """Return the path of a file in the bundle.

        Raises:
            BundleError: The manifest names a file outside the bundle.
        """
        path = self.directory.path / file
        if not path.resolve().is_relative_to(self.directory.path.resolve()):
            raise BundleError(
                f"bundle.json names a file outside the bundle: {file}. Do not use this bundle."
            )
        return path

    @property
    def file_hashes(self) -> dict[str, str]:
        """All files listed in the manifest: name to SHA-256."""
        return {
            **{variant.file: variant.sha256 for variant in self.variants},
            **self.other_files,
            **self.golden_files,
        }

    @cached_property
    def file_statuses(self) -> dict[str, FileStatus]:
        """Integrity of each file: whether it is the one that was checked at export.

        Raises:
            BundleError: A file cannot be read or lies outside the bundle.
        """
        return {
            file: self._check_file(self.resolve_path(file), sha256)
            for file, sha256 in self.file_hashes.items()
        }

    @staticmethod
    def _check_file(path: Path, sha256: str) -> FileStatus:
        if not path.is_file():
            return "missing"
        try:
            return "as proven" if sha256_file(path) == sha256 else "altered"
        except OSError as cause:
            raise BundleError(
                f"Cannot read {path} ({cause.strerror or cause}). Copy the bundle again."
            ) from cause


def read_bundle_manifest(path: Path) -> BundleManifest:
    """Read the manifest of the bundle at `path`, without opening its other files.

    Raises:
        BundleError: There is no bundle, or its manifest is broken.
    """
    directory = BundleDirectory.find(path)
    manifest = read_json(directory.manifest, BundleError, "The bundle's manifest")
    try:
        json.dumps(manifest, allow_nan=False)
        golden = manifest["golden"]
        clients = [
            manifest["client"],
            manifest.get("cpp_client"),
            *manifest.get("web", {}).get("files", []),
        ]
        other_entries = [
            *clients,
            golden["logits"],
            *(entry["report"].get("ort") for entry in manifest["variants"]),
        ]
        bundle = BundleManifest(
            directory=directory,
            model=str(manifest["run"]["model"]),
            run_id=str(manifest["run"]["id"]),
            weights=str(manifest["run"]["weights"]),
            edgetl=str(manifest["edgetl"]),
            labels=[str(label) for label in manifest["labels"]],
            preprocessing=Preprocessing.from_json(manifest["preprocessing"]),
            variants=tuple(_parse_variant(entry) for entry in manifest["variants"]),
            recommended=manifest.get("recommended", manifest["variants"][0]["name"]),
            against={
                str(name): str(reason)
                for name, reason in manifest.get("not_recommended", {}).items()
            },
            golden_kind=str(golden["kind"]),
            golden_tolerance=float(golden["tolerance"]),
            golden_files={str(image["file"]): str(image["sha256"]) for image in golden["images"]},
            other_files={
                str(entry["file"]): str(entry["sha256"]) for entry in other_entries if entry
            },
            versions=dict(manifest.get("versions", {})),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ConfigError) as cause:
        raise BundleError(
            f"{directory.manifest} is broken: {cause!r}. Export the bundle again with `edgetl export`."
        ) from cause
    if not bundle.labels:
        raise BundleError(
            f"{directory.manifest} has no labels. Export the bundle again with `edgetl export`."
        )
    return bundle


def _parse_variant(entry: Mapping[str, Any]) -> VariantRecord:
    report, parity = entry["report"], entry["parity"]
    return VariantRecord(
        **{name: str(entry[name]) for name in ("name", "file", "sha256", "precision", "input")},
        bytes=int(entry["bytes"]),
        opset=int(entry["opset"]),
        network=_parse_parity(parity.get("network")),
        path=_parse_parity(parity.get("path")),
        accuracy=_parse_accuracy(entry["accuracy"]),
        latency=_parse_latency(entry["latency"]),
        made_of=str(report.get("chosen") or ""),
        slow_because=str(report.get("slow_because", {}).get("to_blame") or ""),
    )


def _parse_parity(entry: Mapping[str, Any] | None) -> ParityRecord | None:
    if not entry:
        return None
    return ParityRecord(
        images=int(entry["images"]),
        kind=str(entry["kind"]),
        difference=float(entry["max_abs_diff"]),
        tolerance=_optional_float(entry.get("tolerance")),
        agreement=_optional_float(entry.get("top1_agreement")),
    )


def _parse_accuracy(entry: Mapping[str, Any]) -> VariantAccuracy | None:
    if not entry:
        return None
    low, high = entry["ci95"]
    return VariantAccuracy(
        split=str(entry["split"]),
        images=int(entry["images"]),
        top1=float(entry["top1"]),
        interval=(float(low), float(high)),
        macro_f1=float(entry["macro_f1"]),
        drop=float(entry["drop"]),
        flips=int(entry["flips"]),
    )


def _parse_latency(entry: Mapping[str, Any]) -> VariantLatency:
    interval = entry.get("ci95")
    return VariantLatency(
        p50_ms=_optional_float(entry.get("p50_ms")),
        speedup=_optional_float(entry.get("speedup")),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        verdict=entry.get("verdict"),
        threads=entry.get("threads"),
        cpu=entry.get("cpu"),
        reason=entry.get("reason"),
    )


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)
