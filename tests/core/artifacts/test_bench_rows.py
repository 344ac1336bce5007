from __future__ import annotations

import pytest

from edgetl.core.artifacts.bench_rows import BlockResult
from edgetl.core.artifacts.session import SessionRecord
from edgetl.core.typed_json import FieldError, parse_as
from tests.helpers.bench_results import bench_row


def test_gpu_reading_requires_summarized_fields() -> None:
    cold = {
        "import_ms": 1.0,
        "session_ms": 1.0,
        "first_inference_ms": 1.0,
        "peak_memory_bytes": None,
    }
    reading = {
        "sm_clocks_mhz": [1500, 1600],
        "max_sm_clock_mhz": 1980,
        "throttle_reasons": [],
        "temperature_c": 40,
        "power_w": None,
        "memory_used_bytes": 5,
    }
    block = parse_as(BlockResult, {"latencies_ns": [1, 2], "cold": cold, "gpu": reading})
    assert block.gpu is not None
    assert block.gpu.sm_clocks_mhz == (1500, 1600)
    for name in reading:
        incomplete = {key: value for key, value in reading.items() if key != name}
        with pytest.raises(FieldError, match=f"no field '{name}'"):
            parse_as(BlockResult, {"latencies_ns": [1, 2], "cold": cold, "gpu": incomplete})


@pytest.mark.parametrize(
    ("runtime", "variant", "session", "name", "bits"),
    [
        ("onnxruntime", "int8", SessionRecord(), "onnxruntime int8", 8),
        ("onnxruntime", "int8-dynamic", SessionRecord(), "onnxruntime int8-dynamic", 8),
        ("openvino", "openvino-int8", SessionRecord(precision="int8"), "openvino-int8", 8),
        ("openvino", "fp32", SessionRecord(precision="bf16"), "openvino fp32", 16),
        ("pytorch", "compile", SessionRecord(dtype="float32"), "pytorch compile", 32),
        ("onnxruntime", "model", SessionRecord(), "onnxruntime model", None),
    ],
)
def test_row_has_a_name_and_the_bits_of_its_precision(
    runtime: str, variant: str, session: SessionRecord, name: str, bits: int | None
) -> None:
    row = bench_row(runtime, variant, 1.0, runs=1, session=session)
    assert (row.name, row.precision_bits) == (name, bits)
