"""Reading a bundle: the manifest, its proofs, and the files it vouches for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl.core.config.export import InputKind
from edgetl.core.errors import BundleError, ConfigError
from edgetl.core.files import parse_json, read_json, sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.typed_json import FieldError, parse_as
from edgetl.device.runtime.golden import (
    VARIANT_TOLERANCE_FACTOR,
    GoldenArchive,
    GoldenSet,
    check_tolerance,
)
from edgetl.device.runtime.onnx_file import OnnxFileError, read_onnx_file

MAX_PIXELS = 2**26
"""Largest image that a variant of fixed size may ask for."""


@dataclass(frozen=True)
class Variant:
    """One ONNX file of a bundle."""

    name: str
    file: str
    sha256: str
    bytes: int
    precision: str
    input: InputKind
    opset: int
    parity: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    """Timed where it was exported; a device has its own figures."""
    report: dict[str, Any] = field(default_factory=dict)
    """How it was made, and what speaks for and against it."""
    size: tuple[int, int] | None = None
    """(height, width) of the only images that it takes; None: of any size, or preprocessed tensors."""

    def __post_init__(self) -> None:
        if self.size is not None and not (
            min(self.size) > 0 and self.size[0] * self.size[1] <= MAX_PIXELS
        ):
            raise FieldError(
                f"variant {self.name} takes images of {self.size[0]} x {self.size[1]} pixels"
            )

    @property
    def tolerance(self) -> float | None:
        """Largest |logit difference| to PyTorch that a device may show; None where the bundle does not say."""
        tolerance: float | None = self.parity.get("path", {}).get("tolerance")
        return tolerance


class UnreadableModelError(BundleError):
    """A variant's file is the one that bundle.json names, and no ONNX model; other variants may be whole."""


@dataclass(frozen=True)
class FileEntry:
    """A file that the manifest vouches for."""

    file: str
    """Relative to the bundle."""
    sha256: str


@dataclass(frozen=True)
class GoldenEntry:
    """Where the reference images and logits lie."""

    images: list[FileEntry]
    logits: FileEntry
    tolerance: float


@dataclass(frozen=True)
class _RunEntry:
    id: str
    model: str


@dataclass(frozen=True)
class _WebEntry:
    files: list[FileEntry] = field(default_factory=list)


@dataclass(frozen=True)
class BundleContents:
    """bundle.json, as far as a device needs it."""

    run: _RunEntry
    labels: list[str]
    preprocessing: dict[str, Any]
    variants: list[Variant]
    golden: GoldenEntry
    recommended: str | None = None
    client: FileEntry | None = None
    cpp_client: FileEntry | None = None
    web: _WebEntry = field(default_factory=_WebEntry)


@dataclass(frozen=True)
class _PathParity:
    tolerance: float | None = None


@dataclass(frozen=True)
class _Parity:
    path: _PathParity = field(default_factory=_PathParity)


@dataclass(frozen=True)
class _Accuracy:
    top1: float | None = None


