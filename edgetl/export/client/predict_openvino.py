"""Label images with OpenVINO: `python predict_openvino.py VARIANT IMAGE...`.

Needs numpy, Pillow, openvino. VARIANT is one of the names in bundle.json that begin with openvino.
"""

import sys

import numpy as np
import openvino
from predict import BUNDLE, MANIFEST, load_image, preprocess

if __name__ == "__main__":
    variant = {item["name"]: item for item in MANIFEST["variants"]}[sys.argv[1]]
    side = MANIFEST["preprocessing"]["crop"]
    core = openvino.Core()
    model = core.read_model(BUNDLE / variant["file"])
    model.reshape([1, 3, side, side])
    # Without the hint, OpenVINO computes float32 files in bfloat16 on CPUs that have it.
    hint = {"bf16": "bf16", "fp16": "f16"}.get(variant["precision"], "f32")
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    names = {output.get_any_name() for output in compiled.outputs}
    for path in sys.argv[2:]:
        outputs = compiled(np.ascontiguousarray(preprocess(load_image(path)), np.float32))
        probabilities = outputs["probabilities"][0]
        scores = [float(outputs["unknown_score"][0])] if "unknown_score" in names else []
        closest = MANIFEST["labels"][int(probabilities.argmax())]
        label = "unknown" if any(score > 1 for score in scores) else closest
        extra = [column for score in scores for column in (f"{score:.3f}", closest)]
        print(path, label, f"{probabilities.max():.4f}", *extra, sep="\t")
