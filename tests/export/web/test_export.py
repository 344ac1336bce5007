"""Web export: the page in a real browser and the Node.js client, with real photos."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from edgetl.core.artifacts.bundle import BundleManifest
from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import BundleError, ConfigError, ExportError, ParityError
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.device.predict import predict
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.images import load_image
from edgetl.device.verify import verify
from edgetl.export.exporter import export_architecture
from edgetl.export.web import export, runtime
from edgetl.export.web.runtime import SHA256, VERSION, ensure_runtime_files
from tests.helpers.browser import browser
from tests.helpers.confidence import add_confidence
from tests.helpers.web_page import NODE, NPM, Page, agrees, needs_browser, needs_npm

ROUNDING_TOLERANCE = 0.0002


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real photos: two of each flower class, and odd ones.

    The odd ones are rotated by EXIF, grey, CMYK, 16-bit, transparent, narrow or very large.
    """
    folder = tmp_path_factory.mktemp("photos")
    flowers = [
        path
        for class_folder in sorted((shared / "data/flowers5/val").iterdir())
        for path in sorted(class_folder.iterdir())[:2]
    ]
    names = (
        "exif_Landscape_6.jpg",
        "exif_Portrait_8.jpg",
        "tulips_panorama_1024x187.jpg",
        "pillow_pil_sample_cmyk.jpg",
        "pillow_tiff_16bit_RGB_target.png",
        "pillow_transparent.webp",
    )
    odd = [shared / "data/odd" / name for name in names]
    with Image.open(flowers[0]) as image:
        large = image.convert("RGB").resize((6000, 4000))
        large.save(folder / "large.jpg", quality=92)
        alpha = Image.linear_gradient("L").resize(image.size)
        transparent = image.convert("RGB")
        transparent.putalpha(alpha.point(lambda value: 255 if value > 60 else 0))
        transparent.save(folder / "binary_alpha.png")
        transparent.putalpha(alpha)
        transparent.save(folder / "gradient_alpha.png")
        image.convert("L").save(folder / "grey.jpg", quality=92)
    generated = ("large.jpg", "binary_alpha.png", "gradient_alpha.png", "grey.jpg")
    return [*flowers, *odd, *(folder / name for name in generated)]


