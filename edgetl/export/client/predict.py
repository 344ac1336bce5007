"""Label images with this bundle: python predict.py IMAGE...   Needs numpy, Pillow and onnxruntime, nothing else."""

import io
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

BUNDLE = Path(__file__).resolve().parent
MANIFEST = json.loads((BUNDLE / "bundle.json").read_text(encoding="utf-8"))
VARIANT = next(
    entry for entry in MANIFEST["variants"] if entry["name"] == (MANIFEST["recommended"] or "fp32")
)
FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "AVIF",
    "JPEG2000",
    "TGA",
    "PPM",
)  # EPS would start Ghostscript


def load_image(path: str) -> np.ndarray:
    """Upright RGB pixels, uint8 [height, width, 3]; transparency onto white, 16-bit grey by its high byte."""
    Image.init()
    file = Image.open(
        io.BytesIO(Path(path).read_bytes()),
        formats=[name for name in FORMATS if name in Image.OPEN],
    )
    try:
        image = ImageOps.exif_transpose(file)
    except Exception:  # an EXIF block too broken to rewrite
        image = file.copy()
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image.convert("RGB"))


def network_input(image: np.ndarray) -> np.ndarray:
    """The photo as it is where the file preprocesses by itself, else the float tensor."""
    if VARIANT["input"] == "image":
        return image[None]
    how = MANIFEST["preprocessing"]
    height, width = image.shape[:2]
    size = [how["resize"] * side // min(height, width) for side in (width, height)]
    left, top = (round((side - how["crop"]) / 2) for side in size)
    # Rows first: the order decides the rounding, and Pillow's own choice depends on its version.
    resized = (
        Image.fromarray(image).resize((size[0], height), 2).resize(tuple(size), 2)
    )  # 2: bilinear
    crop = (
        np.asarray(resized.crop((left, top, left + how["crop"], top + how["crop"])), np.float32)
        / 255
    )
    return ((crop - np.float32(how["mean"])) / np.float32(how["std"])).transpose(2, 0, 1)[None]


def main(paths: list[str]) -> None:
    """Print path, label and probability of each image."""
    session = onnxruntime.InferenceSession(
        str(BUNDLE / VARIANT["file"]), providers=["CPUExecutionProvider"]
    )
    for path in paths:
        probabilities = session.run(
            ["probabilities"], {session.get_inputs()[0].name: network_input(load_image(path))}
        )[0][0]
        best = int(probabilities.argmax())
        print(f"{path}\t{MANIFEST['labels'][best]}\t{probabilities[best]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
