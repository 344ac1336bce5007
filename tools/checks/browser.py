"""Run onnxruntime-web in headless Chromium.

A page on a loopback server computes the outputs and posts them back.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.export.web.runtime import ensure_runtime_files

_TIMEOUT_S = 300
_PAGE = b"<!doctype html><script type='module' src='infer.mjs'></script>"
_SCRIPT = b"""
import * as ort from "./ort.wasm.bundle.min.mjs";
async function infer() {
  const [count, ...shape] = await (await fetch("shape.json")).json();
  const values = new Float32Array(await (await fetch("inputs.bin")).arrayBuffer());
  const size = values.length / count;
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  const names = await (await fetch("names.json")).json();
  const rows = Object.fromEntries(names.map((name) => [name, []]));
  for (let start = 0; start < values.length; start += size) {
    const input = new ort.Tensor("float32", values.slice(start, start + size), [1, ...shape]);
    const outputs = await session.run({ [session.inputNames[0]]: input }, names);
    for (const name of names) rows[name].push(Array.from(outputs[name].data));
  }
  return rows;
}
const result = await infer().catch((cause) => String(cause?.message ?? cause));
await fetch("result", { method: "POST", body: JSON.stringify(result) });
"""
_CONTENT_TYPES = {
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
    "": "text/html",
}


def chromium() -> str | None:
    """Return the path of Chromium or Chrome, or None if neither is installed."""
    paths = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in paths if path is not None), None)


def browser_outputs(
    model: Path, inputs: NDArray[np.float32], names: list[str]
) -> dict[str, NDArray[np.float32]]:
    """Return the outputs `names` [images, ...] of an ONNX file for `inputs` [images, 3, S, S].

    Raises:
        RuntimeError: Chromium is not installed, or onnxruntime-web cannot run the file.
    """
    program = chromium()
    if program is None:
        raise RuntimeError("Chromium not found. Install it with `apt install chromium`.")
    pages = {
        "/": _PAGE,
        "/infer.mjs": _SCRIPT,
        "/inputs.bin": inputs.tobytes(),
        "/names.json": json.dumps(names).encode(),
        "/shape.json": json.dumps(inputs.shape).encode(),
        "/model.onnx": model.read_bytes(),
    }
    pages |= {f"/{path.name}": path.read_bytes() for path in ensure_runtime_files().iterdir()}
    results: Queue[Any] = Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_class(pages, results))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            f"--user-data-dir={profile}",
        ]
        process = subprocess.Popen(
            [program, *options, f"http://127.0.0.1:{server.server_port}/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            result = results.get(timeout=_TIMEOUT_S)
        except Empty as error:
            raise RuntimeError(f"No result from Chromium after {_TIMEOUT_S} seconds.") from error
        finally:
            process.terminate()
            process.wait(20)
            server.shutdown()
            server.server_close()
    if isinstance(result, str):
        raise RuntimeError(result)
    return {name: np.asarray(rows, np.float32) for name, rows in result.items()}


def _handler_class(pages: dict[str, bytes], results: Queue[Any]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = pages.get(self.path)
            self.send_response(200 if content is not None else 404)
            content_type = _CONTENT_TYPES.get(Path(self.path).suffix, "application/octet-stream")
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def do_POST(self) -> None:
            results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Suppress the request log."""

    return Handler
