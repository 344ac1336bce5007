"""Self-contained HTML page and its building blocks. All `str` arguments are escaped."""

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
"""Marker by which a page written by edgetl is recognized."""
MARKDOWN_GENERATOR = "<!-- generator: edgetl "
"""The same in Markdown, at the beginning of the first line."""
_TEMPLATES = Path(__file__).parent / "templates"

Tone = Literal["good", "bad", "warn", ""]


@dataclass(frozen=True)
class Badge:
    """A short highlighted text."""

    text: str
    kind: Tone = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table or a definition list."""

    text: str
    small: str = ""
    """Second line, in a smaller font."""
    tooltip: str = ""
    """Text shown on hover."""
    badges: tuple[Badge, ...] = ()
    bar_share: float | None = None
    """Length of a bar below the text, 0 to 1."""

    @property
    def plain_text(self) -> str:
        """Content as one line of text; intervals are in brackets already."""
        words = " ".join(filter(None, (self.text, *(badge.text for badge in self.badges))))
        if not self.small or self.small.startswith("["):
            return f"{words} {self.small}".strip()
        return f"{words} ({self.small})"


@dataclass(frozen=True)
class Column:
    """A table column."""

    heading: str
    kind: Literal["number", "short", "mono", ""] = ""
    tooltip: str = ""
    """Text shown on hover."""


@dataclass(frozen=True)
class TableRow:
    """A table row; its first cell is the row heading."""

    cells: tuple[Cell, ...]
    kind: Literal["differs", "dim", ""] = ""


@dataclass(frozen=True)
class RowGroup:
    """Table rows with a common heading."""

    rows: tuple[TableRow, ...]
    heading: str = ""
    subheading: str = ""
    """Second heading, for a part of a larger group."""
    badges: tuple[Badge, ...] = ()
    """Badges after the subheading."""


@dataclass(frozen=True)
class Section:
    """A section of the page with its entry in the navigation."""

    anchor: str
    title: str
    blocks: tuple[Markup, ...]


def render_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Render the page; sections without blocks are omitted."""
    css = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))
    visible = [section for section in sections if section.blocks]
    page = (
        _environment()
        .get_template("page.html")
        .render(title=title, lead=lead, sections=visible, css=css, version=__version__)
    )
    return escape_control_characters(page)


def is_edgetl_page(path: Path) -> bool:
    """Return whether the file at `path` is a page written by edgetl."""
    try:
        with path.open("rb") as stream:
            start = stream.read(1024)
    except OSError:
        return False
    return GENERATOR.encode() in start or start.startswith(MARKDOWN_GENERATOR.encode())


def write_page(path: Path, page: Callable[[], str], force: bool = False) -> None:
    """Write a page, in HTML or Markdown, to a file.

    Args:
        path: the file to write.
        page: renders the page; called only if `path` may be written.
        force: overwrite a file that edgetl did not write.

    Raises:
        ConfigError: `path` is a folder, is a file not written by edgetl, or cannot be written.
    """
    if path.is_dir():
        raise ConfigError(
            f"--output must be a file, got the folder {path}. Use {path / 'report.html'}."
        )
    if path.exists() and not force and not is_edgetl_page(path):
        raise ConfigError(
            f"{path} already exists and was not written by edgetl. "
            "Choose another --output, or overwrite it with --force."
        )
    text = page()
    try:
        write_text(path, text)
    except OSError as cause:
        raise ConfigError(
            f"Cannot write {path} ({cause.strerror or cause}). Choose another --output."
        ) from cause


def paragraph(
    text: str, kind: Literal["note", "lead", ""] = "", badges: Sequence[Badge] = ()
) -> Markup:
    """Render a paragraph with optional badges before the text."""
    return _render_block("paragraph", text, kind, badges)


def heading(text: str) -> Markup:
    """Render a heading within a section."""
    return _render_block("heading", text)


def bullets(items: Sequence[str]) -> Markup:
    """Render a bulleted list."""
    return _render_block("bullets", items)


def table(label: str, columns: Sequence[Column], rows: Sequence[TableRow | RowGroup]) -> Markup:
    """Render a table, which scrolls horizontally on narrow screens."""
    groups = [row for row in rows if isinstance(row, RowGroup)]
    ungrouped = tuple(row for row in rows if isinstance(row, TableRow))
    if ungrouped:
        groups.insert(0, RowGroup(ungrouped))
    return _render_block("table", label, columns, groups)


def definition_list(pairs: Sequence[tuple[str, Cell]]) -> Markup:
    """Render a list of names with their values."""
    return _render_block("facts", pairs)


def card(title: str, keys: Sequence[tuple[str, Cell]], blocks: Sequence[Markup]) -> Markup:
    """Render a card: a title, a few prominent values, and blocks."""
    return _render_block("card", title, keys, blocks)


def grid(kind: Literal["cards", "figures"], blocks: Sequence[Markup]) -> Markup:
    """Render blocks side by side where the screen is wide enough."""
    return _render_block("grid", kind, blocks)


def figure(
    title: str, svg: Markup, key: Sequence[tuple[Markup, str]] = (), caption: str = ""
) -> Markup:
    """Render a drawing with its legend and caption."""
    return _render_block("figure", title, svg, key, caption)


def picture(title: str, source: str, alt: str) -> Markup:
    """Render a bitmap from a data: URI, which scrolls horizontally on narrow screens."""
    return _render_block("picture", title, source, alt)


def thumbnails(items: Sequence[tuple[str, str]]) -> Markup:
    """Render small images side by side, each from a data: URI and a name."""
    return _render_block("thumbnails", items)


def details(summary: str, blocks: Sequence[Markup]) -> Markup:
    """Render blocks that are collapsed until the reader opens them."""
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
"""Image formats that every browser supports, by file suffix."""
_MAX_EMBEDDED_BYTES = 300_000
"""Maximum size of an image file that is embedded unchanged."""
_JPEG_QUALITY = 85
"""JPEG quality: captions stay sharp at a sixth of the size of a PNG."""


def photo_uri(path: Path) -> str | None:
    """Return the unchanged image as a data: URI; its EXIF orientation is left to the browser.

    None if the file is too large, missing, or not in a format that every browser supports.
    """
    subtype = _MIME_SUBTYPES.get(path.suffix.lower())
    try:
        if subtype is None or path.stat().st_size > _MAX_EMBEDDED_BYTES:
            return None
        return _to_data_uri(subtype, path.read_bytes())
    except OSError:
        return None


def plot_uri(path: Path) -> str | None:
    """Return a plot as a data: URI, converted to JPEG if it is large.

    None if the file is missing or cannot be read.
    """
    from matplotlib.image import imread, imsave

    uri = photo_uri(path)
    if uri is not None or not path.is_file():
        return uri
    buffer = io.BytesIO()
    try:
        imsave(buffer, imread(path), format="jpeg", pil_kwargs={"quality": _JPEG_QUALITY})
    except (OSError, SyntaxError, ValueError):
        # Pillow raises these for truncated files and files that are not images.
        return None
    return _to_data_uri("jpeg", buffer.getvalue())


def _to_data_uri(subtype: str, content: bytes) -> str:
    return f"data:image/{subtype};base64,{base64.b64encode(content).decode()}"
