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

from edgetl.core.preprocessing import Interpolation, Preprocessing

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

_TAPS: dict[Interpolation, int] = {"bilinear": 2, "bicubic": 4}
"""Number of pixels that an enlarged pixel is computed from, along one axis."""
_RESIZE_MODES: dict[Interpolation, str] = {
    "bilinear": 'mode = "linear"',
    "bicubic": 'mode = "cubic", cubic_coeff_a = -0.5',
}
"""Attributes of `Resize`; Pillow's cubic has the coefficient -0.5, ONNX's default is -0.75."""
_FILTER_CONSTANTS: dict[Interpolation, str] = {
    "bilinear": "",
    "bicubic": """double pre_near_cubic = {1.5}, double pre_near_square = {2.5},
            double pre_far_square = {5.0}, double pre_far_linear = {8.0},
            double pre_far_rest = {4.0}, double pre_coefficient = {-0.5},
            double pre_white = {255.0},""",
}
_FILTERS: dict[Interpolation, str] = {
    "bilinear": "AXIS_filter = Sub(pre_one, AXIS_distance)",
    # (1.5 x - 2.5) x x + 1 up to a distance of 1, (((x - 5) x + 8) x - 4) a beyond it; both are 0
    # at 1, so that their sum with x limited to its own side equals the one that applies.
    "bicubic": """AXIS_near = Min(AXIS_distance, pre_one)
        AXIS_near_1 = Mul(AXIS_near, pre_near_cubic)
        AXIS_near_2 = Sub(AXIS_near_1, pre_near_square)
        AXIS_near_3 = Mul(AXIS_near_2, AXIS_near)
        AXIS_near_4 = Mul(AXIS_near_3, AXIS_near)
        AXIS_near_5 = Add(AXIS_near_4, pre_one)
        AXIS_far = Max(AXIS_distance, pre_one)
        AXIS_far_1 = Sub(AXIS_far, pre_far_square)
        AXIS_far_2 = Mul(AXIS_far_1, AXIS_far)
        AXIS_far_3 = Add(AXIS_far_2, pre_far_linear)
        AXIS_far_4 = Mul(AXIS_far_3, AXIS_far)
        AXIS_far_5 = Sub(AXIS_far_4, pre_far_rest)
        AXIS_far_6 = Mul(AXIS_far_5, pre_coefficient)
        AXIS_filter = Add(AXIS_near_5, AXIS_far_6)""",
}
"""Nodes that compute the weights AXIS_filter from AXIS_distance, as Pillow does."""

