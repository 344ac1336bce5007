"""One self-contained HTML page: the shell, and the blocks that sections are made of. Everything given as `str` is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgetl import __version__
from edgetl.core.errors import ConfigError
from edgetl.core.files import write_text
from edgetl.core.untrusted_text import escape_control_characters

GENERATOR = '<meta name="generator" content="edgetl '
"""By this a page is known as one of edgetl's own."""
_TEMPLATES = Path(__file__).parent / "templates"

Tone = Literal["good", "bad", "warn", ""]


@dataclass(frozen=True)
class Badge:
    """A word that stands out."""

    text: str
    kind: Tone = ""


@dataclass(frozen=True)
class Cell:
    """One entry of a table or a list of facts."""

    text: str
    small: str = ""
    """A second, quieter line."""
    tooltip: str = ""
    """What a pointer shows on it."""
    badges: tuple[Badge, ...] = ()
    bar_share: float | None = None
    """Drawn as a bar, 0 to 1."""


@dataclass(frozen=True)
class Column:
    """A table's column."""

    heading: str
    kind: Literal["number", "short", "mono", ""] = ""
    tooltip: str = ""
    """What a pointer shows on it."""


@dataclass(frozen=True)
class TableRow:
    """A table's row; its first cell is its heading."""

    cells: tuple[Cell, ...]
    kind: Literal["differs", "dim", ""] = ""


@dataclass(frozen=True)
class RowGroup:
    """Rows under a common heading."""

    rows: tuple[TableRow, ...]
    heading: str = ""
    subheading: str = ""
    """Of a part of the group."""
    badges: tuple[Badge, ...] = ()
    """Beside the subheading."""


@dataclass(frozen=True)
class Section:
    """A part of the page with its place in the contents."""

    anchor: str
    title: str
    blocks: tuple[Markup, ...]


def render_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page; sections without blocks are left out."""
    css = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))
    shown = [section for section in sections if section.blocks]
    page = (
        _environment()
        .get_template("page.html")
        .render(title=title, lead=lead, sections=shown, css=css, version=__version__)
    )
    return escape_control_characters(page)


def is_edgetl_page(path: Path) -> bool:
    """Whether the file at `path` is a page that edgetl wrote."""
    try:
        with path.open("rb") as stream:
            return GENERATOR.encode() in stream.read(1024)
    except OSError:
        return False


def write_page(path: Path, page: Callable[[], str], force: bool = False) -> None:
    """Write a page; `page` makes it once it is clear that it may be written.

    Raises:
        ConfigError: `path` is a file that edgetl did not write and `force` is not given, or it cannot be written.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Give a file: --output {path / 'report.html'}.")
    if path.exists() and not force and not is_edgetl_page(path):
        raise ConfigError(
            f"{path} exists and was not written by edgetl. Choose another --output, or overwrite it with --force."
        )
    text = page()
    try:
        write_text(path, text)
    except OSError as cause:
        raise ConfigError(
            f"The page cannot be written to {path} ({cause.strerror or cause}). Choose another --output."
        ) from cause


def paragraph(
    text: str, kind: Literal["note", "lead", ""] = "", badges: Sequence[Badge] = ()
) -> Markup:
    """Running text, badges before it."""
    return _render_block("paragraph", text, kind, badges)


def heading(text: str) -> Markup:
    """A heading within a section."""
    return _render_block("heading", text)


def bullets(items: Sequence[str]) -> Markup:
    """A list."""
    return _render_block("bullets", items)


def table(label: str, columns: Sequence[Column], rows: Sequence[TableRow | RowGroup]) -> Markup:
    """A table that scrolls within itself where the screen is narrow."""
    loose = tuple(row for row in rows if isinstance(row, TableRow))
    groups = [
        *([RowGroup(loose)] if loose else []),
        *(row for row in rows if isinstance(row, RowGroup)),
    ]
    return _render_block("table", label, columns, groups)


def definition_list(pairs: Sequence[tuple[str, Cell]]) -> Markup:
    """Names and what they are."""
    return _render_block("facts", pairs)


def card(title: str, keys: Sequence[tuple[str, Cell]], blocks: Sequence[Markup]) -> Markup:
    """A box with a few large figures and text."""
    return _render_block("card", title, keys, blocks)


def grid(kind: Literal["cards", "figures"], blocks: Sequence[Markup]) -> Markup:
    """Blocks side by side where there is room."""
    return _render_block("grid", kind, blocks)


def figure(
    title: str, svg: Markup, key: Sequence[tuple[Markup, str]] = (), caption: str = ""
) -> Markup:
    """A drawing with its key in text that wraps."""
    return _render_block("figure", title, svg, key, caption)


def picture(title: str, source: str, alt: str, caption: str = "") -> Markup:
    """A photo or a sheet of them, given as a data: URI; a wide one scrolls within itself where the screen is narrow."""
    return _render_block("picture", title, source, alt, caption)


def thumbnails(items: Sequence[tuple[str, str]]) -> Markup:
    """Small photos side by side: (data: URI, name)."""
    return _render_block("thumbnails", items)


def details(summary: str, blocks: Sequence[Markup]) -> Markup:
    """What is shown when asked for."""
    return _render_block("folded", summary, blocks)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        lstrip_blocks=False,
    )


def _render_block(name: str, *arguments: object) -> Markup:
    return Markup(getattr(_environment().get_template("blocks.html").module, name)(*arguments))


_MIME_SUBTYPES = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".gif": "gif",
    ".bmp": "bmp",
}
"""What every browser shows."""
_MAX_EMBEDDED_BYTES = 300_000
"""Bytes of a file that is embedded as it is."""
_JPEG_QUALITY = 85
"""Of JPEG: the captions of a sheet stay sharp at a sixth of a PNG's bytes."""


def photo_uri(path: Path) -> str | None:
    """A small photo as it is, so that the browser turns it upright; None for a large one, and for what browsers do not show."""
    kind = _MIME_SUBTYPES.get(path.suffix.lower())
    try:
        return (
            _to_data_uri(kind, path.read_bytes())
            if kind and path.stat().st_size <= _MAX_EMBEDDED_BYTES
            else None
        )
    except OSError:
        return None


def plot_uri(path: Path) -> str | None:
    """A plot of a run, as JPEG where it is large; None where it is missing or cannot be read."""
    from matplotlib.image import imread, imsave

    small = photo_uri(path)
    if small is not None or not path.is_file():
        return small
    written = io.BytesIO()
    try:
        imsave(written, imread(path), format="jpeg", pil_kwargs={"quality": _JPEG_QUALITY})
    except (
        OSError,
        SyntaxError,
        ValueError,
    ):  # what Pillow raises for files that are cut short or no pictures
        return None
    return _to_data_uri("jpeg", written.getvalue())


def _to_data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
