"""Distinguish edgetl's files in a run directory or bundle from files of others.

`--force` replaces a directory only if every file in it is one that edgetl writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgetl.core.files import read_json_of_kind
from edgetl.core.typed_json import JsonObject

_RUN_FILES = re.compile(
    r"""
      (config|metrics|mlflow)\.json | (split|rejected|predictions|test_predictions)\.csv | history\.jsonl
    | weights\.safetensors | report\.html | \.lock
    | \.bundle\.lock | \.bundle\.partial-[^/]+/.+
    | plots/(curves|confusion_matrix|mistakes|flips_[\w-]+)\.png
    | checkpoint/state\.safetensors
    | tensorboard/events\.out\.tfevents\.[^/]+
    | bench/\d{8}T\d{6}Z-[\w.-]+(\.json|/.+)
    | evaluation/\d{8}T\d{6}Z-[\w.-]+\.json
    """,
    re.VERBOSE,
)
"""Paths in a run directory that edgetl writes; results count only under default names."""
_TEMPORARY_FILE = re.compile(
    r"(?P<folder>(?:[^/]+/)?)\.(?P<name>[^/]+?)\.[a-z0-9_]{8}(?:\.[a-z]+)?"
)
"""Temporary file of an atomic write whose process was killed."""
_MAX_LISTED_FILES = 5
_BUNDLE_FILES = frozenset({"bundle.json", "README.md"})


def find_foreign_run_files(run: Path) -> list[str]:
    """Return the files below a run directory that edgetl did not write, as sorted relative paths.

    A folder `bundle` counts as edgetl's only if `find_foreign_bundle_files` returns nothing for it.
    """
    bundle = run / "bundle"
    names = [name for name in _iterate_files(run) if not name.startswith("bundle/")]
    foreign = [name for name in names if not _is_run_file(name)]
    if bundle.is_symlink():
        foreign.append("bundle")
    elif bundle.is_dir():
        manifest = read_json_of_kind(bundle / "bundle.json", "bundle")
        foreign += [f"bundle/{name}" for name in find_foreign_bundle_files(bundle, manifest)]
    return sorted(foreign)


def find_foreign_bundle_files(bundle: Path, manifest: JsonObject | None) -> list[str]:
    """Return the files below a bundle that its manifest does not name, as sorted relative paths.

    All files are foreign if there is no manifest.
    """
    bundle_files = set(_iterate_manifest_files(manifest))
    if manifest is not None:
        bundle_files |= _BUNDLE_FILES
    return sorted(name for name in _iterate_files(bundle) if name not in bundle_files)


def describe_foreign_files(path: Path, foreign: Sequence[str]) -> str:
    """Return the start of a message that lists the first foreign files and counts the rest."""
    listed = ", ".join(foreign[:_MAX_LISTED_FILES])
    if len(foreign) > _MAX_LISTED_FILES:
        listed += f" and {len(foreign) - _MAX_LISTED_FILES} more"
    return f"{path} contains files that edgetl did not write ({listed})"


def _is_run_file(name: str) -> bool:
    temporary = _TEMPORARY_FILE.fullmatch(name)
    if temporary:
        name = temporary["folder"] + temporary["name"]
    return _RUN_FILES.fullmatch(name) is not None


def _iterate_files(folder: Path) -> Iterator[str]:
    """Yield the relative path of every file and link below `folder`; links are not followed."""
    for parent, directories, files in os.walk(folder):
        links = [name for name in directories if Path(parent, name).is_symlink()]
        for name in (*files, *links):
            yield Path(parent, name).relative_to(folder).as_posix()


def _iterate_manifest_files(value: object) -> Iterator[str]:
    """Yield the value of every key `file` in a manifest, at any depth."""
    if isinstance(value, dict):
        if isinstance(value.get("file"), str):
            yield value["file"]
        for part in value.values():
            yield from _iterate_manifest_files(part)
    elif isinstance(value, list):
        for part in value:
            yield from _iterate_manifest_files(part)
