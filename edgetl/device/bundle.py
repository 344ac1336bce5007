"""Reading a bundle: the manifest, its proofs, and the files it vouches for."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config import InputKind
from edgetl.core.errors import BundleError, ConfigError
from edgetl.core.files import read_json, sha256_file
from edgetl.core.layout import BundleDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.images import load_image
from edgetl.device.preprocessing import resize_to


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
        if self.size is not None:
            object.__setattr__(self, "size", tuple(self.size))

    @property
    def tolerance(self) -> float | None:
        """Largest |logit difference| to PyTorch that a device may show; None where the bundle does not say."""
        tolerance: float | None = self.parity.get("path", {}).get("tolerance")
        return tolerance


@dataclass(frozen=True)
class Golden:
    """Reference images with the logits that the PyTorch model gives for them."""

    files: list[Path]
    logits: NDArray[np.float32]
    """[n, classes], in the order of `files`."""
    tolerance: float
    """Largest |logit difference| that still counts as the same answer."""
    fixed_size_logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """The same for the images resized to the size of a variant of fixed size, by the variant's name."""

    def images(self, variant: Variant | None = None) -> list[NDArray[np.uint8]]:
        """The files decoded, and resized for a variant of fixed size: uint8 [height, width, 3] each."""
        size = None if variant is None else variant.size
        return [resize_to(load_image(path), size) for path in self.files]

    def logits_for(self, variant: Variant) -> NDArray[np.float32]:
        """The PyTorch model's logits [n, classes] for what `images` gives a variant."""
        return self.logits if variant.size is None else self.fixed_size_logits[variant.name]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read; files are checked against it when they are asked for."""

    directory: BundleDirectory
    model: str
    run_id: str
    labels: list[str]
    preprocessing: Preprocessing
    variants: list[Variant]
    manifest: dict[str, Any]

    @property
    def recommended(self) -> str | None:
        """Name of the variant to take; None where none met the limits that the bundle was exported with."""
        name: str | None = self.manifest.get("recommended", self.variants[0].name)
        return name

    def variant(self, name: str | None = None) -> Variant:
        """The variant called `name`, or the recommended one.

        Raises:
            BundleError: there is no such variant, or none was asked for and the bundle recommends none.
        """
        wanted = name or self.recommended
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

    def file(self, variant: Variant) -> Path:
        """The variant's ONNX file, its hash checked.

        Raises:
            BundleError: the file is missing or is not the one that was proven.
        """
        return self._checked(variant.file, variant.sha256)

    def golden(self) -> Golden:
        """The reference images, their hashes checked.

        Raises:
            BundleError: a file is missing or altered.
        """
        entry = self.manifest["golden"]
        files = [self._checked(image["file"], image["sha256"]) for image in entry["images"]]
        logits_file = self._checked(entry["logits"]["file"], entry["logits"]["sha256"])
        with np.load(io.BytesIO(logits_file.read_bytes()), allow_pickle=False) as arrays:
            logits = self._golden_array(arrays, "logits", logits_file)
            fixed = {
                variant.name: self._golden_array(arrays, f"logits_{variant.name}", logits_file)
                for variant in self.variants
                if variant.size is not None
            }
        return Golden(files, logits, float(entry["tolerance"]), fixed)

    def _golden_array(self, arrays: Any, name: str, file: Path) -> NDArray[np.float32]:
        if name not in arrays:
            raise BundleError(f"{file} has no array {name!r}. Export again.")
        logits: NDArray[np.float32] = arrays[name].astype(np.float32)
        expected = (len(self.manifest["golden"]["images"]), len(self.labels))
        if logits.shape != expected:
            raise BundleError(f"{file} holds {name} of shape {logits.shape}, not {expected}. Export again.")
        return logits

    def others(self) -> list[Path]:
        """What travels with the model and is not needed to run it: clients, and the page for browsers where there is one.

        Raises:
            BundleError: one is missing or altered.
        """
        entries = [self.manifest.get("client"), self.manifest.get("cpp_client"), *self.manifest.get("web", {}).get("files", ())]
        return [self._checked(entry["file"], entry["sha256"]) for entry in entries if entry]

    def _checked(self, name: str, sha256: str) -> Path:
        path = self.directory.path / name
        if not path.resolve().is_relative_to(self.directory.path.resolve()):
            raise BundleError(f"bundle.json names a file outside the bundle: {name}. Do not use this bundle.")
        if not path.is_file():
            raise BundleError(f"The bundle lacks {name}: {path}. Copy the bundle again, or export it again.")
        if sha256_file(path) != sha256:
            raise BundleError(f"{path} is not the file that was proven: its SHA-256 differs from bundle.json. Copy or export it again.")
        return path


def open_bundle(path: Path) -> Bundle:
    """The bundle at `path`, or inside the run directory at `path`.

    Raises:
        BundleError: there is none, or its manifest is broken.
    """
    directory = BundleDirectory.find(path)
    manifest = read_json(directory.manifest, BundleError, "The bundle's manifest")
    try:
        variants = [Variant(**entry) for entry in manifest["variants"]]
        bundle = Bundle(
            directory=directory,
            model=manifest["run"]["model"],
            run_id=manifest["run"]["id"],
            labels=list(manifest["labels"]),
            preprocessing=Preprocessing.from_json(manifest["preprocessing"]),
            variants=variants,
            manifest=manifest,
        )
        manifest["golden"]["images"], manifest["golden"]["logits"], manifest["golden"]["tolerance"]
    except (KeyError, TypeError, ConfigError) as cause:
        raise BundleError(f"{directory.manifest} is broken: {cause!r}. Export the bundle again.") from cause
    if not variants or not bundle.labels:
        raise BundleError(f"{directory.manifest} names no variants or no labels. Export the bundle again.")
    return bundle


METADATA_PREFIX = "edgetl."


def read_metadata(properties: dict[str, str]) -> dict[str, Any]:
    """What an ONNX file written by edgetl says of itself: labels, preprocessing, input, version, run_id; empty for other files."""
    found = {key.removeprefix(METADATA_PREFIX): value for key, value in properties.items() if key.startswith(METADATA_PREFIX)}
    return {key: json.loads(value) for key, value in found.items()}
