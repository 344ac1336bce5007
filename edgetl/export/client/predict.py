"""Label images with this bundle: `python predict.py IMAGE...`. Needs numpy, Pillow, onnxruntime."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import numpy as np
from PIL import Image, ImageOps

BUNDLE = Path(__file__).resolve().parent
MANIFEST = json.loads((BUNDLE / "bundle.json").read_text(encoding="utf-8"))
VARIANT = {item["name"]: item for item in MANIFEST["variants"]}[MANIFEST["recommended"] or "fp32"]
FORMATS = "JPEG,MPO,PNG,WEBP,BMP,GIF,TIFF,AVIF,JPEG2000,TGA,PPM"  # EPS starts Ghostscript


def load_image(path: str) -> np.ndarray:
    """Decode to upright RGB, uint8 [height, width, 3]; transparency becomes white."""
    Image.init()
    file = Image.open(path, formats=[name for name in FORMATS.split(",") if name in Image.OPEN])
    try:
        image = ImageOps.exif_transpose(file)
    except Exception:  # the EXIF data cannot be rewritten
        image = file.copy()
    if image.mode.startswith("I"):  # 16-bit grey: keep the high byte
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def preprocess(image: np.ndarray) -> np.ndarray:
    """Resize, crop and normalize to float32 [1, 3, S, S], for files without preprocessing."""
    config = MANIFEST["preprocessing"]
    resize, crop = config["resize"], config["crop"]
    width, height = (resize * side // min(image.shape[:2]) for side in image.shape[1::-1])
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    # Resize the width first: the order affects rounding, and Pillow's depends on its version.
    method = Image.Resampling[config["interpolation"].upper()]
    photo = Image.fromarray(image).resize((width, len(image)), method)
    photo = photo.resize((width, height), method).crop((left, top, left + crop, top + crop))
    mean, std = np.float32(config["mean"]), np.float32(config["std"])
    return ((np.asarray(photo, np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None]


if __name__ == "__main__":
    import onnxruntime as ort

    model = ort.InferenceSession(str(BUNDLE / VARIANT["file"]), providers=["CPUExecutionProvider"])
    names = {output.name for output in model.get_outputs()} & {"probabilities", "unknown_score"}
    for path in sys.argv[1:]:
        photo = load_image(path)
        photo = photo[None] if VARIANT["input"] == "image" else preprocess(photo)
        inputs = {model.get_inputs()[0].name: photo}
        probabilities, *scores = (output[0] for output in model.run(sorted(names), inputs))
        closest = MANIFEST["labels"][int(probabilities.argmax())]
        label = "unknown" if any(score > 1 for score in scores) else closest
        extra = [column for score in scores for column in (f"{score:.3f}", closest)]
        print(path, label, f"{probabilities.max():.4f}", *extra, sep="\t")
