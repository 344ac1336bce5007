from __future__ import annotations

import pytest

from edgetl.core.artifacts.bench_rows import BlockResult
from edgetl.core.typed_json import FieldError, parse_as


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
