"""Read a bundle: its manifest, and its files with their hashes checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl.core.config.export import InputKind
from edgetl.core.errors import BundleError, ConfigError
from edgetl.core.files import parse_json, read_json, sha256_file
from edgetl.core.paths import BundleDirectory, StrPath
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
"""Largest input image of a variant of fixed size, in pixels."""


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
    """Latency on the machine that exported the bundle."""
    report: dict[str, Any] = field(default_factory=dict)
    """Details of the export of this variant."""
    size: tuple[int, int] | None = None
    """Fixed input image size (height, width); None for any size or preprocessed tensors."""

    def __post_init__(self) -> None:
        if self.size is not None and not (
            min(self.size) > 0 and self.size[0] * self.size[1] <= MAX_PIXELS
        ):
            raise FieldError(
                f"the image size of variant {self.name} must be above 0 and at most {MAX_PIXELS} "
                f"pixels, got {self.size[0]} x {self.size[1]}"
            )

    @property
    def tolerance(self) -> float | None:
        """Largest accepted |logit difference| to PyTorch on a device; None if not in the bundle."""
        tolerance: float | None = self.parity.get("path", {}).get("tolerance")
        return tolerance


class UnreadableModelError(BundleError):
    """A variant's file matches its hash in bundle.json, but is not an ONNX model.

    Other variants may be readable.
    """


@dataclass(frozen=True)
class FileEntry:
    """File of the bundle with its hash."""

    file: str
    """Path relative to the bundle."""
    sha256: str


@dataclass(frozen=True)
class GoldenEntry:
    """Files of the golden images and their logits."""

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
    """Fields of bundle.json that a device needs."""

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
    """Metrics of a variant that are used on a device."""

    accuracy: _Accuracy
    parity: _Parity


@dataclass(frozen=True)
class Bundle:
    """Bundle with a parsed manifest. Files are checked against it on access.

    It is accepted wherever a path is.
    """

    directory: BundleDirectory
    model: str
    run_id: str
    labels: list[str]
    preprocessing: Preprocessing
    variants: list[Variant]
    contents: BundleContents
    manifest: dict[str, Any]
    """bundle.json as read, including fields that are not in `contents`."""

    def __fspath__(self) -> str:
        return str(self.directory.path)

    @property
    def recommended_variant_name(self) -> str | None:
        """Name of the recommended variant; None if none met the limits of the export."""
        if "recommended" in self.manifest:
            return self.contents.recommended
        return self.variants[0].name

    def select_variant(self, name: str | None = None) -> Variant:
        """Return the variant called `name`, or the recommended one.

        Raises:
            BundleError: there is no such variant, or no name and no recommended variant.
        """
        name = name or self.recommended_variant_name
        available = ", ".join(variant.name for variant in self.variants)
        if name is None:
            raise BundleError(
                f"{self.directory.path} recommends no variant: none met the limits of the export. "
                f"Choose with --variant: {available}."
            )
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise BundleError(f"{self.directory.path} has no variant {name!r}. Available: {available}.")

    def variant_path(self, variant: Variant) -> Path:
        """Return the path of a variant's ONNX file after checking its hash and metadata.

        Raises:
            BundleError: the file is missing, its hash does not match, or its labels or
                preprocessing do not match the manifest.
        """
        path = self._checked_path(FileEntry(variant.file, variant.sha256))
        self._check_metadata(path, variant)
        return path

    def load_golden(self) -> GoldenSet:
        """Return the golden images and logits after checking their hashes.

        Raises:
            BundleError: a file is missing or altered, or the tolerance would accept any logits.
        """
        entry = self.contents.golden
        files = [self._checked_path(image) for image in entry.images]
        fixed_size_names = [variant.name for variant in self.variants if variant.size is not None]
        with GoldenArchive(self._checked_path(entry.logits), len(files), self.labels) as archive:
            logits = archive.read_logits()
            fixed_size_logits = {
                name: archive.read_logits(f"logits_{name}") for name in fixed_size_names
            }
        check_tolerance(self.directory.manifest, entry.tolerance, logits)
        for variant in self.variants:
            check_tolerance(
                self.directory.manifest, variant.tolerance, logits, VARIANT_TOLERANCE_FACTOR
            )
        return GoldenSet(files, logits, entry.tolerance, fixed_size_logits)

    def companion_files(self) -> list[Path]:
        """Return the files that are not needed to run the model: clients, and the web page if any.

        Raises:
            BundleError: a file is missing or altered.
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
                f"bundle.json refers to a file outside the bundle: {entry.file!r}. "
                "Do not use this bundle."
            )
        try:
            if not path.is_file():
                raise BundleError(
                    f"{entry.file} is missing in the bundle: {path}. "
                    "Copy or export the bundle again."
                )
            digest = sha256_file(path)
        except OSError as cause:
            raise BundleError(
                f"Cannot read {path} ({cause.strerror or cause}). Copy the bundle again."
            ) from cause
        if digest != entry.sha256:
            raise BundleError(
                f"The SHA-256 of {path} does not match bundle.json. "
                "Copy or export the bundle again."
            )
        return path

    def _check_metadata(self, path: Path, variant: Variant) -> None:
        try:
            content = read_onnx_file(path)
        except (OSError, OnnxFileError) as cause:
            raise UnreadableModelError(
                f"{path} is not an ONNX model: {cause}. Export the bundle again."
            ) from cause
        if content.has_external_data:
            raise BundleError(
                f"{path} stores weights in other files, which no hash in bundle.json covers. "
                "Export the bundle again: its files must be self-contained."
            )
        metadata = read_metadata(content.metadata)
        expected = {
            "labels": self.labels,
            "preprocessing": self.preprocessing.to_json(),
            "input": variant.input,
            "run_id": self.run_id,
        }
        for key, value in expected.items():
            if key in metadata and metadata[key] != value:
                raise BundleError(
                    f"{path.name} and bundle.json differ in {key.replace('_id', '')}: "
                    "one of them was changed after the export. Copy or export the bundle again."
                )


def open_bundle(path: StrPath) -> Bundle:
    """Open the bundle at `path`, or in the run directory at `path`.

    The manifest is read and checked here, the other files when they are used.

    Raises:
        BundleError: there is no bundle, or its manifest is broken.
    """
    directory = BundleDirectory.find(Path(path))
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
            f"{directory.manifest} is broken: {cause}. Copy or export the bundle again."
        ) from cause
    names = [variant.name for variant in contents.variants]
    if not names or not contents.labels or not contents.golden.images:
        raise BundleError(
            f"{directory.manifest} has no variants, no labels or no golden images. "
            "Export the bundle again."
        )
    if len(set(names)) < len(names):
        raise BundleError(
            f"{directory.manifest} contains a variant twice. Export the bundle again."
        )
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
    """Parse the metadata of an ONNX file written by edgetl; empty for other files.

    The keys are labels, preprocessing, input, version and run_id.

    Raises:
        BundleError: a value is not JSON.
    """
    encoded = {
        key.removeprefix(METADATA_PREFIX): value
        for key, value in properties.items()
        if key.startswith(METADATA_PREFIX)
    }
    try:
        return {key: parse_json(value) for key, value in encoded.items()}
    except ValueError as cause:
        raise BundleError(
            f"The metadata of the ONNX file is broken ({cause}). Export it again."
        ) from cause