_NORMALIZATION_CONSTANTS = ("pre_scale", "pre_offset")


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
    crop, interpolation = preprocessing.crop, preprocessing.interpolation
    taps = _TAPS[interpolation]
    tap_offsets = ", ".join(f"{tap}.0" for tap in range(taps))
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
            int64 pre_row = {{0}}, int64 pre_column = {{1}}, int64[1] pre_tap_axis = {{0}},
            int64[1] pre_columns_tap_axis = {{2}}, int64[1] pre_rows_tap_axis = {{1}},
            double pre_zero = {{0.0}}, double pre_half = {{0.5}}, double pre_one = {{1.0}},
            double pre_reach = {{{taps // 2 - 0.5}}},
            double[{taps}, 1] pre_taps = {{{tap_offsets}}},
            {_FILTER_CONSTANTS[interpolation]}
            double pre_fixed_one = {{{fixed_one}}},
            double[3] pre_fixed_pixel = {{{fixed_one}, {fixed_one}, {fixed_one}}},
            double[{crop}] pre_middles = {{{middles}}},
            int64[3] pre_along_columns = {{{taps}, {crop}, 1}},
            int64[4] pre_along_rows = {{{taps}, {crop}, 1, 1}},
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
                    {_enlarge_axis(interpolation, "pre_columns", IMAGE, "pre_wide", axis=2)}
                    {_enlarge_axis(interpolation, "pre_rows", "pre_wide", "pre_high", axis=1)}
                    pre_enlarged = Transpose<perm = [0, 3, 1, 2]>(pre_high)
                }},
                else_branch = shrink () => (uint8[batch, 3, {crop}, {crop}] pre_shrunk) {{
                    pre_planes = Transpose<perm = [0, 3, 1, 2]>({IMAGE})
                    pre_resized = Resize<{_RESIZE_MODES[interpolation]}, antialias = 1, exclude_outside = 1>(
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


def cropping_graph(preprocessing: Preprocessing, opset: int, ir_version: int) -> onnx.ModelProto:
    """Build `image` uint8 [batch, height, width, 3] -> `cropped` uint8 [batch, 3, crop, crop].

    These are the nodes of `preprocessing_graph` without the normalization.
    """
    model = preprocessing_graph(preprocessing, opset, ir_version)
    graph = model.graph
    last = next(index for index, node in enumerate(graph.node) if CROPPED_IMAGE in node.output)
    del graph.node[last + 1 :]
    constants = [value for value in graph.initializer if value.name not in _NORMALIZATION_CONSTANTS]
    cropped = next(value for value in graph.value_info if value.name == CROPPED_IMAGE)
    del graph.initializer[:], graph.output[:], graph.value_info[:]
    graph.initializer.extend(constants)
    graph.output.append(cropped)
    onnx.checker.check_model(model, full_check=True)
    return model


def _enlarge_axis(
    interpolation: Interpolation, name: str, source: str, target: str, axis: int
) -> str:
    """Return the nodes of one enlarging pass of Pillow's resampling, within the crop.

    Each output pixel is a weighted sum of its two (bilinear) or four (bicubic) nearest pixels, in
    30-bit integers in Pillow (ImagingResampleHorizontal_8bpc in Resample.c). The weights are
    multiples of 2^-22, so that products and sums in double are exact.

    Args:
        interpolation: Pillow's filter.
        name: prefix of the value names.
        source: name of the input value, NHWC.
        target: name of the output value.
        axis: 1 for rows, 2 for columns.
    """
    taps = range(_TAPS[interpolation])
    indices, weights, parts = (
        ", ".join(f"{name}_{value}_{tap}" for tap in taps) for value in ("index", "weight", "part")
    )
    weighted_pixels = "".join(
        f"""
        {name}_pixels_{tap} = Gather<axis = {axis}>({source}, {name}_index_{tap})
        {name}_values_{tap} = Cast<to = {DOUBLE}>({name}_pixels_{tap})
        {name}_part_{tap} = Mul({name}_values_{tap}, {name}_weight_{tap})"""
        for tap in taps
    )
    limit, level = "", f"{name}_rounded"
    if interpolation == "bicubic":
        # Negative weights: the sum may leave the range of uint8.
        level = f"{name}_limited"
        limit = f"""
        {name}_not_negative = Max({name}_rounded, pre_zero)
        {level} = Min({name}_not_negative, pre_white)"""
    return f"""
        {_neighbor_weights(interpolation, name, axis)}
        {indices} = Split<num_outputs = {len(taps)}>({name}_indices)
        {weights} = Split<num_outputs = {len(taps)}>({name}_weights)
        {weighted_pixels}
        {name}_sum = Sum({parts})
        {name}_rounded = Add({name}_sum, pre_half)
        {limit}
        {name}_levels = Cast<to = {UINT8}>({level})
        {target} = Squeeze({name}_levels, {name}_tap_axis)
    """


def _neighbor_weights(interpolation: Interpolation, name: str, axis: int) -> str:
    """Return the nodes that compute NAME_indices [taps, crop] and NAME_weights, which broadcast.

    As in precompute_coeffs and normalize_coeffs_8bpc in Pillow's Resample.c, weights are computed in
    double, those of pixels outside the image are left out, the others are divided by their sum and
    rounded to 22 bits, halves away from zero.
    """
    index = "pre_row" if axis == 1 else "pre_column"
    shape = "pre_along_rows" if axis == 1 else "pre_along_columns"
    # One weight per channel: onnxruntime multiplies along rows of pixels eight times as fast as
    # along three channels.
    fixed_one = "pre_fixed_pixel" if axis == 2 else "pre_fixed_one"
    return f"""
        {name}_old = Gather(pre_size, {index})
        {name}_new = Gather(pre_resized_size, {index})
        {name}_old_double = Cast<to = {DOUBLE}>({name}_old)
        {name}_new_double = Cast<to = {DOUBLE}>({name}_new)
        {name}_ratio = Div({name}_old_double, {name}_new_double)
        {name}_first = Gather(pre_start, {index})
        {name}_first_double = Cast<to = {DOUBLE}>({name}_first)
        {name}_middle = Add(pre_middles, {name}_first_double)
        {name}_center = Mul({name}_middle, {name}_ratio)
        {name}_reach = Sub({name}_center, pre_reach)
        {name}_nearest = Floor({name}_reach)
        {name}_position = Add({name}_nearest, pre_taps)
        {name}_last = Sub({name}_old_double, pre_one)
        {name}_not_before = Max({name}_position, pre_zero)
        {name}_inner = Min({name}_not_before, {name}_last)
        {name}_is_inside = Equal({name}_position, {name}_inner)
        {name}_inside = Cast<to = {DOUBLE}>({name}_is_inside)
        {name}_offset = Sub({name}_position, {name}_center)
        {name}_shifted = Add({name}_offset, pre_half)
        {name}_distance = Abs({name}_shifted)
        {_FILTERS[interpolation].replace("AXIS", name)}
        {name}_kept = Mul({name}_filter, {name}_inside)
        {name}_total = ReduceSum({name}_kept, pre_tap_axis)
        {name}_share = Div({name}_kept, {name}_total)
        {name}_scaled = Mul({name}_share, pre_fixed_one)
        {name}_sign = Sign({name}_scaled)
        {name}_signed_half = Mul({name}_sign, pre_half)
        {name}_away = Add({name}_scaled, {name}_signed_half)
        {name}_integer = Cast<to = {INT64}>({name}_away)
        {name}_integer_double = Cast<to = {DOUBLE}>({name}_integer)
        {name}_shaped = Reshape({name}_integer_double, {shape})
        {name}_weights = Div({name}_shaped, {fixed_one})
        {name}_indices = Cast<to = {INT64}>({name}_inner)
    """
