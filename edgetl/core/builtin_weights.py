"""The backbones that ship with edgetl: which there are, where they lie, and that they are what was shipped."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.errors import WeightsError
from edgetl.core.files import sha256_file

WEIGHTS_FILE, RECIPE_FILE, CARD_FILE, CHECKSUMS_FILE = (
    "weights.safetensors",
    "recipe.toml",
    "card.md",
    "SHA256SUMS",
)
"""Files of a shipped backbone's folder; the last one is in the format of `sha256sum`."""
FOLDER_SUFFIX = "-builtin"
"""What follows the architecture in the folder's name."""


def list_search_folders() -> tuple[Path, ...]:
    """Where shipped backbones may lie: inside an installed package, and at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "_models", package.parent / "models"


def find_builtin_folders() -> dict[str, Path]:
    """The folder of every architecture that ships with weights, by the architecture's name."""
    found: dict[str, Path] = {}
    for place in reversed(list_search_folders()):
        # Beside an installed package may lie anything, a stranger's `models` included.
        found |= {
            folder.parent.name.removesuffix(FOLDER_SUFFIX): folder.parent
            for folder in sorted(place.glob(f"*{FOLDER_SUFFIX}/{CHECKSUMS_FILE}"))
        }
    return dict(sorted(found.items()))


def find_builtin_weights(architecture: str) -> Path:
    """The weights file of an architecture, checked against the hash that it was shipped with.

    Raises:
        WeightsError: none ships for this architecture, or a byte is not as it was shipped.
    """
    folders = find_builtin_folders()
    if architecture not in folders:
        there = (
            f"only for {', '.join(folders)}: choose it with --model, or give"
            if folders
            else "for none in this version: give"
        )
        raise WeightsError(
            f"edgetl ships no weights for {architecture}, {there} --weights imagenet, none, or a file."
        )
    file = folders[architecture] / WEIGHTS_FILE
    try:
        lines = (folders[architecture] / CHECKSUMS_FILE).read_text(encoding="ascii").splitlines()
        intact = f"{sha256_file(file)}  {WEIGHTS_FILE}" in lines
    except (OSError, ValueError) as cause:
        raise WeightsError(
            f"The shipped weights {file} cannot be checked ({cause}). Install edgetl again."
        ) from cause
    if not intact:
        raise WeightsError(
            f"{file} is not the file that edgetl shipped (its SHA-256 differs from {CHECKSUMS_FILE}). Install edgetl again."
        )
    return file


def write_checksums(folder: Path) -> None:
    """Write the hashes of the folder's other files, which makes it a shipped backbone."""
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS_FILE
    )
    (folder / CHECKSUMS_FILE).write_text(
        "".join(f"{sha256_file(path)}  {path.name}\n" for path in files), encoding="ascii"
    )
