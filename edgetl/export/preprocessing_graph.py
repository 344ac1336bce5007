"""The preprocessing contract as ONNX nodes, so that it travels inside the file.

The image is resized as uint8 and cast afterwards: on uint8 onnxruntime's antialiased `Resize` equals Pillow to one grey level and is as
fast. `exclude_outside=1` is what makes the borders right; without it they are off by several levels.
"""

from __future__ import annotations

import onnx
import onnx.parser
from onnx import TensorProto

from edgetl.core.preprocessing import Preprocessing

IMAGE, CROPPED, PIXELS = "image", "cropped", "pixels"
"""Names of the graph's values: the photo, the uint8 crop that Pillow would give, the network's float input."""


def preprocessing_graph(contract: Preprocessing, opset: int, ir_version: int) -> onnx.ModelProto:
    """A model `image` uint8 [batch, height, width, 3] -> `pixels` float32 [batch, 3, crop, crop].

    `Round` goes to the even neighbour, as the contract's crop does; the sizes are computed in int64, as Python computes them.
    """
    crop = contract.crop
    scale = ", ".join(repr(1 / (255 * std)) for std in contract.std)
    offset = ", ".join(repr(-mean / std) for mean, std in zip(contract.mean, contract.std, strict=True))
    return onnx.parser.parse_model(f"""
        <ir_version: {ir_version}, opset_import: ["" : {opset}]>
        preprocessing (uint8[batch, height, width, 3] {IMAGE}) => (float[batch, 3, {crop}, {crop}] {PIXELS})
        <
            int64 pre_resize = {{{contract.resize}}}, int64[2] pre_crop = {{{crop}, {crop}}}, int64[2] pre_axes = {{1, 2}},
            int64[1] pre_channels = {{3}}, float pre_two = {{2.0}},
            float[1, 3, 1, 1] pre_scale = {{{scale}}}, float[1, 3, 1, 1] pre_offset = {{{offset}}},
            uint8[batch, {crop}, {crop}, 3] {CROPPED}
        >
        {{
            pre_batch = Shape<start = 0, end = 1>({IMAGE})
            pre_size = Shape<start = 1, end = 3>({IMAGE})
            pre_shorter = ReduceMin<keepdims = 0>(pre_size)
            pre_product = Mul(pre_size, pre_resize)
            pre_resized_size = Div(pre_product, pre_shorter)
            pre_sizes = Concat<axis = 0>(pre_batch, pre_resized_size, pre_channels)
            pre_resized = Resize<mode = "linear", antialias = 1, exclude_outside = 1>({IMAGE}, , , pre_sizes)
            pre_spare = Sub(pre_resized_size, pre_crop)
            pre_spare_float = Cast<to = {TensorProto.FLOAT}>(pre_spare)
            pre_margin = Div(pre_spare_float, pre_two)
            pre_margin_rounded = Round(pre_margin)
            pre_start = Cast<to = {TensorProto.INT64}>(pre_margin_rounded)
            pre_end = Add(pre_start, pre_crop)
            {CROPPED} = Slice(pre_resized, pre_start, pre_end, pre_axes)
            pre_planes = Transpose<perm = [0, 3, 1, 2]>({CROPPED})
            pre_values = Cast<to = {TensorProto.FLOAT}>(pre_planes)
            pre_scaled = Mul(pre_values, pre_scale)
            {PIXELS} = Add(pre_scaled, pre_offset)
        }}
    """)
