"""Session of ncnn, for files that edgetl wrote.

Sources: ncnn's documentation, "FAQ" and "low-level operation api", and its Option class. ncnn runs one
image at a time.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ncnn
import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.session import ProfiledNode
from edgetl.core.errors import BundleError
from edgetl.device.runtime.sessions.session import SessionFacts, SessionSource, load_error

_PIXELS = "pixels"
_COMPUTE_LAYERS = ("Convolution", "ConvolutionDepthWise", "InnerProduct", "Deconvolution", "Gemm")
_INT8_PARAMETER = "8="
"""Start of the parameter `int8_scale_term` of the first three layers."""


class NcnnSession:
    """A model with one thread pool; batches are computed image by image."""

    def __init__(self, source: SessionSource) -> None:
        self._source = source
        # Extractors of one net share its memory pools.
        self._lock = threading.Lock()
        try:
            self._net = load_net(source.files, source.threads, source.precision)
        except Exception as cause:  # edgetl's and pybind11's
            raise load_error("ncnn", ncnn.__version__, source.files, cause) from cause
        self.output_names = tuple(self._net.output_names())

    def run(self, names: Sequence[str], batch: NDArray[Any]) -> list[NDArray[Any]]:
        """Return copies of the outputs `names` for float32 [batch, 3, crop, crop].

        Raises:
            BundleError: ncnn cannot compute them.
        """
        with self._lock:
            rows = [self._run_image(names, image) for image in batch]
        # The score of an image is an array of length 1.
        return [
            np.concatenate(values) if name == "unknown_score" else np.stack(values)
            for name, values in zip(names, zip(*rows, strict=True), strict=True)
        ]

    def describe(self) -> SessionFacts:
        """Return the options, and the precision of each layer's implementation for this CPU."""
        options = self._net.opt
        return SessionFacts(
            version=ncnn.__version__,
            threads=options.num_threads,
            precision_shares=self._precision_shares(),
            options={
                "use_bf16_storage": str(options.use_bf16_storage),
                "use_fp16_storage": str(options.use_fp16_storage),
                "use_int8_inference": str(options.use_int8_inference),
                "use_packing_layout": str(options.use_packing_layout),
            },
        )

    def profile(self, pixels: NDArray[np.float32], runs: int) -> list[ProfiledNode]:
        """Return nothing: ncnn times layers only in special builds."""
        return []

    def _run_image(self, names: Sequence[str], image: NDArray[np.float32]) -> list[NDArray[Any]]:
        # ncnn reads the array's memory, which must stay until the outputs are computed.
        values = np.ascontiguousarray(image, np.float32)
        with self._net.create_extractor() as extractor:
            extractor.input(_PIXELS, ncnn.Mat(values))
            outputs = []
            for name in names:
                status, output = extractor.extract(name)
                if status != 0:
                    raise BundleError(
                        f"ncnn cannot compute {name} of {self._source.files[0].name}: "
                        f"error {status}. Export the bundle again."
                    )
                outputs.append(np.array(output))
        return outputs

    def _precision_shares(self) -> dict[str, float]:
        """Return the share of the compute layers behind the logits by precision.

        A layer without support for bfloat16 on this CPU gets its input converted to float32. Layers
        with int8 weights compute in int8, as `use_int8_inference` is on.
        """
        int8_layers = _read_int8_layers(self._source.files[0])
        is_bf16 = self._net.opt.use_bf16_storage
        counts: Counter[str] = Counter()
        for layer in self._compute_layers():
            if layer.name in int8_layers:
                counts["int8"] += 1
            else:
                counts["bf16" if is_bf16 and layer.support_bf16_storage else "fp32"] += 1
        total = sum(counts.values())
        return {name: count / total for name, count in counts.most_common()}

    def _compute_layers(self) -> Iterator[ncnn.Layer]:
        """Yield the convolutions and matrix products that the logits depend on."""
        names = [blob.name for blob in self._net.blobs()]
        needed = {names.index("logits")}
        for layer in reversed(self._net.layers()):
            if not needed.isdisjoint(layer.tops):
                needed.update(layer.bottoms)
                if layer.type in _COMPUTE_LAYERS:
                    yield layer


def load_net(files: Sequence[Path], threads: int, precision: str) -> ncnn.Net:
    """Load a `.param` and a `.bin` file.

    Args:
        files: both files.
        threads: number of threads.
        precision: bf16 stores values in bfloat16; in any other the file decides.

    Raises:
        RuntimeError: ncnn cannot load them; it has printed the reason.
    """
    net = ncnn.Net()
    options = net.opt
    options.num_threads = threads
    options.use_vulkan_compute = False
    # On by default: half precision in all layers on ARM and in matrix products on x86.
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_storage = precision == "bf16"
    param, weights = files
    if net.load_param(str(param)) != 0:
        raise RuntimeError(f"{param.name} has layers that it does not have, or is damaged.")
    if net.load_model(str(weights)) != 0:
        raise RuntimeError(f"{weights.name} does not fit {param.name}.")
    return net


def _read_int8_layers(param: Path) -> set[str]:
    """Return the names of the layers with int8 weights."""
    names = set()
    for line in param.read_text(encoding="utf-8").splitlines()[2:]:
        words = line.split()
        if any(word.startswith(_INT8_PARAMETER) and word != "8=0" for word in words):
            names.add(words[1])
    return names
