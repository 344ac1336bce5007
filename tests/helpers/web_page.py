"""The page of a bundle as a person meets it: in Chromium, from a plain web server."""

from __future__ import annotations

import shutil
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import CHROMIUM, Browser

NPM, NODE = shutil.which("npm"), shutil.which("node")
needs_npm = pytest.mark.skipif(NPM is None, reason="no npm")
needs_browser = pytest.mark.skipif(CHROMIUM is None or NPM is None, reason="no Chromium, or no npm")
ANOTHER_DECODER = 0.005
"""Probability: what is shown is rounded, and a browser turns four inks into RGB in its own way."""


class Page:
    """Buttons, keys, drops; and what is then to be read."""

    def __init__(self, open_browser: Browser, folder: Path) -> None:
        self.browser = open_browser
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def visit(self, width: int = 1100, dark: bool = False) -> None:
        self.browser.visit(self.url, width, dark)
        self.browser.call("Page.setInterceptFileChooserDialog", enabled=True)
        self.wait_for("document.getElementById('status').textContent === 'Ready.'")

    def wait_for(self, condition: str, seconds: float = 60) -> None:
        give_up = time.monotonic() + seconds
        while not self.browser.evaluate(condition):
            assert time.monotonic() < give_up, self.browser.evaluate("document.body.innerText")
            time.sleep(0.02)

    def text(self, name: str) -> str:
        return str(self.browser.evaluate(f"document.getElementById('{name}').innerText"))

    def label(self, photo: Path, how: str) -> tuple[str, dict[str, float]]:
        """The label shown, and the shares of those ranked; or what is wrong, and nothing."""
        self.browser.evaluate(
            "element('label').textContent = element('ranking').textContent = '';"
            "element('answer').hidden = true; say('')"
        )
        if how == "drop":
            self.browser.drop(photo)
        else:
            if how == "click":
                self.browser.click("choose")
            elif how == "touch":
                self.browser.tap("photograph")
            else:
                for _ in range(6):
                    self.browser.press("Tab")
                    if self.browser.evaluate("document.activeElement.id") == "choose":
                        break
                self.browser.press("Enter")
            self.browser.choose(photo)
        self.wait_for(
            "(element('label').textContent && !element('answer').hidden) || "
            "element('status').classList.contains('bad')"
        )
        if self.browser.evaluate("element('answer').hidden"):
            return self.text("status"), {}
        rows = self.browser.evaluate(
            "[...document.querySelectorAll('#ranking li')].map(row => [...row.querySelectorAll('span')].map(one => one.textContent))"
        )
        return self.text("label"), {
            name: float(share.removeprefix("< ").removesuffix("%")) / 100 for name, share, _ in rows
        }


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *told: Any) -> None:
        """Nothing: what was asked for is the browser's to tell."""


def agrees(
    shown: tuple[str, dict[str, float]],
    expected: dict[str, float],
    tolerance: float = ANOTHER_DECODER,
) -> bool:
    """Whether what is shown is what was computed, and the label that of PyTorch."""
    label, shares = shown
    assert shares, label
    assert all(
        share == pytest.approx(expected[name], abs=tolerance) for name, share in shares.items()
    ), (shares, expected)
    return label == max(expected, key=expected.__getitem__)
