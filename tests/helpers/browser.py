"""Control headless Chromium over its debugging pipe, with the standard library only."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for path in map(shutil.which, _NAMES) if path is not None), None)
"""Path of the browser, or None if it is not installed."""


class Browser:
    """A page of the browser, with its console messages, requests and file dialogs."""

    def __init__(self, read_descriptor: int, write_descriptor: int) -> None:
        self._read_descriptor = read_descriptor
        self._write_descriptor = write_descriptor
        self._buffer = b""
        self._last_id = 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.choosers: list[int] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._call(method, session=self._session, **parameters)

    def open(self, path: Path, width: int, dark: bool) -> None:
        self.visit(path.absolute().as_uri(), width, dark)

    def visit(self, url: str, width: int, dark: bool) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.call("Page.navigate", url=url)
        self.evaluate(
            "new Promise(resolve => document.readyState === 'complete' ? resolve(1)"
            " : addEventListener('load', () => resolve(1)))"
        )

    def evaluate(self, expression: str) -> Any:
        reply = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def press(self, key: str) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"Tab": 9, "Enter": 13}[key]
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **(text if kind == "keyDown" else {}),
            )

    def click(self, name: str) -> None:
        """Click the center of the element with this id."""
        x, y = self._middle(name)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, name: str) -> None:
        """Tap the center of the element; needs `Emulation.setTouchEmulationEnabled`."""
        x, y = self._middle(name)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def _middle(self, name: str) -> tuple[float, float]:
        box = f"document.getElementById('{name}').getBoundingClientRect()"
        x = self.evaluate(f"{box}.x + {box}.width / 2")
        y = self.evaluate(f"{box}.y + {box}.height / 2")
        return x, y

    def choose(self, file: Path) -> None:
        """Select a file in the open file dialog; needs `Page.setInterceptFileChooserDialog`."""
        deadline = time.monotonic() + 10
        while not self.choosers:
            assert time.monotonic() < deadline, "no file dialog was opened"
            self.evaluate("0")
        self.call(
            "DOM.setFileInputFiles", files=[str(file.absolute())], backendNodeId=self.choosers.pop()
        )

    def drop(self, file: Path) -> None:
        data = {"items": [], "files": [str(file.absolute())], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=200, y=300, data=data)

    def screenshot(self, path: Path) -> None:
        content = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(content["data"]))

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write_descriptor, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._receive()
            if reply.get("id") == self._last_id:
                assert "error" not in reply, reply
                return dict(reply["result"])
            self._record_event(reply)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read_descriptor, 1 << 16)
            assert chunk, "the browser has exited"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _record_event(self, event: dict[str, Any]) -> None:
        method = event.get("method")
        parameters = event.get("params", {})
        if method in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(parameters))
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.fileChooserOpened":
            self.choosers.append(parameters["backendNodeId"])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile and terminate it at the end."""
    child_input, parent_output = os.pipe()
    parent_input, child_output = os.pipe()
    options = (
        "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
        "--remote-debugging-pipe"
    )
    redirections = f"3<&{child_input} 4>&{child_output}"
    command = f'exec {CHROMIUM} {options} --user-data-dir="$0" {redirections}'
    process = subprocess.Popen(
        ["bash", "-c", command, str(profile)],
        pass_fds=(child_input, child_output),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(child_input)
    os.close(child_output)
    try:
        yield Browser(parent_input, parent_output)
    finally:
        process.terminate()
        process.wait(20)
        os.close(parent_input)
        os.close(parent_output)
