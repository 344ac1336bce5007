"""`edgetl export --web`: the page in a real browser, and the client under Node.js, with real photos and ImageNet's classes."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import BundleError, ConfigError, ExportError, ParityError
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.device.predict import predict
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.classifier import open_bundle_classifier
from edgetl.device.verify import verify
from edgetl.export.exporter import export_architecture
from edgetl.export.web import export, runtime
from edgetl.export.web.runtime import SHA256, VERSION, ensure_runtime_files
from tests.helpers.browser import browser
from tests.helpers.web_page import NODE, NPM, Page, agrees, needs_browser, needs_npm

ROUNDED = 0.0002


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real ones, a few of each class of flowers5; turned by EXIF, in grey, inks or 16 bits, transparent, narrow, and one of many pixels."""
    folder = tmp_path_factory.mktemp("photos")
    flowers = [
        path
        for kind in sorted((shared / "data/flowers5/val").iterdir())
        for path in sorted(kind.iterdir())[:2]
    ]
    names = (
        "exif_Landscape_6.jpg", "exif_Portrait_8.jpg", "tulips_panorama_1024x187.jpg",
        "pillow_pil_sample_cmyk.jpg", "pillow_tiff_16bit_RGB_target.png", "pillow_transparent.webp",
    )  # fmt: skip
    odd = [shared / "data/odd" / name for name in names]
    with Image.open(flowers[0]) as image:
        large = image.convert("RGB").resize((6000, 4000))
        large.save(folder / "large.jpg", quality=92)
        alpha = Image.linear_gradient("L").resize(image.size)
        cut = image.convert("RGB")
        cut.putalpha(alpha.point(lambda value: 255 if value > 60 else 0))
        cut.save(folder / "cut.png")
        cut.putalpha(alpha)
        cut.save(folder / "faded.png")
        image.convert("L").save(folder / "grey.jpg", quality=92)
    return [
        *flowers,
        *odd,
        *(folder / name for name in ("large.jpg", "cut.png", "faded.png", "grey.jpg")),
    ]