@dataclass(frozen=True)
class _VariantMetrics:
    """Those of a variant's figures that decide something on a device."""

    accuracy: _Accuracy
    parity: _Parity


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read; files are checked against it when they are asked for."""

    directory: BundleDirectory
    model: str
    run_id: str
    labels: list[str]
    preprocessing: Preprocessing
    variants: list[Variant]
    contents: BundleContents
    manifest: dict[str, Any]
    """`contents` as it was read, with the fields that only people read."""

    @property
    def recommended_variant_name(self) -> str | None:
        """Name of the variant to take; None where none met the limits that the bundle was exported with."""
        return (
            self.contents.recommended if "recommended" in self.manifest else self.variants[0].name
        )

    def select_variant(self, name: str | None = None) -> Variant:
        """The variant called `name`, or the recommended one.

        Raises:
            BundleError: there is no such variant, or none was asked for and the bundle recommends none.
        """
        wanted = name or self.recommended_variant_name
        if wanted is None:
            raise BundleError(
                f"{self.directory.path} recommends no variant: none met the limits it was exported with. "
                f"Choose with --variant: {', '.join(variant.name for variant in self.variants)}."
            )
        for variant in self.variants:
            if variant.name == wanted:
                return variant
        raise BundleError(
            f"{self.directory.path} has no variant {wanted!r}; it has: {', '.join(variant.name for variant in self.variants)}."
        )

    def variant_path(self, variant: Variant) -> Path:
        """The variant's ONNX file, its hash and metadata checked.

        Raises:
            BundleError: the file is missing, is not the one that was proven, or says other labels or preprocessing than the manifest.
        """
        path = self._checked_path(FileEntry(variant.file, variant.sha256))
        self._check_metadata(path, variant)
        return path

    def load_golden(self) -> GoldenSet:
        """The reference images, their hashes checked.

        Raises:
            BundleError: a file is missing or altered, or the tolerance would accept any answer.
        """
        entry = self.contents.golden
        files = [self._checked_path(image) for image in entry.images]
        sized = [variant.name for variant in self.variants if variant.size is not None]
        with GoldenArchive(self._checked_path(entry.logits), len(files), self.labels) as arrays:
            logits = arrays.read_logits()
            fixed = {name: arrays.read_logits(f"logits_{name}") for name in sized}
        check_tolerance(self.directory.manifest, entry.tolerance, logits)
        for variant in self.variants:
            check_tolerance(
                self.directory.manifest, variant.tolerance, logits, VARIANT_TOLERANCE_FACTOR
            )
        return GoldenSet(files, logits, entry.tolerance, fixed)

    def companion_files(self) -> list[Path]:
        """What travels with the model and is not needed to run it: clients, and the page for browsers where there is one.

        Raises:
            BundleError: one is missing or altered.
        """
        contents = self.contents
        return [
            self._checked_path(entry)
            for entry in (contents.client, contents.cpp_client, *contents.web.files)
            if entry is not None
        ]

    def _checked_path(self, entry: FileEntry) -> Path:
        path = self.directory.path / entry.file
        if "\0" in entry.file or not path.resolve().is_relative_to(self.directory.path.resolve()):
            raise BundleError(
                f"bundle.json names a file outside the bundle: {entry.file!r}. Do not use this bundle."
            )
        try:
            if not path.is_file():
                raise BundleError(
                    f"The bundle lacks {entry.file}: {path}. Copy the bundle again, or export it again."
                )
            digest = sha256_file(path)
        except OSError as cause:
            raise BundleError(
                f"{path} cannot be read ({cause.strerror or cause}). Copy the bundle again."
            ) from cause
        if digest != entry.sha256:
            raise BundleError(
                f"{path} is not the file that was proven: its SHA-256 differs from bundle.json. Copy or export it again."
            )
        return path

    def _check_metadata(self, path: Path, variant: Variant) -> None:
        try:
            content = read_onnx_file(path)
        except (OSError, OnnxFileError) as cause:
            raise UnreadableModelError(
                f"{path} is no ONNX model: {cause}. Export the bundle again."
            ) from cause
        if content.has_external_data:
            raise BundleError(
                f"{path} keeps weights in other files, which no hash in bundle.json covers. A bundle's files are self-contained: "
                "export the bundle again."
            )
        stated = read_metadata(content.metadata)
        expected = {
            "labels": self.labels,
            "preprocessing": self.preprocessing.to_json(),
            "input": variant.input,
            "run_id": self.run_id,
        }
        for key, value in expected.items():
            if key in stated and stated[key] != value:
                raise BundleError(
                    f"{path.name} and bundle.json do not agree on {key.replace('_id', '')}: one of both was changed after the export. "
                    "Copy the bundle again, or export it again."
                )


def open_bundle(path: Path) -> Bundle:
    """The bundle at `path`, or inside the run directory at `path`.

    Raises:
        BundleError: there is none, or its manifest is broken.
    """
    directory = BundleDirectory.find(path)
    manifest = read_json(directory.manifest, BundleError, "The bundle's manifest")
    try:
        contents = parse_as(BundleContents, manifest, "bundle.json", extra="ignore")
        for variant in contents.variants:
            parse_as(
                _VariantMetrics,
                {"accuracy": variant.accuracy, "parity": variant.parity},
                f"variant {variant.name}",
                extra="ignore",
            )
        preprocessing = Preprocessing.from_json(contents.preprocessing)
    except (FieldError, ConfigError) as cause:
        raise BundleError(
            f"{directory.manifest} is broken: {cause}. Copy the bundle again, or export it again."
        ) from cause
    names = [variant.name for variant in contents.variants]
    if not names or not contents.labels or not contents.golden.images:
        raise BundleError(
            f"{directory.manifest} names no variants, no labels or no reference images. Export the bundle again."
        )
    if len(set(names)) < len(names):
        raise BundleError(f"{directory.manifest} names a variant twice. Export the bundle again.")
    return Bundle(
        directory=directory,
        model=contents.run.model,
        run_id=contents.run.id,
        labels=contents.labels,
        preprocessing=preprocessing,
        variants=contents.variants,
        contents=contents,
        manifest=manifest,
    )


METADATA_PREFIX = "edgetl."


def read_metadata(properties: dict[str, str]) -> dict[str, Any]:
    """Read the metadata of an ONNX file written by edgetl: labels, preprocessing, input, version, run_id; empty for other files.

    Raises:
        BundleError: one of these is not JSON.
    """
    stated = {
        key.removeprefix(METADATA_PREFIX): value
        for key, value in properties.items()
        if key.startswith(METADATA_PREFIX)
    }
    try:
        return {key: parse_json(value) for key, value in stated.items()}
    except ValueError as cause:
        raise BundleError(
            f"The metadata of the ONNX file is broken ({cause}). Export it again."
        ) from cause
