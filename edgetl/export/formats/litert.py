"""Conversion to LiteRT's format (.tflite), in float32 and in int8."""

from __future__ import annotations

from edgetl.core.errors import ExportError
from edgetl.core.progress import LOGGER
from edgetl.export.formats.task import ConversionTask, ConvertedFile
from edgetl.export.formats.tflite_conversion import convert_onnx

_RUNTIME = "litert"


def convert_to_litert(task: ConversionTask) -> list[ConvertedFile]:
    """Write the float32 network and, if wanted, the int8 variant with its steps.

    Raises:
        ExportError: LiteRT has no operator for a node of the network.
    """
    files = task.paths(_RUNTIME, "litert-fp32")
    convert_onnx(task.float32.model, files[0])
    converted = [ConvertedFile("litert-fp32", files, "fp32")]
    if task.int8 is not None:
        files = task.paths(_RUNTIME, "litert-int8")
        try:
            convert_onnx(task.int8.model, files[0])
        except ExportError as cause:
            LOGGER.warning("litert-int8 is left out: %s", cause)
        else:
            method = "the QDQ file of the variant int8, with its steps"
            confidence = task.int8.confidence
            converted.append(ConvertedFile("litert-int8", files, "int8", method, confidence))
    elif task.wants_int8:
        LOGGER.warning("litert-int8 is left out: there is no variant int8 to convert.")
    return converted
