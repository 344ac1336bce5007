"""Label images with ncnn: `python predict_ncnn.py VARIANT IMAGE...`.

Needs numpy, Pillow, ncnn. VARIANT is one of the names in bundle.json that begin with ncnn.
"""

import sys

import ncnn
import numpy as np
from predict import BUNDLE, MANIFEST, load_image, preprocess

if __name__ == "__main__":
    variant = {item["name"]: item for item in MANIFEST["variants"]}[sys.argv[1]]
    net = ncnn.Net()
    # Half precision is on by default, in all layers on ARM and in matrix products elsewhere.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = variant["precision"] == "bf16"
    param, weights = (variant["file"], *(item["file"] for item in variant["extra_files"]))
    if net.load_param(str(BUNDLE / param)) or net.load_model(str(BUNDLE / weights)):
        sys.exit(f"ncnn cannot load {param}.")
    names = [name for name in ("probabilities", "unknown_score") if name in net.output_names()]
    for path in sys.argv[2:]:
        pixels = np.ascontiguousarray(preprocess(load_image(path))[0], np.float32)
        with net.create_extractor() as extractor:
            extractor.input("pixels", ncnn.Mat(pixels))
            probabilities, *arrays = (np.array(extractor.extract(name)[1]) for name in names)
        scores = [float(array[0]) for array in arrays]
        closest = MANIFEST["labels"][int(probabilities.argmax())]
        label = "unknown" if any(score > 1 for score in scores) else closest
        extra = [column for score in scores for column in (f"{score:.3f}", closest)]
        print(path, label, f"{probabilities.max():.4f}", *extra, sep="\t")
