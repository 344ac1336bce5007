"""Photos inside a page, as data: URIs: a page loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from pathlib import Path

_KINDS = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".gif": "gif",
    ".bmp": "bmp",
}
"""What every browser shows."""
_SMALL = 300_000
"""Bytes of a file that is embedded as it is."""
_QUALITY = 85
"""Of JPEG: the captions of a sheet stay sharp at a sixth of a PNG's bytes."""


def photo_uri(path: Path) -> str | None:
    """A small photo as it is, so that the browser turns it upright; None for a large one, and for what browsers do not show."""
    kind = _KINDS.get(path.suffix.lower())
    try:
        return _uri(kind, path.read_bytes()) if kind and path.stat().st_size <= _SMALL else None
    except OSError:
        return None


def sheet_uri(path: Path) -> str | None:
    """A plot of a run, as JPEG where it is large; None where it is missing or cannot be read."""
    from matplotlib.image import imread, imsave

    small = photo_uri(path)
    if small is not None or not path.is_file():
        return small
    written = io.BytesIO()
    try:
        imsave(written, imread(path), format="jpeg", pil_kwargs={"quality": _QUALITY})
    except (
        OSError,
        SyntaxError,
        ValueError,
    ):  # what Pillow raises for files that are cut short or no pictures
        return None
    return _uri("jpeg", written.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
