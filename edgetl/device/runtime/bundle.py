"""Open a bundle: its manifest, and its files with their hashes checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetl.core.artifacts.bundle import (
    BundleRecord,
    FileRecord,
    VariantRecord,
    read_bundle_manifest,
)
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.errors import BundleError
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory, StrPath
from edgetl.core.runtimes import ONNXRUNTIME
from edgetl.device.runtime.golden import (
    VARIANT_TOLERANCE_FACTOR,
    GoldenArchive,
    GoldenSet,
    check_tolerance,
)
from edgetl.device.runtime.onnx_file import OnnxFile, OnnxFileError, read_onnx_file


class UnreadableModelError(BundleError):
    """A variant's file matches its hash in bundle.json, but is not an ONNX model.

    Other variants may be readable.
    """


@dataclass(frozen=True, repr=False)
class Bundle(BundleRecord):
    """Bundle whose files are checked against its manifest on access.

    It is accepted wherever a path is.
    """

    def __fspath__(self) -> str:
        return str(self.directory.path)

    def variant_path(self, variant: VariantRecord) -> Path:
        """Return the path of a variant's file after checking its hash, and an ONNX file's metadata.

        The files that run before and after it are checked too.

        Raises:
            BundleError: the file is missing, its hash does not match, or its metadata do not match
                the manifest.
        """
        path = self._checked_path(FileRecord(variant.file, variant.sha256))
        if variant.runtime == ONNXRUNTIME:
            self._check_metadata(path, _read_file(path), variant)
        if variant.split is not None:
            for record in variant.split.records:
                _read_file(self._checked_path(record))
        return path

    def variant_paths(self, variant: VariantRecord) -> tuple[Path, ...]:
        """Return the paths of all files that are needed to run a variant, checked like the first.

        Raises:
            BundleError: see `variant_path`.
        """
        extra_paths = (self._checked_path(record) for record in variant.extra_files)
        return (self.variant_path(variant), *extra_paths)

    def load_golden(self) -> GoldenSet:
        """Return the golden images and logits after checking their hashes.

        Raises:
            BundleError: a file is missing or altered, or the tolerance would accept any logits.
        """
        record = self.manifest.golden
        files = [self._checked_path(image) for image in record.images]
        logits_file = self._checked_path(record.logits)
        fixed_size_names = [variant.name for variant in self.variants if variant.size is not None]
        with GoldenArchive(logits_file, len(files), self.labels) as archive:
            logits = archive.read_logits()
            fixed_size_logits = {
                name: archive.read_logits(f"logits_{name}") for name in fixed_size_names
            }
            unknown_scores = {
                variant.name: archive.read_unknown_scores(variant.name)
                for variant in self.variants
                if variant.unknown is not None
            }
        check_tolerance(self.directory.manifest, record.tolerance, logits)
        for variant in self.variants:
            check_tolerance(
                self.directory.manifest, variant.tolerance, logits, VARIANT_TOLERANCE_FACTOR
            )
        return GoldenSet(files, logits, record.tolerance, fixed_size_logits, unknown_scores)

    def companion_files(self) -> list[Path]:
        """Return the files that are not needed to run the model: clients, and the web page if any.

        Raises:
            BundleError: a file is missing or altered.
        """
        return [self._checked_path(record) for record in self.manifest.companion_files]

    def _checked_path(self, record: FileRecord) -> Path:
        path = self.resolve_path(record.file)
        try:
            if not path.is_file():
                raise BundleError(
                    f"{record.file} is missing in the bundle: {path}. "
                    "Copy or export the bundle again."
                )
            digest = sha256_file(path)
        except OSError as cause:
            raise BundleError(
                f"Cannot read {path} ({cause.strerror or cause}). Copy the bundle again."
            ) from cause
        if digest != record.sha256:
            raise BundleError(
                f"The SHA-256 of {path} does not match bundle.json. "
                "Copy or export the bundle again."
            )
        return path

    def _check_metadata(self, path: Path, content: OnnxFile, variant: VariantRecord) -> None:
        metadata = ModelMetadata.from_properties(content.metadata)
        if metadata is None:
            return
        for name, value, expected in (
            ("labels", metadata.labels, self.labels),
            ("preprocessing", metadata.preprocessing, self.preprocessing),
            ("input", metadata.input, variant.input),
            ("run", metadata.run_id, self.run_id),
            ("temperature", metadata.temperature, variant.temperature),
            ("unknown", metadata.unknown, variant.detector),
            ("prediction sets", metadata.prediction_sets, variant.prediction_sets),
            ("split", metadata.split, None if variant.split is None else variant.split.files),
        ):
            if value != expected:
                raise BundleError(
                    f"{path.name} and bundle.json differ in {name}: "
                    "one of them was changed after the export. Copy or export the bundle again."
                )


def _read_file(path: Path) -> OnnxFile:
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
    return content


def open_bundle(path: StrPath) -> Bundle:
    """Open the bundle at `path`, or in the run directory at `path`.

    The manifest is read and checked here, the other files when they are used.

    Raises:
        BundleError: there is no bundle, or its manifest is broken.
    """
    directory = BundleDirectory.find(Path(path))
    return Bundle(directory, read_bundle_manifest(directory))
