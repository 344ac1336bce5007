"""Reading a bundle's manifest for a page: its variants, what was proven of them, and whether its files are still those."""

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
    """What a variant's file got right itself."""

    split: str
    images: int
    top1: float
    interval: tuple[float, float]
    macro_f1: float
    drop: float
    """Points of top-1 lost against PyTorch."""
    flips: int
    """Images labelled otherwise than by PyTorch."""


@dataclass(frozen=True)
class VariantLatency:
    """How fast a variant was where it was exported."""

    p50_ms: float | None
    speedup: float | None
    """Against fp32."""
    interval: tuple[float, float] | None
    verdict: str | None
    threads: int | None
    cpu: str | None
    reason: str | None
    """Why it was not timed."""


@dataclass(frozen=True)
class ParityRecord:
    """One part of the proof against PyTorch."""

    images: int
    kind: str
    difference: float
    """Largest |Δlogit|."""
    tolerance: float | None
    agreement: float | None
    """Share of images with PyTorch's label."""


@dataclass(frozen=True)
class VariantRecord:
    """One ONNX file."""

    name: str
    file: str
    sha256: str
    bytes: int
    precision: str
    input: str
    opset: int
    network: ParityRecord | None
    """On identical tensors; of fp32 alone."""
    path: ParityRecord | None
    """From decoded photo to logits."""
    accuracy: VariantAccuracy | None
    latency: VariantLatency
    made_of: str
    """How it was quantized, in words."""
    slow_because: str
    """The operators that its time goes to, where it is not faster."""


@dataclass(frozen=True)
class BundleManifest:
    """What a bundle says of itself."""

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
    """Why a variant is not recommended."""
    golden_kind: str
    golden_tolerance: float
    golden_files: Mapping[str, str]
    """File to SHA-256, the logits' file not among them."""
    other_files: Mapping[str, str]
    """Clients, logits, the page for browsers and files in ONNX Runtime's own format: file to SHA-256."""
    versions: Mapping[str, Any]

    @property
    def primary_variant(self) -> VariantRecord:
        """The recommended variant, or the first where none is."""
        return next(
            (variant for variant in self.variants if variant.name == self.recommended),
            self.variants[0],
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the hashes, with plain names and values."""
        left_out = ("directory", "golden_files", "other_files")
        told = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in left_out
        }
        variants = [asdict(variant) for variant in self.variants]
        return {
            "path": str(self.directory.path),
            **told,
            "preprocessing": self.preprocessing.to_json(),
            "variants": variants,
            "files": self.file_statuses,
        }

    def resolve_path(self, file: str) -> Path:
        """Where a file of the bundle lies.

        Raises:
            BundleError: the manifest names a file outside the bundle.
        """
        path = self.directory.path / file
        if not path.resolve().is_relative_to(self.directory.path.resolve()):
            raise BundleError(
                f"bundle.json names a file outside the bundle: {file}. Do not use this bundle."
            )
        return path

    @property
    def file_hashes(self) -> dict[str, str]:
        """Every file that the manifest vouches for: name to SHA-256."""
        return {
            **{variant.file: variant.sha256 for variant in self.variants},
            **self.other_files,
            **self.golden_files,
        }

    @cached_property
    def file_statuses(self) -> dict[str, FileStatus]:
        """Whether each of `files` is the one that was proven.

        Raises:
            BundleError: see `place`, or it cannot be read.
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
                f"{path} cannot be read ({cause.strerror or cause}). Copy the bundle again."
            ) from cause


def read_bundle_manifest(path: Path) -> BundleManifest:
    """The bundle at `path`, its files not looked at yet.

    Raises:
        BundleError: there is none, or its manifest is broken.
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
        others = [
            *clients,
            golden["logits"],
            *(entry["report"].get("ort") for entry in manifest["variants"]),
        ]
        card = BundleManifest(
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
            other_files={str(entry["file"]): str(entry["sha256"]) for entry in others if entry},
            versions=dict(manifest.get("versions", {})),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ConfigError) as cause:
        raise BundleError(
            f"{directory.manifest} is broken: {cause!r}. Export the bundle again with `edgetl export`."
        ) from cause
    if not card.labels:
        raise BundleError(
            f"{directory.manifest} names no labels. Export the bundle again with `edgetl export`."
        )
    return card


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
    tolerance, agreement = (
        _optional_float(entry.get("tolerance")),
        _optional_float(entry.get("top1_agreement")),
    )
    return ParityRecord(
        int(entry["images"]), str(entry["kind"]), float(entry["max_abs_diff"]), tolerance, agreement
    )


def _parse_accuracy(entry: Mapping[str, Any]) -> VariantAccuracy | None:
    if not entry:
        return None
    low, high = entry["ci95"]
    return VariantAccuracy(
        str(entry["split"]), int(entry["images"]), float(entry["top1"]), (float(low), float(high)), float(entry["macro_f1"]),
        float(entry["drop"]), int(entry["flips"]),
    )  # fmt: skip


def _parse_latency(entry: Mapping[str, Any]) -> VariantLatency:
    spread = entry.get("ci95")
    return VariantLatency(
        p50_ms=_optional_float(entry.get("p50_ms")),
        speedup=_optional_float(entry.get("speedup")),
        interval=None if spread is None else (float(spread[0]), float(spread[1])),
        verdict=entry.get("verdict"),
        threads=entry.get("threads"),
        cpu=entry.get("cpu"),
        reason=entry.get("reason"),
    )


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)
