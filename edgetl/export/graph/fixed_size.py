"""Preprocessing for images of one size as ONNX nodes: two matrix products instead of a Resize.

TensorRT does not support antialiased `Resize`, and a CUDA graph cannot contain the `If` that images
of any size need. For one size Pillow's resampling is a fixed linear map along each axis, so its
weights are computed at export.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgetl.core.preprocessing import Interpolation, Preprocessing
from edgetl.export.graph.preprocessing import CROPPED_IMAGE, FIXED_POINT_BITS, IMAGE, PIXELS


def fixed_size_graph(
    preprocessing: Preprocessing, size: tuple[int, int], opset: int, ir_version: int
) -> onnx.ModelProto:
    """Build `image` uint8 [batch, height, width, 3] -> `pixels` float32 [batch, 3, crop, crop].

    All shapes except the batch are fixed. The crop holds grey levels as float32, because TensorRT
    supports uint8 only at a graph's inputs.

    Args:
        preprocessing: what the graph computes.
        size: (height, width) in pixels.
        opset: ONNX opset, 13 or newer.
        ir_version: ONNX IR version.
    """
    height, width = size
    crop, interpolation = preprocessing.crop, preprocessing.interpolation
    limits = (
        "float pre_black = {0.0}, float pre_white = {255.0}," if interpolation == "bicubic" else ""
    )
    new_height, new_width = preprocessing.compute_resized_size(height, width)
    top, left = preprocessing.compute_crop_offset(new_height, new_width)
    scale = ", ".join(repr(1 / (255 * std)) for std in preprocessing.std)
    offset = ", ".join(
        repr(-mean / std) for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)
    )
    # Resize the columns first and round each pass to grey levels, as resize_and_crop does.
    model = onnx.parser.parse_model(f"""
        <ir_version: {ir_version}, opset_import: ["" : {opset}]>
        preprocessing (uint8[batch, {height}, {width}, 3] {IMAGE})
            => (float[batch, 3, {crop}, {crop}] {PIXELS})
        <
            float pre_half = {{0.5}}, {limits}
            float[3, 1, 1] pre_scale = {{{scale}}}, float[3, 1, 1] pre_offset = {{{offset}}}
        >
        {{
            pre_levels = Cast<to = {TensorProto.FLOAT}>({IMAGE})
            pre_planes = Transpose<perm = [0, 3, 1, 2]>(pre_levels)
            pre_wide = MatMul(pre_planes, pre_columns)
            {_round_to_levels("pre_wide", "pre_wide_levels", interpolation)}
            pre_high = MatMul(pre_rows, pre_wide_levels)
            {_round_to_levels("pre_high", CROPPED_IMAGE, interpolation)}
            pre_scaled = Mul({CROPPED_IMAGE}, pre_scale)
            {PIXELS} = Add(pre_scaled, pre_offset)
        }}
    """)
    columns = resampling_matrix(width, new_width, left, crop, interpolation).T
    rows = resampling_matrix(height, new_height, top, crop, interpolation)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.ascontiguousarray(columns), "pre_columns"),
            numpy_helper.from_array(rows, "pre_rows"),
        ]
    )
    return model


def _round_to_levels(source: str, target: str, interpolation: Interpolation) -> str:
    if interpolation == "bilinear":
        return f"""
            {source}_up = Add({source}, pre_half)
            {target} = Floor({source}_up)
        """
    # Negative weights: the sum may leave the range of grey levels.
    return f"""
        {source}_up = Add({source}, pre_half)
        {source}_limited = Clip({source}_up, pre_black, pre_white)
        {target} = Floor({source}_limited)
    """


def resampling_matrix(
    old: int, new: int, first: int, count: int, interpolation: Interpolation
) -> NDArray[np.float32]:
    """Return Pillow's weights from `old` pixels to `count` of `new` pixels, [count, old].

    The weights are computed in double precision and rounded to 22 bits, as in precompute_coeffs and
    normalize_coeffs_8bpc in Pillow's Resample.c; a float32 holds them exactly.

    Args:
        old: number of pixels before the resize.
        new: number of pixels after the resize.
        first: index of the first pixel of the crop.
        count: number of pixels of the crop.
        interpolation: Pillow's filter.
    """
    support, compute_weights = _FILTERS[interpolation]
    matrix = np.zeros((count, old))
    scale = old / new
    filter_scale = max(scale, 1.0)
    for row in range(count):
        center = (first + row + 0.5) * scale
        start = max(0, int(center - support * filter_scale + 0.5))
        stop = min(old, int(center + support * filter_scale + 0.5))
        distances = np.abs((np.arange(start, stop) - center + 0.5) / filter_scale)
        weights = compute_weights(distances)
        matrix[row, start:stop] = weights / math.fsum(weights)
    fixed_point_scale = 1 << FIXED_POINT_BITS
    scaled = matrix * fixed_point_scale
    # Halves are rounded away from zero.
    return (np.trunc(scaled + np.copysign(0.5, scaled)) / fixed_point_scale).astype(np.float32)


def _compute_bilinear_weights(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - distances)


def _compute_bicubic_weights(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of Keys' cubic convolution (1981) with a = -0.5, as in Pillow."""
    near = (1.5 * distances - 2.5) * distances * distances + 1
    far = (((distances - 5) * distances + 8) * distances - 4) * -0.5
    return np.select([distances < 1, distances < 2], [near, far], 0.0)


_FILTERS: dict[Interpolation, tuple[float, Callable[[NDArray[np.float64]], NDArray[np.float64]]]]
_FILTERS = {
    "bilinear": (1.0, _compute_bilinear_weights),
    "bicubic": (2.0, _compute_bicubic_weights),
}
"""Half the width of each filter in pixels, and its weights by distance."""
