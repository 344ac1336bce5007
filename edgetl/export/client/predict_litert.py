"""Label images with LiteRT: `python predict_litert.py VARIANT IMAGE...`.

Needs numpy, Pillow, ai-edge-litert. VARIANT is one of the names in bundle.json that begin with
litert.
"""

import sys

from ai_edge_litert.interpreter import Interpreter
from predict import BUNDLE, MANIFEST, load_image, preprocess

if __name__ == "__main__":
    variant = {item["name"]: item for item in MANIFEST["variants"]}[sys.argv[1]]
    interpreter = Interpreter(str(BUNDLE / variant["file"]))
    run = interpreter.get_signature_runner()
    for path in sys.argv[2:]:
        # The file takes images channels last: [1, S, S, 3].
        outputs = run(pixels=preprocess(load_image(path)).transpose(0, 2, 3, 1))
        probabilities = outputs["probabilities"][0]
        scores = [float(outputs["unknown_score"][0])] if "unknown_score" in outputs else []
        closest = MANIFEST["labels"][int(probabilities.argmax())]
        label = "unknown" if any(score > 1 for score in scores) else closest
        extra = [column for score in scores for column in (f"{score:.3f}", closest)]
        print(path, label, f"{probabilities.max():.4f}", *extra, sep="\t")
