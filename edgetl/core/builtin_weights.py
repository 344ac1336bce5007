"""Pretrained backbones shipped with edgetl, with their location and integrity check."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import WeightsError
from edgetl.core.files import sha256_file

WEIGHTS_FILE, RECIPE_FILE, CARD_FILE, CHECKSUMS_FILE = (
    "weights.safetensors",
    "recipe.toml",
    "card.md",
    "SHA256SUMS",
)
"""Files in the folder of a shipped backbone; the last one is in the format of `sha256sum`."""
FOLDER_SUFFIX = "-builtin"
"""Suffix of a folder's name after the architecture."""


def list_search_folders() -> tuple[Path, ...]:
    """Return the search path: inside an installed package, and at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "_models", package.parent / "models"


def find_builtin_folders() -> dict[str, Path]:
    """Return the folders of all shipped backbones, by architecture."""
    folders: dict[str, Path] = {}
    for search_folder in reversed(list_search_folders()):
        # The package wins, since an unrelated folder `models` may exist beside an installed one.
        folders |= {
            checksums.parent.name.removesuffix(FOLDER_SUFFIX): checksums.parent
            for checksums in sorted(search_folder.glob(f"*{FOLDER_SUFFIX}/{CHECKSUMS_FILE}"))
        }
    return dict(sorted(folders.items()))


def find_builtin_weights(architecture: str) -> Path:
    """Return the weights file of an architecture after checking its SHA-256.

    Raises:
        WeightsError: No weights are shipped for this architecture, or the file was altered.
    """
    folders = find_builtin_folders()
    if architecture not in folders:
        hint = "Use {weights} auto, none, or a file."
        if folders:
            hint = f"Use {{weights}} auto, none, or a file, or {{model}} {' or '.join(folders)}."
        raise WeightsError(f"edgetl ships no weights for {architecture}. {hint}", FinetuneConfig)
    file = folders[architecture] / WEIGHTS_FILE
    try:
        lines = (folders[architecture] / CHECKSUMS_FILE).read_text(encoding="ascii").splitlines()
        is_intact = f"{sha256_file(file)}  {WEIGHTS_FILE}" in lines
    except (OSError, ValueError) as cause:
        raise WeightsError(
            f"Cannot check the shipped weights {file} ({cause}). Install edgetl again."
        ) from cause
    if not is_intact:
        raise WeightsError(
            f"{file} was altered: its SHA-256 does not match {CHECKSUMS_FILE}. Install edgetl again."
        )
    return file


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS for the other files of a backbone's folder."""
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS_FILE
    )
    (folder / CHECKSUMS_FILE).write_text(
        "".join(f"{sha256_file(path)}  {path.name}\n" for path in files), encoding="ascii"
    )
