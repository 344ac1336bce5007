"""Parse pages, and open them in a browser."""

from __future__ import annotations

import tempfile
from html.parser import HTMLParser
from pathlib import Path

from tests.helpers.browser import browser

VOID = {"meta", "link", "br", "path", "use", "img", "hr", "input"}


class Page(HTMLParser):
    """Content of a page: text, elements, ids and external links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.sections: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "every element must be closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} {name}"
            if name == "id":
                self.ids.append(value or "")
                self.sections += [value or ""] if tag == "section" else []
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(
                ("#", "data:")
            ):
                self.outside.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def seen_in_browser(html: str) -> int:
    """Open a page in Chromium and return the number of its figures.

    Fails if the page logs an error, loads a resource or is wider than a phone or a desktop screen,
    in light or dark mode.
    """
    # Not tmp_path: the path of the browser's lock file must be short.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Path(folder, "report.html")
        page.write_text(html, encoding="utf-8")
        with browser(Path(folder, "profile")) as chromium:
            backgrounds = set()
            for width in (1280, 390):
                for dark in (False, True):
                    chromium.open(page, width, dark)
                    assert chromium.evaluate(
                        "document.documentElement.scrollWidth <= innerWidth"
                    ), width
                    backgrounds.add(
                        chromium.evaluate("getComputedStyle(document.body).backgroundColor")
                    )
            assert len(backgrounds) == 2, "light and dark mode must differ"
            assert chromium.evaluate(
                "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
            )
            assert chromium.complaints == []
            assert all(url.startswith(("file:", "data:")) for url in chromium.requests)
            return int(chromium.evaluate("document.querySelectorAll('figure > svg').length"))