@pytest.fixture(scope="module")
def bundle(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    weights = shared / "weights/mobilenet_v2.safetensors"
    config = ExportConfig(output=tmp_path_factory.mktemp("web") / "bundle", web=True)
    return export_architecture("mobilenet_v2", str(weights), config, None, 224)


@pytest.fixture(scope="module")
def answers(bundle: Bundle, photos: list[Path]) -> dict[Path, dict[str, float]]:
    """Of each photo, label to probability, by onnxruntime itself; the bundle is proven equal to PyTorch."""
    return {
        one.path: dict(one.top_labels)
        for one in predict(open_bundle_classifier(bundle, "fp32"), photos, top_k=len(bundle.labels))
    }


@pytest.fixture(scope="module")
def page(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        page = Page(opened, bundle.directory.web)
        page.visit()
        yield page
        page.server.shutdown()


@needs_browser
def test_real_photos_get_pytorch_s_labels(
    page: Page, answers: dict[Path, dict[str, float]]
) -> None:
    ways = ("drop", "click", "keyboard")
    right = [
        agrees(page.label(photo, ways[number % 3]), expected)
        for number, (photo, expected) in enumerate(answers.items())
    ]
    assert all(right)
    assert len({max(expected, key=expected.__getitem__) for expected in answers.values()}) > 4
    assert "Answered in" in page.text("timing")
    assert page.browser.complaints == []
    assert [
        url for url in page.browser.requests if not url.startswith((page.url, "blob:", "data:"))
    ] == []


@needs_browser
def test_every_reference_image_gets_its_label(page: Page, bundle: Bundle) -> None:
    golden = bundle.load_golden()
    for path, logits in zip(golden.files, golden.logits, strict=True):
        label, _ = page.label(path, "click")
        assert label == bundle.labels[int(logits.argmax())]


@needs_browser
def test_a_broken_file_is_one_sentence_and_the_next_works(
    page: Page, answers: dict[Path, dict[str, float]], shared: Path, tmp_path: Path, turned: Path
) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    odd = [
        shared / "data/odd" / name
        for name in (
            "lfs_pointer_image_06734.jpg",
            "pillow_truncated_jpeg.jpg",
            "pillow_truncated_image.png",
        )
    ]
    for file in (tmp_path / "notes.jpg", tmp_path / "empty.png", *odd):
        said, shares = page.label(file, "click")
        assert shares == {}
        assert (
            said
            == f"“{file.name}” is no picture that this browser can read. Choose a JPEG, PNG or WebP file."
        )
    assert page.label(turned, "click") == (
        f"“{turned.name}” asks to be turned, which browsers overlook in WebP files. Save it as JPEG or PNG.",
        {},
    )
    photo, expected = next(iter(answers.items()))
    assert agrees(page.label(photo, "click"), expected)


@pytest.fixture
def turned(photos: list[Path], tmp_path: Path) -> Path:
    """A WebP file that stands on its side, and says so."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(photos[0]) as image:
        image.save(tmp_path / "turned.webp", exif=exif)
    return tmp_path / "turned.webp"


@needs_browser
def test_of_two_pictures_the_last_is_answered(page: Page, photos: list[Path]) -> None:
    page.visit()
    page.browser.evaluate(
        "widths = []; show = ((old) => (...all) => { widths.push(all[1].width); old(...all); })(show)"
    )
    large, small = next(path for path in photos if path.name == "large.jpg"), photos[0]
    page.browser.drop(large)
    page.browser.drop(small)
    page.wait_for("widths.length")
    # Whatever the worker was given before has been answered once this is.
    page.label(small, "click")
    with Image.open(small) as image:
        assert page.browser.evaluate("widths") == [image.width, image.width]


@needs_browser
def test_a_picture_is_pasted(page: Page, answers: dict[Path, dict[str, float]]) -> None:
    photo, expected = next(
        (photo, expected) for photo, expected in answers.items() if photo.name == "cut.png"
    )
    page.visit()
    page.browser.evaluate(f"""{{
        const given = new DataTransfer();
        const content = Uint8Array.from(atob("{base64.b64encode(photo.read_bytes()).decode()}"), (one) => one.charCodeAt(0));
        given.items.add(new File([content], "image.png", {{ type: "image/png" }}));
        document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData: given, bubbles: true }}));
    }}""")
    page.wait_for("at('label').textContent")
    assert page.text("label") == max(expected, key=expected.__getitem__)


@needs_browser
def test_on_a_touch_screen_it_takes_photos(
    bundle: Bundle, answers: dict[Path, dict[str, float]], tmp_path: Path
) -> None:
    photo, expected = next(iter(answers.items()))
    with browser(tmp_path / "browser") as opened:
        page = Page(opened, bundle.directory.web)
        seen = "[...document.querySelectorAll('button, #invitation')].filter(one => one.checkVisibility()).map(one => one.innerText)"
        page.visit(360)
        assert opened.evaluate(seen) == ["Drop a picture here, or paste one.", "Choose a picture"]
        opened.call("Emulation.setTouchEmulationEnabled", enabled=True)
        page.visit(360)
        assert opened.evaluate(seen) == ["Choose a picture", "Take a photo"]
        assert (
            opened.evaluate("document.getElementById('camera').getAttribute('capture')")
            == "environment"
        )
        assert agrees(page.label(photo, "touch"), expected)
        assert opened.complaints == []
        page.server.shutdown()


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_and_can_be_read(
    page: Page, answers: dict[Path, dict[str, float]], width: int, dark: bool, tmp_path: Path
) -> None:
    page.visit(width, dark)
    page.label(next(iter(answers)), "click")
    assert (
        page.browser.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        == 0
    )
    ink, paper = (
        page.browser.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    assert (brightness(paper) < brightness(ink)) == dark
    assert abs(brightness(paper) - brightness(ink)) > 150
    page.browser.screenshot(
        Path(os.environ.get("EDGETL_SEEN", tmp_path)) / f"page-{width}-{dark}.png"
    )


def brightness(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


@needs_browser
def test_opened_as_a_file_it_says_what_to_do(bundle: Bundle, tmp_path: Path) -> None:
    with browser(tmp_path / "browser") as opened:
        opened.open(bundle.directory.web / "index.html", 800, False)
        assert "python3 -m http.server" in str(
            opened.evaluate("document.getElementById('status').textContent")
        )
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
    subprocess.run(
        [str(NPM), "install", "--silent", "--no-audit", "--no-fund", "sharp"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@needs_npm
def test_under_node_the_answers_are_the_same(
    node_client: Path, answers: dict[Path, dict[str, float]], tmp_path: Path
) -> None:
    done = subprocess.run(
        [str(NODE), node_client / "predict.mjs", *answers],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == len(answers)
    for (path, label, share), (photo, expected) in zip(lines, answers.items(), strict=True):
        assert path == str(photo)
        assert agrees((label, {label: float(share)}), expected, ROUNDED)


@needs_npm
def test_under_node_what_is_wrong_is_one_sentence(
    node_client: Path, bundle: Bundle, photos: list[Path], turned: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    command = [str(NODE), node_client / "predict.mjs", photos[0], turned, tmp_path / "notes.jpg"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("\n"), done.stderr.count("\n")) == (1, 2, 1)
    assert done.stderr.startswith(f"{tmp_path / 'notes.jpg'}: cannot be read as an image (")
    expected = next(iter(predict(open_bundle_classifier(bundle), [turned], top_k=1))).top_labels[0]
    assert done.stdout.splitlines()[1].split("\t") == [
        str(turned),
        expected[0],
        f"{expected[1]:.4f}",
    ]
    bare = subprocess.run(
        [str(NODE), bundle.directory.web / "predict.mjs", tmp_path / "notes.jpg"],
        capture_output=True,
        text=True,
    )
    assert bare.returncode == 1
    assert "npm install sharp" in bare.stderr


@needs_npm
def test_the_manifest_vouches_for_every_file(bundle: Bundle) -> None:
    told = bundle.manifest["web"]
    assert told["proof"]["passed"]
    assert told["proof"]["images"] == len(bundle.load_golden().files)
    assert {entry["file"] for entry in told["files"]} == {
        f"web/{path.name}" for path in bundle.directory.web.iterdir()
    }
    assert {path for path in bundle.companion_files() if path.parent == bundle.directory.web} == {
        *bundle.directory.web.iterdir()
    }
    assert all(
        sha256_file(bundle.directory.path / entry["file"]) == entry["sha256"]
        for entry in told["files"]
    )


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
    with pytest.raises(
        ParityError,
        match=r"onnxruntime-web .* does not answer as PyTorch does with fp32\.onnx.*--web",
    ):
        export.write_web(copy, bundle.manifest, bundle.variants[0], ensure_runtime_files())


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
def test_npm_that_fails_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    npm_that(tmp_path / "bin", script, monkeypatch)
    with pytest.raises(ExportError, match=re.escape(said)) as caught:
        ensure_runtime_files()
    assert "without --web" in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.wasm"))


def test_without_npm(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(ExportError, match="apt install npm"):
        ensure_runtime_files()


@needs_npm
def test_what_is_cached_needs_no_network(
    own_cache: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = own_cache / "onnxruntime-web" / VERSION
    kept.mkdir(parents=True)
    for name in SHA256:
        shutil.copy(bundle.directory.web / name, kept / name)
    npm_that(tmp_path / "bin", "echo 'npm error code ENOTFOUND' >&2; exit 1", monkeypatch)
    assert ensure_runtime_files() == kept
    (kept / next(iter(SHA256))).write_bytes(b"changed")
    with pytest.raises(ExportError, match="ENOTFOUND"):
        ensure_runtime_files()


def test_tensor_and_web_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--web needs"):
        ExportConfig(web=True, input="tensor")
