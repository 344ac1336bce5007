"""The page about architectures: order, choice and reasons."""

from __future__ import annotations

from tools.repo.models_page import BackboneFigures, BackboneTable, models_page, pareto_front


def figures(
    architecture: str, int8: float, speedup: float, top1: float | None, slow: str = ""
) -> BackboneFigures:
    return BackboneFigures(
        architecture,
        image_size=224,
        parameters=3_500_000,
        macs=300_000_000,
        imagenet_top1=top1,
        fp32_over_anchor=int8 * speedup,
        int8_over_anchor=int8,
        int8_speedup=(speedup, speedup - 0.1, speedup + 0.1),
        anchor_ms=8.0,
        slow_operators=slow,
        measured="2026-11-28",
    )


ROWS = (
    figures("mobilenet_v2", 0.5, 2.0, 71.9),
    figures("mobilenet_v3_small", 0.4, 0.9, 67.7, "Clip (9 nodes, 20% of the time, in float)"),
    figures("mnasnet1_0", 0.6, 2.0, 71.0),
    figures("timm:lcnet_050", 0.2, 2.0, None),
    BackboneFigures("timm:broken", failed="no kernel"),
)
TABLE = BackboneTable("Cortex-A76", 20, "1.31.1", ROWS)


def test_front_compares_the_faster_files() -> None:
    # In int8 `slow_int8` is slower than the other, in fp32 faster than the other's int8.
    slow_int8 = figures("slow_int8", 0.9, 0.3, 70.0)
    other = figures("other", 0.5, 2.0, 60.0)
    assert pareto_front([slow_int8, other]) == [slow_int8]


def test_front_has_no_slower_and_less_accurate_architecture() -> None:
    front = pareto_front([row for row in ROWS if row.failed is None])
    assert [row.architecture for row in front] == ["mobilenet_v3_small", "mobilenet_v2"]


def test_page_is_sorted_by_int8_latency() -> None:
    page = models_page(TABLE)
    lines = [line for line in page.splitlines() if "| 224 |" in line]
    assert [line.split(" | ")[0] for line in lines] == [
        "| timm:lcnet_050", "| **mobilenet_v3_small**", "| **mobilenet_v2**", "| mnasnet1_0",
    ]  # fmt: skip
    assert lines[2] == (
        "| **mobilenet_v2** | 224 | 3.5 | 300 | 71.9 | 4.00 | 8.00 | 2.00 [1.90, 2.10] |"
    )
    assert lines[0].startswith("| timm:lcnet_050 | 224 | 3.5 | 300 |  | 1.60 | 3.20 |")


def test_page_names_choice_machine_and_reasons() -> None:
    page = models_page(TABLE)
    assert "mobilenet_v3_small (67.7%, 2.88 ms in fp32)" in page
    assert "mobilenet_v2 (71.9%, 4.00 ms in int8). Take" in page
    assert "Measured on Cortex-A76, one thread, onnxruntime 1.31.1, 2026-11-28, on a" in page
    assert "| mobilenet_v3_small | 0.90 | Clip (9 nodes, 20% of the time, in float) |" in page
    assert "- timm:broken: no kernel" in page


def test_latencies_are_corrected_by_the_anchor() -> None:
    # The anchor took 8 ms in most rounds, and 16 ms where the machine was slow.
    slow = BackboneFigures(**{**vars(ROWS[0]), "architecture": "resnet18", "anchor_ms": 16.0})
    page = models_page(BackboneTable("Cortex-A76", 20, "1.31.1", (*ROWS, slow)))
    line = next(line for line in page.splitlines() if "resnet18" in line and "| 224 |" in line)
    assert "| 4.00 | 8.00 |" in line
