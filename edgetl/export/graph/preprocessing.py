"""Preprocessing as ONNX nodes, to be part of the exported file.

The image is resized as uint8 and cast afterwards. Shrinking uses ONNX `Resize`: on uint8 with
`exclude_outside=1`, onnxruntime's antialiased version equals Pillow to one grey level and is as
fast. Enlarging is written out in Pillow's fixed-point arithmetic and is exact: in float32, `Resize`
rounds values halfway between two grey levels differently from Pillow; at ratios such as 9:8 this
affects one pixel in fifty, enough to change logits by 0.1.

The graph also suits onnxruntime's CUDA provider, which does not support antialiased Resize on uint8
in NHWC, has no BitShift, and copies between host and device if a subgraph computes shapes or if a
constant is read on both sides. Enlarging therefore sums in double, which holds Pillow's 30-bit
integers exactly.
"""

from __future__ import annotations

import onnx
import onnx.parser
from onnx import TensorProto

from edgetl.core.preprocessing import Preprocessing

IMAGE, CROPPED_IMAGE, PIXELS = "image", "cropped", "pixels"
"""Value names: the photo, its crop (uint8 [batch, 3, crop, crop]) and the network's input."""
FIXED_POINT_BITS = 22
"""Precision of the weights in Pillow's 8-bit resampling (PRECISION_BITS in Resample.c)."""
DOUBLE, FLOAT, INT64, UINT8 = (
    TensorProto.DOUBLE,
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.UINT8,
)


def preprocessing_graph(
    preprocessing: Preprocessing, opset: int, ir_version: int
) -> onnx.ModelProto:
    """Build `image` uint8 [batch, height, width, 3] -> `pixels` float32 [batch, 3, crop, crop].

    `Round` rounds half to even, as the crop in `Preprocessing` does; sizes are int64, so that the
    arithmetic equals Python's.

    Args:
        preprocessing: what the graph computes.
        opset: ONNX opset, 18 or newer.
        ir_version: ONNX IR version.
    """
    crop = preprocessing.crop
    fixed_one = f"{1 << FIXED_POINT_BITS}.0"
    scale = ", ".join(repr(1 / (255 * std)) for std in preprocessing.std)
    offset = ", ".join(
        repr(-mean / std) for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)
    )
    middles = ", ".join(f"{index}.5" for index in range(crop))
    return onnx.parser.parse_model(f"""
        <ir_version: {ir_version}, opset_import: ["" : {opset}]>
        preprocessing (uint8[batch, height, width, 3] {IMAGE})
            => (float[batch, 3, {crop}, {crop}] {PIXELS})
        <
            int64 pre_resize = {{{preprocessing.resize}}}, int64[2] pre_crop = {{{crop}, {crop}}},
            int64[2] pre_axes = {{2, 3}}, int64[1] pre_channels = {{3}}, float pre_two = {{2.0}},
            int64 pre_row = {{0}}, int64 pre_column = {{1}}, int64 pre_int_one = {{1}},
            double pre_zero = {{0.0}}, double pre_half = {{0.5}}, double pre_one = {{1.0}},
            double pre_fixed_one = {{{fixed_one}}},
            double[1, 1, 1, 3] pre_fixed_pixel = {{{fixed_one}, {fixed_one}, {fixed_one}}},
            double[{crop}] pre_middles = {{{middles}}},
            int64[4] pre_along_columns = {{1, 1, {crop}, 1}},
            int64[4] pre_along_rows = {{1, {crop}, 1, 1}},
            float[3, 1, 1] pre_scale = {{{scale}}}, float[3, 1, 1] pre_offset = {{{offset}}},
            uint8[batch, 3, {crop}, {crop}] {CROPPED_IMAGE}
        >
        {{
            pre_batch = Shape<start = 0, end = 1>({IMAGE})
            pre_size = Shape<start = 1, end = 3>({IMAGE})
            pre_shorter = ReduceMin<keepdims = 0>(pre_size)
            pre_product = Mul(pre_size, pre_resize)
            pre_resized_size = Div(pre_product, pre_shorter)
            pre_spare = Sub(pre_resized_size, pre_crop)
            pre_spare_float = Cast<to = {FLOAT}>(pre_spare)
            pre_margin = Div(pre_spare_float, pre_two)
            pre_margin_rounded = Round(pre_margin)
            pre_start = Cast<to = {INT64}>(pre_margin_rounded)
            pre_end = Add(pre_start, pre_crop)
            pre_sizes = Concat<axis = 0>(pre_batch, pre_channels, pre_resized_size)
            pre_enlarge = Less(pre_shorter, pre_resize)
            {CROPPED_IMAGE} = If(pre_enlarge) <
                then_branch = enlarge () => (uint8[batch, 3, {crop}, {crop}] pre_enlarged) {{
                    {_enlarge_axis("pre_columns", IMAGE, "pre_wide", axis=2)}
                    {_enlarge_axis("pre_rows", "pre_wide", "pre_high", axis=1)}
                    pre_enlarged = Transpose<perm = [0, 3, 1, 2]>(pre_high)
                }},
                else_branch = shrink () => (uint8[batch, 3, {crop}, {crop}] pre_shrunk) {{
                    pre_planes = Transpose<perm = [0, 3, 1, 2]>({IMAGE})
                    pre_resized = Resize<mode = "linear", antialias = 1, exclude_outside = 1>(
                        pre_planes, , , pre_sizes
                    )
                    pre_shrunk = Slice(pre_resized, pre_start, pre_end, pre_axes)
                }}
            >
            pre_values = Cast<to = {FLOAT}>({CROPPED_IMAGE})
            pre_scaled = Mul(pre_values, pre_scale)
            {PIXELS} = Add(pre_scaled, pre_offset)
        }}
    """)


