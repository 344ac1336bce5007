"""`edgetl export --web`: the page in a real browser, and the client under Node.js, with real photos and ImageNet's classes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.core.config import ExportConfig
from edgetl.core.errors import BundleError, ConfigError, ExportError, ParityError
from edgetl.core.files import sha256_file
from edgetl.core.layout import BundleDirectory
from edgetl.device.bundle import Bundle, open_bundle
from edgetl.device.classifier import bundle_classifier
from edgetl.device.prediction import predict
from edgetl.device.verifying import verify
from edgetl.export import web, web_runtime
from edgetl.export.exporting import export_architecture
from edgetl.export.web_runtime import SHA256, VERSION, runtime_files
from tests.report.browser import CHROMIUM, Browser, browser

NPM, NODE = shutil.which("npm"), shutil.which("node")
needs_npm = pytest.mark.skipif(NPM is None, reason="no npm")
needs_browser = pytest.mark.skipif(CHROMIUM is None or NPM is None, reason="no Chromium, or no npm")
ANOTHER_DECODER = 0.02
"""Probability: browsers decode JPEG's last bit in their own way."""


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real ones, a few of each class of flowers5; turned by EXIF, in grey, transparent, narrow, and one of many pixels."""
    folder = tmp_path_factory.mktemp("photos")
    flowers = [path for kind in sorted((shared / "data/flowers5/val").iterdir()) for path in sorted(kind.iterdir())[:2]]
    odd = [shared / "data/odd" / name for name in ("exif_Landscape_6.jpg", "exif_Portrait_8.jpg", "tulips_panorama_1024x187.jpg")]
    with Image.open(flowers[0]) as image:
        large = image.convert("RGB").resize((6000, 4000))
        large.save(folder / "large.jpg", quality=92)
        alpha = Image.linear_gradient("L").resize(image.size)
        cut = image.convert("RGB")
        cut.putalpha(alpha.point(lambda value: 255 if value > 60 else 0))
        cut.save(folder / "cut.png")
        image.convert("L").save(folder / "grey.jpg", quality=92)
    return [*flowers, *odd, *(folder / name for name in ("large.jpg", "cut.png", "grey.jpg"))]


@pytest.fixture(scope="module")
def bundle(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    weights = shared / "weights/mobilenet_v2.safetensors"
    config = ExportConfig(output=tmp_path_factory.mktemp("web") / "bundle", web=True)
    return export_architecture("mobilenet_v2", str(weights), config, None, 224)


@pytest.fixture(scope="module")
def answers(bundle: Bundle, photos: list[Path]) -> dict[Path, dict[str, float]]:
    """Of each photo, label to probability, by onnxruntime itself; the bundle is proven equal to PyTorch."""
    return {one.path: dict(one.top) for one in predict(bundle_classifier(bundle, "fp32"), photos, top_k=len(bundle.labels))}


class Page:
    """The page as a person meets it."""

    def __init__(self, open_browser: Browser, folder: Path) -> None:
        self.browser, self.asked = open_browser, []  # type: ignore[var-annotated]
        handler = partial(_Quiet, directory=str(folder), asked=self.asked)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
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
        self.browser.evaluate("at('label').textContent = at('ranking').textContent = ''; at('answer').hidden = true; say('')")
        if how == "drop":
            self.browser.drop(photo)
        else:
            if how == "click":
                self.browser.click("choose")
            else:
                for _ in range(6):
                    self.browser.press("Tab")
                    if self.browser.evaluate("document.activeElement.id") == "choose":
                        break
                self.browser.press("Enter")
            self.browser.choose(photo)
        self.wait_for("(at('label').textContent && !at('answer').hidden) || at('status').classList.contains('bad')")
        if self.browser.evaluate("at('answer').hidden"):
            return self.text("status"), {}
        rows = self.browser.evaluate(
            "[...document.querySelectorAll('#ranking li')].map(row => [...row.querySelectorAll('span')].map(one => one.textContent))"
        )
        return self.text("label"), {name: float(share.removeprefix("< ").removesuffix("%")) / 100 for name, share, _ in rows}


class _Quiet(SimpleHTTPRequestHandler):
    def __init__(self, *given: Any, asked: list[str], **named: Any) -> None:
        self.asked = asked
        super().__init__(*given, **named)

    def log_message(self, *told: Any) -> None:
        self.asked.append(self.path)


@pytest.fixture(scope="module")
def page(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        page = Page(opened, bundle.directory.web)
        page.visit()
        yield page
        page.server.shutdown()


def agrees(shown: tuple[str, dict[str, float]], expected: dict[str, float]) -> bool:
    """Whether what is shown is what was computed, and the label that of PyTorch."""
    label, shares = shown
    assert all(share == pytest.approx(expected[name], abs=ANOTHER_DECODER) for name, share in shares.items()), (shares, expected)
    return label == max(expected, key=expected.__getitem__)


@needs_browser
def test_real_photos_get_pytorch_s_labels(page: Page, answers: dict[Path, dict[str, float]]) -> None:
    ways = ("drop", "click", "keyboard")
    right = [agrees(page.label(photo, ways[number % 3]), expected) for number, (photo, expected) in enumerate(answers.items())]
    assert all(right)
    assert len({max(expected, key=expected.__getitem__) for expected in answers.values()}) > 4
    assert "Answered in" in page.text("timing")
    assert page.browser.complaints == []
    assert [url for url in page.browser.requests if not url.startswith((page.url, "blob:", "data:"))] == []


@needs_browser
def test_every_reference_image_gets_its_label(page: Page, bundle: Bundle) -> None:
    golden = bundle.golden()
    for path, logits in zip(golden.files, golden.logits, strict=True):
        label, _ = page.label(path, "click")
        assert label == bundle.labels[int(logits.argmax())]


@needs_browser
def test_a_broken_file_is_one_sentence_and_the_next_works(
    page: Page, answers: dict[Path, dict[str, float]], shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    for file in (tmp_path / "notes.jpg", shared / "data/odd/lfs_pointer_image_06734.jpg"):
        said, shares = page.label(file, "click")
        assert shares == {}
        assert said.count(".") >= 1
        assert "undefined" not in said
    photo, expected = next(iter(answers.items()))
    assert agrees(page.label(photo, "click"), expected)


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_and_can_be_read(page: Page, answers: dict[Path, dict[str, float]], width: int, dark: bool, tmp_path: Path) -> None:
    page.visit(width, dark)
    page.label(next(iter(answers)), "click")
    assert page.browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    ink, paper = (page.browser.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert (brightness(paper) < brightness(ink)) == dark
    assert abs(brightness(paper) - brightness(ink)) > 150
    page.browser.screenshot(Path(os.environ.get("EDGETL_SEEN", tmp_path)) / f"page-{width}-{dark}.png")


def brightness(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


@needs_browser
def test_opened_as_a_file_it_says_what_to_do(bundle: Bundle, tmp_path: Path) -> None:
    with browser(tmp_path / "browser") as opened:
        opened.open(bundle.directory.web / "index.html", 800, False)
        assert "python3 -m http.server" in str(opened.evaluate("document.getElementById('status').textContent"))
        assert opened.complaints == []


@needs_browser
def test_a_model_that_is_cut_short_is_told(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.directory.web, tmp_path / "web")
    file = tmp_path / "web/fp32.onnx"
    file.write_bytes(file.read_bytes()[:100_000])
    with browser(tmp_path / "browser") as opened:
        page = Page(opened, tmp_path / "web")
        opened.visit(page.url, 800, False)
        page.wait_for("document.getElementById('status').classList.contains('bad')")
        assert "copy the bundle again" in page.text("status")
        page.server.shutdown()


@pytest.fixture(scope="module")
def node_client(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("node") / "web"
    shutil.copytree(bundle.directory.web, folder)
    subprocess.run([str(NPM), "install", "--silent", "--no-audit", "--no-fund", "sharp"], cwd=folder, check=True, capture_output=True)
    return folder


@needs_npm
def test_under_node_the_answers_are_the_same(node_client: Path, answers: dict[Path, dict[str, float]], tmp_path: Path) -> None:
    done = subprocess.run([str(NODE), node_client / "predict.mjs", *answers], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == len(answers)
    for (path, label, share), (photo, expected) in zip(lines, answers.items(), strict=True):
        assert path == str(photo)
        assert agrees((label, {label: float(share)}), expected)


@needs_npm
def test_under_node_what_is_wrong_is_one_sentence(node_client: Path, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    done = subprocess.run([str(NODE), node_client / "predict.mjs", tmp_path / "notes.jpg"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    bare = subprocess.run([str(NODE), bundle.directory.web / "predict.mjs", tmp_path / "notes.jpg"], capture_output=True, text=True)
    assert bare.returncode == 1
    assert "npm install sharp" in bare.stderr


@needs_npm
def test_the_manifest_vouches_for_every_file(bundle: Bundle) -> None:
    told = bundle.manifest["web"]
    assert told["proof"]["passed"]
    assert told["proof"]["images"] == len(bundle.golden().files)
    assert {entry["file"] for entry in told["files"]} == {f"web/{path.name}" for path in bundle.directory.web.iterdir()}
    assert {path for path in bundle.others() if path.parent == bundle.directory.web} == {*bundle.directory.web.iterdir()}
    assert all(sha256_file(bundle.directory.path / entry["file"]) == entry["sha256"] for entry in told["files"])


@needs_npm
@pytest.mark.parametrize("file", ["web/page.js", "web/fp32.onnx", "predict.py"])
def test_verify_refuses_a_changed_page(bundle: Bundle, tmp_path: Path, file: str) -> None:
    shutil.copytree(bundle.directory.path, tmp_path / "bundle")
    with (tmp_path / "bundle" / file).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(BundleError, match=re.escape(file)):
        verify(open_bundle(tmp_path / "bundle"))


@needs_npm
def test_a_page_that_answers_otherwise_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = BundleDirectory(tmp_path / "bundle")
    shutil.copytree(bundle.directory.path, copy.path, ignore=shutil.ignore_patterns("web"))
    with np.load(copy.golden_logits) as arrays:
        np.savez(copy.golden_logits, **{**arrays, "logits": arrays["logits"] + 0.3})
    with pytest.raises(ParityError, match=r"onnxruntime-web .* does not answer as PyTorch does with fp32\.onnx.*--web"):
        web.write_web(copy, bundle.manifest, bundle.variants[0], runtime_files())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def npm_that(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'npm error code ENOTFOUND' >&2; exit 1", "ENOTFOUND. Connect to npm's registry"),
        ("exit 0", "it wrote no file"),
        ("echo rubbish > x.tgz", "its SHA-256 differs"),
    ],
    ids=["no network", "nothing", "another file"],
)
def test_npm_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    npm_that(tmp_path / "bin", script, monkeypatch)
    with pytest.raises(ExportError, match=re.escape(said)) as caught:
        runtime_files()
    assert "without --web" in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.wasm"))


def test_without_npm(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_runtime.shutil, "which", lambda name: None)
    with pytest.raises(ExportError, match="apt install npm"):
        runtime_files()


@needs_npm
def test_what_is_cached_needs_no_network(own_cache: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = own_cache / "onnxruntime-web" / VERSION
    kept.mkdir(parents=True)
    for name in SHA256:
        shutil.copy(bundle.directory.web / name, kept / name)
    npm_that(tmp_path / "bin", "echo 'npm error code ENOTFOUND' >&2; exit 1", monkeypatch)
    assert runtime_files() == kept
    (kept / next(iter(SHA256))).write_bytes(b"changed")
    with pytest.raises(ExportError, match="ENOTFOUND"):
        runtime_files()


def test_tensor_and_web_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--web feeds"):
        ExportConfig(web=True, input="tensor")