@pytest.fixture(scope="module")
def bundle(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    weights = shared / "weights/mobilenet_v2.safetensors"
    config = ExportConfig(output=tmp_path_factory.mktemp("web") / "bundle", web=True)
    return export_architecture("mobilenet_v2", str(weights), config, None, 224)


@pytest.fixture(scope="module")
def predictions(bundle: Bundle, photos: list[Path]) -> dict[Path, dict[str, float]]:
    """Label to probability for each photo, by onnxruntime, which the export proved correct."""
    return {
        prediction.path: dict(prediction.top_labels)
        for prediction in predict(bundle, photos, len(bundle.labels), "fp32")
    }


@pytest.fixture(scope="module")
def confident_bundle(
    bundle: Bundle, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """Bundle that labels half of the photos as unknown."""
    folder = tmp_path_factory.mktemp("confident") / "bundle"
    shutil.copytree(bundle.directory.path, folder)
    classifier = open_classifier(bundle)
    logits = [classifier.run(load_image(photo)[None]).logits.max() for photo in photos]
    return open_bundle(add_confidence(folder, float(np.median(logits)) - 0.05))


@pytest.fixture(scope="module")
def page(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        page = Page(opened, bundle.directory.web)
        page.visit()
        yield page
        page.server.shutdown()


@needs_browser
def test_page_labels_real_photos_as_pytorch(
    page: Page, predictions: dict[Path, dict[str, float]]
) -> None:
    ways = ("drop", "click", "keyboard")
    agreements = [
        agrees(page.label(photo, ways[number % 3]), expected)
        for number, (photo, expected) in enumerate(predictions.items())
    ]
    assert all(agreements)
    assert len({max(expected, key=expected.__getitem__) for expected in predictions.values()}) > 4
    assert "Inference took" in page.text("timing")
    assert page.browser.complaints == []
    assert [
        url for url in page.browser.requests if not url.startswith((page.url, "blob:", "data:"))
    ] == []


@needs_browser
def test_page_shows_unknown_images_plainly(
    page: Page, confident_bundle: Bundle, photos: list[Path], tmp_path: Path
) -> None:
    predictions = list(predict(confident_bundle, photos[:8], top_k=5))
    assert {prediction.is_unknown for prediction in predictions} == {True, False}
    with browser(tmp_path / "browser") as opened:
        confident_page = Page(opened, confident_bundle.directory.web)
        confident_page.visit()
        for prediction in predictions:
            best_label = prediction.top_labels[0][0]
            label, shares = confident_page.label(prediction.path, "click")
            assert list(shares) == [name for name, _ in prediction.top_labels]
            note = confident_page.text("unknown")
            if prediction.is_unknown:
                assert (label, confident_page.text("probability")) == ("Unknown", "")
                assert note == (f"The image resembles none of the classes. Closest: {best_label}.")
                confident_page.browser.screenshot(
                    Path(os.environ.get("EDGETL_SEEN", tmp_path)) / "unknown.png"
                )
            else:
                assert (label, note) == (best_label, "")
                assert confident_page.text("probability") == f"{shares[best_label]:.1%}"
        assert opened.complaints == []
        confident_page.server.shutdown()
    page.label(photos[0], "click")
    assert page.text("unknown") == ""


@needs_browser
def test_page_labels_golden_images(page: Page, bundle: Bundle) -> None:
    golden = bundle.load_golden()
    for path, logits in zip(golden.files, golden.logits, strict=True):
        label, _ = page.label(path, "click")
        assert label == bundle.labels[int(logits.argmax())]


@needs_browser
def test_page_reports_broken_files_and_continues(
    page: Page,
    predictions: dict[Path, dict[str, float]],
    shared: Path,
    tmp_path: Path,
    rotated_webp: Path,
) -> None:
    (tmp_path / "notes.jpg").write_text("not an image")
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
        message, shares = page.label(file, "click")
        assert shares == {}
        assert message == (
            f"This browser cannot read “{file.name}”. Choose a JPEG, PNG or WebP file."
        )
    assert page.label(rotated_webp, "click") == (
        f"Browsers ignore the EXIF orientation of “{rotated_webp.name}”, a WebP file. "
        "Save it as JPEG or PNG.",
        {},
    )
    photo, expected = next(iter(predictions.items()))
    assert agrees(page.label(photo, "click"), expected)


@pytest.fixture
def rotated_webp(photos: list[Path], tmp_path: Path) -> Path:
    """A WebP file with an EXIF orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(photos[0]) as image:
        image.save(tmp_path / "rotated.webp", exif=exif)
    return tmp_path / "rotated.webp"


@needs_browser
def test_page_labels_only_the_last_of_two_images(page: Page, photos: list[Path]) -> None:
    page.visit()
    page.browser.evaluate(
        "widths = []; show = ((old) => (...all) => { widths.push(all[1].width); old(...all); })(show)"
    )
    large, small = next(path for path in photos if path.name == "large.jpg"), photos[0]
    page.browser.drop(large)
    page.browser.drop(small)
    page.wait_for("widths.length")
    # The worker handles requests in order, so earlier ones are complete after this one.
    page.label(small, "click")
    with Image.open(small) as image:
        assert page.browser.evaluate("widths") == [image.width, image.width]


@needs_browser
def test_page_labels_pasted_image(page: Page, predictions: dict[Path, dict[str, float]]) -> None:
    photo = next(photo for photo in predictions if photo.name == "binary_alpha.png")
    expected = predictions[photo]
    page.visit()
    encoded = base64.b64encode(photo.read_bytes()).decode()
    page.browser.evaluate(f"""{{
        const data = new DataTransfer();
        const content = Uint8Array.from(atob("{encoded}"), (char) => char.charCodeAt(0));
        data.items.add(new File([content], "image.png", {{ type: "image/png" }}));
        const event = new ClipboardEvent("paste", {{ clipboardData: data, bubbles: true }});
        document.dispatchEvent(event);
    }}""")
    page.wait_for("element('label').textContent")
    assert page.text("label") == max(expected, key=expected.__getitem__)


@needs_browser
def test_page_takes_photos_on_touch_screen(
    bundle: Bundle, predictions: dict[Path, dict[str, float]], tmp_path: Path
) -> None:
    photo, expected = next(iter(predictions.items()))
    with browser(tmp_path / "browser") as opened:
        page = Page(opened, bundle.directory.web)
        visible_texts = (
            "[...document.querySelectorAll('button, #invitation')]"
            ".filter(item => item.checkVisibility()).map(item => item.innerText)"
        )
        page.visit(360)
        assert opened.evaluate(visible_texts) == ["Drop or paste an image here.", "Choose an image"]
        opened.call("Emulation.setTouchEmulationEnabled", enabled=True)
        page.visit(360)
        assert opened.evaluate(visible_texts) == ["Choose an image", "Take a photo"]
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
def test_page_fits_screen_with_readable_contrast(
    page: Page, predictions: dict[Path, dict[str, float]], width: int, dark: bool, tmp_path: Path
) -> None:
    page.visit(width, dark)
    page.label(next(iter(predictions)), "click")
    overflow = page.browser.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow == 0
    ink, paper = (
        page.browser.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    assert (brightness(paper) < brightness(ink)) == dark
    assert abs(brightness(paper) - brightness(ink)) > 150
    page.browser.screenshot(
        Path(os.environ.get("EDGETL_SEEN", tmp_path)) / f"page-{width}-{dark}.png"
    )


def brightness(color: str) -> float:
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 3


@needs_browser
def test_page_opened_as_file_explains_next_step(bundle: Bundle, tmp_path: Path) -> None:
    with browser(tmp_path / "browser") as opened:
        opened.open(bundle.directory.web / "index.html", 800, False)
        assert "python3 -m http.server" in str(
            opened.evaluate("document.getElementById('status').textContent")
        )
        assert opened.complaints == []


@needs_browser
def test_page_reports_truncated_model(bundle: Bundle, tmp_path: Path) -> None:
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
def test_node_client_labels_photos_as_onnxruntime(
    node_client: Path, predictions: dict[Path, dict[str, float]], tmp_path: Path
) -> None:
    process = subprocess.run(
        [str(NODE), node_client / "predict.mjs", *predictions],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    assert len(lines) == len(predictions)
    for (path, label, share), (photo, expected) in zip(lines, predictions.items(), strict=True):
        assert path == str(photo)
        assert agrees((label, {label: float(share)}), expected, ROUNDING_TOLERANCE)


@needs_npm
def test_node_client_labels_unknown_images(
    node_client: Path, confident_bundle: Bundle, photos: list[Path], tmp_path: Path
) -> None:
    client = shutil.copytree(node_client, tmp_path / "web")
    shutil.copy(confident_bundle.directory.web / "fp32.onnx", client)
    predictions = list(predict(confident_bundle, photos[:8], top_k=1))
    assert {prediction.is_unknown for prediction in predictions} == {True, False}
    command = [str(NODE), client / "predict.mjs", *photos[:8]]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for line, prediction in zip(process.stdout.splitlines(), predictions, strict=True):
        path, label, share, score, closest = line.split("\t")
        assert [path, label, closest] == [
            str(prediction.path),
            prediction.label,
            prediction.top_labels[0][0],
        ]
        assert float(share) == pytest.approx(prediction.top_labels[0][1], abs=ROUNDING_TOLERANCE)
        assert float(score) == pytest.approx(prediction.unknown_score, abs=0.01)


@needs_npm
def test_node_client_errors_are_one_line(
    node_client: Path, bundle: Bundle, photos: list[Path], rotated_webp: Path, tmp_path: Path
) -> None:
    notes = tmp_path / "notes.jpg"
    notes.write_text("not an image")
    command = [str(NODE), node_client / "predict.mjs", photos[0], rotated_webp, notes]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stdout.count("\n") == 2
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith(f"{notes}: cannot be read as an image (")
    (prediction,) = predict(bundle, rotated_webp, top_k=1)
    label, probability = prediction.top_labels[0]
    assert process.stdout.splitlines()[1].split("\t") == [
        str(rotated_webp),
        label,
        f"{probability:.4f}",
    ]
    bare = subprocess.run(
        [str(NODE), bundle.directory.web / "predict.mjs", tmp_path / "notes.jpg"],
        capture_output=True,
        text=True,
    )
    assert bare.returncode == 1
    assert "npm install sharp" in bare.stderr


@needs_npm
def test_manifest_has_hash_of_every_web_file(bundle: Bundle) -> None:
    web = bundle.manifest.web
    assert web is not None
    assert web.proof.passed
    assert web.proof.images == len(bundle.load_golden().files)
    assert {record.file for record in web.files} == {
        f"web/{path.name}" for path in bundle.directory.web.iterdir()
    }
    assert {path for path in bundle.companion_files() if path.parent == bundle.directory.web} == {
        *bundle.directory.web.iterdir()
    }
    assert all(
        sha256_file(bundle.directory.path / record.file) == record.sha256 for record in web.files
    )


@needs_npm
@pytest.mark.parametrize("file", ["web/page.js", "web/fp32.onnx", "predict.py"])
def test_verify_refuses_changed_files(bundle: Bundle, tmp_path: Path, file: str) -> None:
    shutil.copytree(bundle.directory.path, tmp_path / "bundle")
    with (tmp_path / "bundle" / file).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(BundleError, match=re.escape(file)):
        verify(open_bundle(tmp_path / "bundle"))


@needs_npm
def test_write_web_refuses_other_logits(bundle: Bundle, tmp_path: Path) -> None:
    copy = BundleDirectory(tmp_path / "bundle")
    shutil.copytree(bundle.directory.path, copy.path, ignore=shutil.ignore_patterns("web"))
    manifest = shift_golden(copy, bundle.manifest, "logits", 0.3)
    with pytest.raises(
        ParityError,
        match=r"onnxruntime-web .* with fp32\.onnx does not match PyTorch.*without web=True",
    ):
        export.write_web(copy, manifest, bundle.variants[0], ensure_runtime_files())


def shift_golden(
    directory: BundleDirectory, manifest: BundleManifest, name: str, shift: float
) -> BundleManifest:
    """Add to the values of an array of golden.npz; return the manifest with its new hash."""
    with np.load(directory.golden_logits) as arrays:
        np.savez(directory.golden_logits, **{**arrays, name: arrays[name] + shift})
    record = replace(manifest.golden.logits, sha256=sha256_file(directory.golden_logits))
    return replace(manifest, golden=replace(manifest.golden, logits=record))


@needs_npm
def test_write_web_refuses_other_unknown_scores(confident_bundle: Bundle, tmp_path: Path) -> None:
    copy = BundleDirectory(tmp_path / "bundle")
    ignored = shutil.ignore_patterns("web")
    shutil.copytree(confident_bundle.directory.path, copy.path, ignore=ignored)
    manifest, variant = confident_bundle.manifest, confident_bundle.variants[0]
    web = export.write_web(copy, manifest, variant, ensure_runtime_files())
    assert web.proof.passed
    assert web.proof.max_unknown_score_difference == pytest.approx(0, abs=1e-3)
    assert web.proof.max_probability_difference == pytest.approx(0, abs=1e-5)
    shutil.rmtree(copy.web)
    manifest = shift_golden(copy, manifest, "unknown_score_fp32", 2.0)
    with pytest.raises(ParityError, match="the unknown score of golden image"):
        export.write_web(copy, manifest, variant, ensure_runtime_files())


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install_fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.usefixtures("cache_folder")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'npm error code ENOTFOUND' >&2; exit 1", "ENOTFOUND. Connect to npm's registry"),
        ("exit 0", "it wrote no file"),
        ("echo rubbish > x.tgz", "does not match the tested version"),
    ],
    ids=["no network", "no file", "other file"],
)
def test_npm_failure_is_an_export_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    install_fake_npm(tmp_path / "bin", script, monkeypatch)
    with pytest.raises(ExportError, match=re.escape(message)) as raised:
        ensure_runtime_files()
    assert "without web=True" in str(raised.value)
    assert not list((tmp_path / "cache").rglob("*.wasm"))


@pytest.mark.usefixtures("cache_folder")
def test_missing_npm_is_an_export_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(ExportError, match="apt install npm"):
        ensure_runtime_files()


@needs_npm
def test_cached_runtime_needs_no_network(
    cache_folder: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = cache_folder / "onnxruntime-web" / VERSION
    cached.mkdir(parents=True)
    for name in SHA256:
        shutil.copy(bundle.directory.web / name, cached / name)
    script = "echo 'npm error code ENOTFOUND' >&2; exit 1"
    install_fake_npm(tmp_path / "bin", script, monkeypatch)
    assert ensure_runtime_files() == cached
    (cached / next(iter(SHA256))).write_bytes(b"changed")
    with pytest.raises(ExportError, match="ENOTFOUND"):
        ensure_runtime_files()


def test_config_rejects_web_with_tensor_input() -> None:
    with pytest.raises(ConfigError, match="web=True needs"):
        ExportConfig(web=True, input="tensor")