def _enlarge_axis(name: str, source: str, target: str, axis: int) -> str:
    """Return the nodes of one enlarging pass of Pillow's bilinear resampling, within the crop.

    Each output pixel is a weighted sum of its two neighbors. Pillow computes the weights in double
    precision, rounds them to 22 bits, and sums in 30-bit integers (precompute_coeffs,
    normalize_coeffs_8bpc and ImagingResampleHorizontal_8bpc in Resample.c). At the borders the
    nearest pixel has the full weight.

    Args:
        name: prefix of the value names.
        source: name of the input value, NHWC.
        target: name of the output value.
        axis: 1 for rows, 2 for columns.
    """
    index = "pre_row" if axis == 1 else "pre_column"
    shape = "pre_along_rows" if axis == 1 else "pre_along_columns"
    return f"""
        {name}_old = Gather(pre_size, {index})
        {name}_new = Gather(pre_resized_size, {index})
        {name}_old_double = Cast<to = {DOUBLE}>({name}_old)
        {name}_new_double = Cast<to = {DOUBLE}>({name}_new)
        {name}_ratio = Div({name}_old_double, {name}_new_double)
        {name}_first = Gather(pre_start, {index})
        {name}_first_double = Cast<to = {DOUBLE}>({name}_first)
        {name}_middle = Add(pre_middles, {name}_first_double)
        {name}_centre = Mul({name}_middle, {name}_ratio)
        {name}_shifted = Sub({name}_centre, pre_half)
        {name}_last_double = Sub({name}_old_double, pre_one)
        {name}_not_before = Max({name}_shifted, pre_zero)
        {name}_position = Min({name}_not_before, {name}_last_double)
        {name}_floor = Floor({name}_position)
        {name}_share_flat = Sub({name}_position, {name}_floor)
        {name}_share = Reshape({name}_share_flat, {shape})
        {name}_rest = Sub(pre_one, {name}_share)
        {name}_left = Cast<to = {INT64}>({name}_floor)
        {name}_next = Add({name}_left, pre_int_one)
        {name}_last = Sub({name}_old, pre_int_one)
        {name}_right = Min({name}_next, {name}_last)
        {_weighted_neighbors(name, "left", "rest", source, axis)}
        {_weighted_neighbors(name, "right", "share", source, axis)}
        {name}_sum = Add({name}_left_part, {name}_right_part)
        {name}_rounded = Add({name}_sum, pre_half)
        {target} = Cast<to = {UINT8}>({name}_rounded)
    """


def _weighted_neighbors(name: str, side: str, share: str, source: str, axis: int) -> str:
    """Return the nodes that multiply the neighbors on one side by Pillow's weights.

    The weights are multiples of 2^-22, so that products and sums in double are exact.
    """
    # One weight per channel: onnxruntime multiplies along rows of pixels eight times as fast as
    # along three channels.
    fixed_one = "pre_fixed_pixel" if axis == 2 else "pre_fixed_one"
    return f"""
        {name}_{side}_scaled = Mul({name}_{share}, {fixed_one})
        {name}_{side}_up = Add({name}_{side}_scaled, pre_half)
        {name}_{side}_floor = Floor({name}_{side}_up)
        {name}_{side}_weight = Div({name}_{side}_floor, pre_fixed_one)
        {name}_{side}_pixels = Gather<axis = {axis}>({source}, {name}_{side})
        {name}_{side}_values = Cast<to = {DOUBLE}>({name}_{side}_pixels)
        {name}_{side}_part = Mul({name}_{side}_values, {name}_{side}_weight)
    """
