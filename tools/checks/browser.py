"""onnxruntime-web in headless Chromium: a page of its own on a loopback server computes the logits and sends them back."""

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

_PATIENCE_S = 300
_PAGE = b"<!doctype html><script type='module' src='ask.mjs'></script>"
_ASK = b"""
import * as ort from "./ort.wasm.bundle.min.mjs";
async function ask() {
  const [count, ...shape] = await (await fetch("shape.json")).json();
  const values = new Float32Array(await (await fetch("inputs.bin")).arrayBuffer());
  const size = values.length / count;
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  const answers = [];
  for (let from = 0; from < values.length; from += size) {
    const given = new ort.Tensor("float32", values.slice(from, from + size), [1, ...shape]);
    answers.push(Array.from((await session.run({ [session.inputNames[0]]: given }, ["logits"])).logits.data));
  }
  return answers;
}
const said = await ask().catch((cause) => String(cause?.message ?? cause));
await fetch("answer", { method: "POST", body: JSON.stringify(said) });
"""
_TYPES = {
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
    "": "text/html",
}


def chromium() -> str | None:
    """The browser's program, if there is one."""
    return next(
        (
            found
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (found := shutil.which(name))
        ),
        None,
    )


def browser_logits(model: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [images, classes] of an ONNX file for `inputs` [images, 3, S, S].

    Raises:
        RuntimeError: there is no Chromium, or onnxruntime-web does not run the file; its words.
    """
    program = chromium()
    if program is None:
        raise RuntimeError("there is no Chromium: apt install chromium")
    kept = ensure_runtime_files()
    pages = {
        "/": _PAGE,
        "/ask.mjs": _ASK,
        "/inputs.bin": inputs.tobytes(),
        "/shape.json": json.dumps(inputs.shape).encode(),
    }
    pages |= {f"/{path.name}": path.read_bytes() for path in kept.iterdir()} | {
        "/model.onnx": model.read_bytes()
    }
    answers: Queue[Any] = Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(pages, answers))
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
        shown = subprocess.Popen(
            [program, *options, f"http://127.0.0.1:{server.server_port}/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            said = answers.get(timeout=_PATIENCE_S)
        except Empty as cause:
            raise RuntimeError(f"Chromium gave no answer in {_PATIENCE_S} seconds") from cause
        finally:
            shown.terminate()
            shown.wait(20)
            server.shutdown()
            server.server_close()
    if isinstance(said, str):
        raise RuntimeError(said)
    return np.asarray(said, np.float32)


def _handler(pages: dict[str, bytes], answers: Queue[Any]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = pages.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.send_header(
                "Content-Type", _TYPES.get(Path(self.path).suffix, "application/octet-stream")
            )
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *told: object) -> None:
            """Nothing: a tool's output is its own."""

    return Handler
