"""The recommended variant meets all limits; rejected variants have reasons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.artifacts.bundle import (
    AccuracyRecord,
    LatencyRecord,
    ParityRecord,
    PathParity,
    VariantRecord,
)
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.parsers import parse_milliseconds
from edgetl.core.errors import ConfigError
from edgetl.export.variant_selection import accuracy_drop, choose, describe_closest_variant


def variant(
    name: str,
    p50: float | None,
    size: int = 100,
    drop: float = 0.0,
    verdict: str = "faster",
    **latency: Any,
) -> VariantRecord:
    record = LatencyRecord(p50, 2, "a CPU", 6, **latency)
    if p50:
        record = replace(record, speedup=2.0, interval=(1.5, 2.5), verdict=verdict)
    accuracy = AccuracyRecord("validation", 100, 0.9, (0.8, 0.95), 0.9, drop, flips=0)
    return VariantRecord(
        name, f"{name}.onnx", "0", size, name, "image", 18, PARITY, accuracy, record
    )


PARITY = ParityRecord(PathParity(100, "validation", 0.1, 0.2, top1_agreement=0.97))


def test_choose_takes_fastest_within_accuracy_limit() -> None:
    variants = [variant("fp32", 4.0), variant("int8", 1.0, drop=2.0), variant("fp16", 2.0)]
    assert choose(variants, ExportConfig()).name == "fp16"
    assert "loses 2.0 points" in choose(variants, ExportConfig()).rejection_reasons["int8"]
    assert choose(variants, ExportConfig(max_accuracy_drop=2.0)).name == "int8"


@pytest.mark.parametrize("verdict", ["slower", "inconclusive"])
def test_choose_rejects_variant_not_faster_than_fp32(verdict: str) -> None:
    variants = [variant("fp32", 4.0), variant("int8", 3.9, verdict=verdict, size=25)]
    choice = choose(variants, ExportConfig())
    assert choice.name == "fp32"
    assert (
        "was not significantly faster than fp32 at export: 2.00 times [1.50, 2.50]"
        in choice.rejection_reasons["int8"]
    )
    assert choose(variants, ExportConfig(optimise="size")).name == "int8", "speed does not matter"


def test_choose_returns_none_when_no_variant_fits() -> None:
    variants = [variant("fp32", 4.0), variant("int8", 1.0, drop=5.0), variant("fp16", 3.0)]
    config = ExportConfig(max_latency_ms=2.0)
    choice = choose(variants, config)
    assert choice.name is None
    assert choice.rejection_reasons.keys() == {"fp32", "int8", "fp16"}
    assert (
        describe_closest_variant(variants, config)
        == "fp16 came closest: 3.00 ms with 0.0 points lost."
    )


def test_choose_rejects_variant_with_failed_gate() -> None:
    variants = [variant("fp32", 4.0), variant("int8", None, reason="logits differ")]
    assert choose(variants, ExportConfig(optimise="size")).rejection_reasons == {
        "int8": "was not timed: logits differ"
    }


def test_choose_accepts_unproven_speedup_when_fp32_too_slow() -> None:
    variants = [variant("fp32", 5.2), variant("int8", 4.9, verdict="inconclusive")]
    assert choose(variants, ExportConfig(max_latency_ms=5.0)).name == "int8"
    assert choose(variants, ExportConfig(max_latency_ms=6.0)).name == "fp32"


@given(
    st.lists(
        st.tuples(
            st.floats(0.1, 10),
            st.integers(1, 1000),
            st.floats(-2, 30),
            st.sampled_from(["faster", "slower", "inconclusive"]),
        ),
        min_size=1,
        max_size=5,
    ),
    st.floats(0, 30),
    st.none() | st.floats(0.1, 10),
    st.sampled_from(["latency", "size"]),
)
def test_chosen_variant_meets_all_limits(
    measurements: list[tuple[float, int, float, str]],
    drop: float,
    latency: float | None,
    goal: Any,
) -> None:
    variants = [variant("fp32", measurements[0][0], measurements[0][1], 0.0)]
    variants += [variant(f"v{index}", *values) for index, values in enumerate(measurements[1:])]
    config = ExportConfig(max_accuracy_drop=drop, max_latency_ms=latency, optimise=goal)
    choice = choose(variants, config)
    allowed = [
        item
        for item in variants
        if accuracy_drop(item) <= drop and (latency is None or item.p50_ms <= latency)
    ]
    if choice.name is None:
        assert "fp32" not in [item.name for item in allowed]
    else:
        chosen = next(item for item in variants if item.name == choice.name)
        assert chosen in allowed
        assert choice.name not in choice.rejection_reasons
        if goal == "size":
            assert chosen.bytes == min(item.bytes for item in allowed)


def test_accuracy_drop_is_label_disagreement_without_labels() -> None:
    unlabeled = replace(variant("int8", 1.0), accuracy=None)
    assert accuracy_drop(unlabeled) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5.0), ("5ms", 5.0), ("1.5 MS", 1.5), ("800us", 0.8), ("0.2s", 200.0)],
)
def test_parse_milliseconds_accepts_units(text: str, expected: float) -> None:
    assert parse_milliseconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "fast", "-5ms", "5 minutes", "ms"])
def test_parse_milliseconds_rejects_other_text(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a latency"):
        parse_milliseconds(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"variants": ("fp32", "int4")},
            "variants must be among fp32, fp16, int8, .* got 'int4'",
        ),
        ({"optimise": "power"}, "optimise must be"),
        ({"max_accuracy_drop": -1.0}, "max_accuracy_drop must"),
        ({"max_latency_ms": 0.0}, "max_latency_ms must"),
    ],
)
def test_export_config_rejects_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**options)
