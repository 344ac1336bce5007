"""The recommendation keeps every limit, and says why not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.config.export import ExportConfig
from edgetl.core.config.options import parse_milliseconds
from edgetl.core.errors import ConfigError
from edgetl.device.runtime.bundle import Variant
from edgetl.export.selection import accuracy_drop, choose, describe_closest_variant


def variant(
    name: str,
    p50: float | None,
    size: int = 100,
    drop: float = 0.0,
    verdict: str = "faster",
    **latency: Any,
) -> Variant:
    timed = (
        {"p50_ms": p50, "speedup": 2.0, "ci95": [1.5, 2.5], "verdict": verdict, **latency}
        if p50
        else {"p50_ms": None, **latency}
    )
    return Variant(name, f"{name}.onnx", "0", size, name, "image", 18, {}, {"drop": drop}, timed)


def test_the_fastest_that_keeps_the_accuracy() -> None:
    variants = [variant("fp32", 4.0), variant("int8", 1.0, drop=2.0), variant("fp16", 2.0)]
    assert choose(variants, ExportConfig()).name == "fp16"
    assert "loses 2.0 points" in choose(variants, ExportConfig()).rejection_reasons["int8"]
    assert choose(variants, ExportConfig(max_accuracy_drop=2.0)).name == "int8"


@pytest.mark.parametrize("verdict", ["slower", "inconclusive", "noisy"])
def test_what_is_not_shown_faster_is_not_recommended(verdict: str) -> None:
    variants = [variant("fp32", 4.0), variant("int8", 3.9, verdict=verdict, size=25)]
    choice = choose(variants, ExportConfig())
    assert choice.name == "fp32"
    assert (
        "not shown faster than fp32 here: 2.00 times [1.50, 2.50]"
        in choice.rejection_reasons["int8"]
    )
    assert choose(variants, ExportConfig(optimise="size")).name == "int8", "for size it need not be"


def test_limits_that_nothing_meets() -> None:
    variants = [variant("fp32", 4.0), variant("int8", 1.0, drop=5.0), variant("fp16", 3.0)]
    config = ExportConfig(max_latency_ms=2.0)
    choice = choose(variants, config)
    assert choice.name is None
    assert choice.rejection_reasons.keys() == {"fp32", "int8", "fp16"}
    assert (
        describe_closest_variant(variants, config)
        == "fp16 came closest: 3.00 ms with 0.0 points lost."
    )


def test_what_failed_its_gate_is_out() -> None:
    variants = [variant("fp32", 4.0), variant("int8", None, reason="logits differ")]
    assert choose(variants, ExportConfig(optimise="size")).rejection_reasons == {
        "int8": "was not timed: logits differ"
    }


def test_where_fp32_is_too_slow_a_variant_need_not_be_shown_faster() -> None:
    variants = [variant("fp32", 5.2), variant("int8", 4.9, verdict="noisy")]
    assert choose(variants, ExportConfig(max_latency_ms=5.0)).name == "int8"
    assert choose(variants, ExportConfig(max_latency_ms=6.0)).name == "fp32"


@given(
    st.lists(
        st.tuples(st.floats(0.1, 10), st.integers(1, 1000), st.floats(-2, 30), st.sampled_from(["faster", "slower", "inconclusive"])),
        min_size=1, max_size=5,
    ),
    st.floats(0, 30), st.none() | st.floats(0.1, 10), st.sampled_from(["latency", "size"]),
)  # fmt: skip
def test_no_limit_is_ever_broken(
    found: list[tuple[float, int, float, str]], drop: float, latency: float | None, goal: Any
) -> None:
    variants = [variant("fp32", found[0][0], found[0][1], 0.0)]
    variants += [variant(f"v{index}", *figures) for index, figures in enumerate(found[1:])]
    config = ExportConfig(max_accuracy_drop=drop, max_latency_ms=latency, optimise=goal)
    choice = choose(variants, config)
    allowed = [
        one
        for one in variants
        if accuracy_drop(one) <= drop and (latency is None or one.latency["p50_ms"] <= latency)
    ]
    if choice.name is None:
        assert "fp32" not in [one.name for one in allowed]
    else:
        chosen = next(one for one in variants if one.name == choice.name)
        assert chosen in allowed
        assert choice.name not in choice.rejection_reasons
        if goal == "size":
            assert chosen.bytes == min(one.bytes for one in allowed)


def test_without_labels_another_label_counts_as_lost() -> None:
    unlabelled = Variant(
        "int8", "int8.onnx", "0", 1, "int8", "image", 18, {"path": {"top1_agreement": 0.97}}
    )
    assert accuracy_drop(unlabelled) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5.0), ("5ms", 5.0), ("1.5 MS", 1.5), ("800us", 0.8), ("0.2s", 200.0)],
)
def test_latencies_as_people_write_them(text: str, expected: float) -> None:
    assert parse_milliseconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "fast", "-5ms", "5 minutes", "ms"])
def test_other_texts_are_no_latency(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a latency"):
        parse_milliseconds(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("fp32", "int4")}, "--variants must be among fp32, fp16, int8, .* got 'int4'"), ({"optimise": "power"}, "--optimise must be"),
        ({"max_accuracy_drop": -1.0}, "--max-accuracy-drop"), ({"max_latency_ms": 0.0}, "--max-latency"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**options)
