"""Post-training quantization with NNCF, the quantizer of the OpenVINO project.

It works on ONNX networks, so that its result is assembled and proven like edgetl's own.
"""

from __future__ import annotations

from importlib.util import find_spec

import onnx

from edgetl.core.errors import ExportError
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.quantize.images import CroppedImages


def is_nncf_installed() -> bool:
    """Return whether NNCF can be imported."""
    return find_spec("nncf") is not None


def quantize_with_nncf(network: onnx.ModelProto, images: CroppedImages) -> onnx.ModelProto:
    """Quantize a network to int8 in QDQ form with NNCF's defaults.

    Source: NNCF's documentation, "Post-Training Quantization", ONNX backend.

    Args:
        network: `pixels` float32 [batch, 3, S, S] -> `logits`.
        images: calibration images.

    Raises:
        ExportError: NNCF cannot quantize the network.
    """
    import nncf

    dataset = nncf.Dataset(list(images.batches(1)), lambda batch: {PIXELS: batch})
    try:
        quantized: onnx.ModelProto = nncf.quantize(network, dataset, subset_size=len(images))
    except Exception as cause:  # NNCF's exceptions share no base class
        message = " ".join(str(cause).split())[:300]
        raise ExportError(
            f"NNCF {nncf.__version__} cannot quantize the network: {message} "
            "Uninstall nncf to use the network of the variant int8."
        ) from cause
    return quantized
