"""Preprocessing for images of one size as ONNX nodes: two matrix products instead of a Resize.

TensorRT does not support antialiased `Resize`, and a CUDA graph cannot contain the `If` that images
of any size need. For one size Pillow's resampling is a fixed linear map along each axis, so its
weights are computed at export.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgetl.core.preprocessing import Preprocessing
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
    crop = preprocessing.crop
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
            float pre_half = {{0.5}},
            float[3, 1, 1] pre_scale = {{{scale}}}, float[3, 1, 1] pre_offset = {{{offset}}}
        >
        {{
            pre_levels = Cast<to = {TensorProto.FLOAT}>({IMAGE})
            pre_planes = Transpose<perm = [0, 3, 1, 2]>(pre_levels)
            pre_wide = MatMul(pre_planes, pre_columns)
            pre_wide_up = Add(pre_wide, pre_half)
            pre_wide_levels = Floor(pre_wide_up)
            pre_high = MatMul(pre_rows, pre_wide_levels)
            pre_high_up = Add(pre_high, pre_half)
            {CROPPED_IMAGE} = Floor(pre_high_up)
            pre_scaled = Mul({CROPPED_IMAGE}, pre_scale)
            {PIXELS} = Add(pre_scaled, pre_offset)
        }}
    """)
    columns = resampling_matrix(width, new_width, left, crop).T
    rows = resampling_matrix(height, new_height, top, crop)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.ascontiguousarray(columns), "pre_columns"),
            numpy_helper.from_array(rows, "pre_rows"),
        ]
    )
    return model


def resampling_matrix(old: int, new: int, first: int, count: int) -> NDArray[np.float32]:
    """Return Pillow's bilinear weights from `old` pixels to `count` of `new` pixels, [count, old].

    The weights are computed in double precision and rounded to 22 bits, as in precompute_coeffs and
    normalize_coeffs_8bpc in Pillow's Resample.c; a float32 holds them exactly.

    Args:
        old: number of pixels before the resize.
        new: number of pixels after the resize.
        first: index of the first pixel of the crop.
        count: number of pixels of the crop.
    """
    matrix = np.zeros((count, old))
    scale = old / new
    filter_scale = max(scale, 1.0)
    for row in range(count):
        center = (first + row + 0.5) * scale
        start = max(0, int(center - filter_scale + 0.5))
        stop = min(old, int(center + filter_scale + 0.5))
        distances = (np.arange(start, stop) - center + 0.5) / filter_scale
        weights = np.maximum(0.0, 1.0 - np.abs(distances))
        matrix[row, start:stop] = weights / math.fsum(weights)
    fixed_point_scale = 1 << FIXED_POINT_BITS
    return (np.floor(matrix * fixed_point_scale + 0.5) / fixed_point_scale).astype(np.float32)
