"""Label images with ExecuTorch: `python predict_executorch.py VARIANT IMAGE...`.

Needs numpy, Pillow, torch, executorch. VARIANT is one of the names in bundle.json that begin with
executorch.
"""

import sys

import numpy as np
import torch
from executorch.runtime import Runtime
from predict import BUNDLE, MANIFEST, load_image, preprocess

if __name__ == "__main__":
    variant = {item["name"]: item for item in MANIFEST["variants"]}[sys.argv[1]]
    temperature = (variant.get("calibration") or {}).get("temperature", 1.0)
    program = Runtime.get().load_program(BUNDLE / variant["file"])
    method = program.load_method("forward")
    for path in sys.argv[2:]:
        pixels = np.ascontiguousarray(preprocess(load_image(path)), np.float32)
        logits = method.execute([torch.from_numpy(pixels)])[0][0]
        probabilities = torch.softmax(logits / temperature, 0)
        label = MANIFEST["labels"][int(probabilities.argmax())]
        print(path, label, f"{float(probabilities.max()):.4f}", sep="\t")
