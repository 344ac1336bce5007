from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgetl.core.artifacts.bench import BenchedModel, BenchResult
from edgetl.core.artifacts.bench_json import read_result, write_result
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.device import DeviceInfo, DeviceState
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.artifacts.noise import Interference, NoiseReport
from edgetl.core.artifacts.runtime_comparison import compare_with_plain
from edgetl.core.artifacts.session import OperatorProfile, ProfiledOperator, SessionRecord
from edgetl.core.config.bench import Limits
from edgetl.core.formatting import format_milliseconds
from edgetl.device.hardware.nvml import Nvml
from edgetl.report.bench.markdown import render_bench_markdown
from edgetl.report.bench.page import render_bench_report
from edgetl.report.charts.latency import split_rows
from edgetl.report.html.blocks import Section, is_edgetl_page, paragraph, render_page
from tests.helpers.bench_results import (
    accuracy,
    bench_result,
    bench_row,
    board,
    device,
    runtimes_result,
    server,
)
from tests.helpers.browser import CHROMIUM
from tests.helpers.gpus import FakePynvml, gpu_reading
from tests.helpers.pages import Page, seen_in_browser

HOSTILE_TEXT = "<script>alert('x')</script>\"&{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def runtimes_page() -> str:
    slow_device = device("pi", "Raspberry Pi 5")
    return render_bench_report([runtimes_result(), runtimes_result(0.08, device=slow_device)])


@pytest.fixture(scope="module")
def two_results_page() -> str:
    return render_bench_report([board(), server()])


def test_bench_page_is_complete_and_self_contained(two_results_page: str) -> None:
    page = Page(two_results_page)
    assert page.sections == [
        "summary", "table", "distributions", "rounds", "stages", "operators", "sweeps", "sustained",
        "ledgers", "method",
    ]  # fmt: skip
    assert page.outside == []
    assert len(page.ids) == len(set(page.ids)), "drawings do not share ids"
    assert "script" not in page.tags
    assert not re.search(r"url\(\s*['\"]?(?!#)", two_results_page)
    assert "@import" not in two_results_page


def test_large_sweep_is_split_into_several_drawings() -> None:
    rows = [
        bench_row(runtime, variant, 3.0, scope, batch, threads, rounds=2, runs=10)
        for runtime, variant in (
            ("pytorch", "fp32"),
            ("onnxruntime", "fp32"),
            ("onnxruntime", "int8"),
        )
        for scope, batches in (("model", (1, 4, 8)), ("file", (1,)))
        for batch in batches
        for threads in (1, 2, 3, 4, 6, 8)
    ]
    html = render_bench_report([bench_result(tuple(rows))])
    drawings = re.findall(
        r'<h4>([^<]*)</h4>.*?viewBox="0 0 ([0-9.]+) ([0-9.]+)"',
        html.partition('id="rounds"')[0],
        re.DOTALL,
    )
    titles = [title for title, *_ in drawings]
    assert titles == [
        *[
            f"Scope model, batch {batch} ({number} of 6)"
            for number, batch in enumerate((1, 1, 4, 4, 8, 8), 1)
        ],
        "Scope file (1 of 2)",
        "Scope file (2 of 2)",
    ]
    assert all(float(height) < 1.1 * float(width) for _, width, height in drawings)
    stages = html.partition('id="stages"')[2].partition("</section>")[0]
    assert stages.count("<figure>") == 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from((1, 2, 3, 64)), st.integers(1, 40), st.sampled_from((None, 30.0))
        ),
        min_size=1,
        unique=True,
    )
)
def test_split_rows_keeps_batches_together_when_they_fit(
    cells: list[tuple[int, int, float | None]],
) -> None:
    rows = [
        bench_row("onnxruntime", "fp32", 1.0, batch=batch, threads=threads, rate=rate, rounds=0)
        for batch, threads, rate in cells
    ]
    parts = [part for _, part in split_rows(rows)]
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in rows)
    assert all(1 <= len(part) <= 12 for part in parts)
    for key in {(row.batch, row.rate) for row in rows}:
        parts_with_key = [
            part for part in parts if any((row.batch, row.rate) == key for row in part)
        ]
        assert len(parts_with_key) == 1 or sum((row.batch, row.rate) == key for row in rows) > 12
    assert len({suffix for suffix, _ in split_rows(rows)}) == len(parts), "the titles are unique"


def test_bench_page_is_deterministic(two_results_page: str) -> None:
    assert render_bench_report([board(), server()]) == two_results_page


def test_bench_page_is_equal_after_saving_and_reading(tmp_path: Path) -> None:
    write_result(board(), tmp_path / "board.json")
    again = replace(read_result(tmp_path / "board.json"), path=None)
    assert render_bench_report([again]) == render_bench_report([board()])


def test_summary_shows_noise_interruption_and_failed_gates(two_results_page: str) -> None:
    summary = two_results_page.partition('<section id="table">')[0]
    for word in (
        "noisy device",
        "other processes used 12% of the CPU",
        "interrupted",
        "gate failed",
        "logits differ by 3.1",
        "another device",
    ):
        assert word in summary


def test_summary_shows_configuration_p50_and_speedup(two_results_page: str) -> None:
    result = board()
    assert result.recommendation is not None
    row = result.get_row(result.recommendation.latency.row)
    pair = next(pair for pair in result.comparisons if pair.candidate == row.id)
    text = Page(two_results_page).text
    assert f"takes {row.percentile_ms(50):.2f} ms" in text
    assert (
        f"{pair.speedup.ratio:.2f} [{pair.speedup.low:.2f}, {pair.speedup.high:.2f}] times as fast "
        "as pytorch fp32 (faster)" in text
    )


def test_withheld_percentiles_show_the_reason() -> None:
    html = render_bench_report(
        [
            bench_result(
                (
                    bench_row("pytorch", "fp32", 9.0, rounds=2, runs=20),
                    bench_row("onnxruntime", "fp32", 3.0, rounds=2, runs=20),
                )
            )
        ]
    )
    assert "withheld: 40 runs are too few for p99" in html
    assert "p90 needs 64 runs and p99 needs 662 runs" in Page(html).text


def test_table_groups_rows_by_model_scope_and_input(two_results_page: str) -> None:
    text = Page(two_results_page).text
    assert "Rows are comparable within a group only" in text
    assert "Group 3" in text
    assert "Group 4" not in text, "batches share a group: scopes model, image and file"
    other = bench_result(
        (bench_row("onnxruntime", "fp32", 3.0),), model=BenchedModel("resnet18", "ffff")
    )
    assert (
        "Group 2: resnet18 (run ffff)"
        in Page(
            render_bench_report([bench_result((bench_row("onnxruntime", "fp32", 3.0),)), other])
        ).text
    )


def test_missing_device_facts_are_marked_as_not_reported() -> None:
    bare_device = DeviceInfo()
    page = Page(
        render_bench_report(
            [
                bench_result(
                    (bench_row("onnxruntime", "fp32", 3.0),),
                    device=bare_device,
                    noise=NoiseReport(()),
                )
            ]
        )
    )
    assert "unknown device" in page.text
    assert "not reported" in page.text


def test_facts_that_differ_between_devices_are_marked(two_results_page: str) -> None:
    ledger = two_results_page.partition('<section id="ledgers">')[2]
    entries = re.findall(
        r'<tr(?: class="(\w+)")?>\s*<th scope="row" class="lead-cell">(\w+)[ <]', ledger
    )
    rows = {name: mark for mark, name in reversed(entries)}
    assert rows["machine"] == "differs"
    assert rows["python"] == ""


def test_bench_page_without_timed_rows() -> None:
    failed_row = replace(
        bench_row("onnxruntime", "fp32", 3.0),
        rounds=(),
        gate=GateResult(checked=True, passed=False, reason="logits differ"),
    )
    page = Page(render_bench_report([bench_result((failed_row,), order=())]))
    assert "no row passed the gate" in page.text
    assert page.sections == ["summary", "table", "ledgers", "method"]


def test_bench_page_shows_limit_checks() -> None:
    rows = (bench_row("pytorch", "fp32", 9.0), bench_row("onnxruntime", "fp32", 3.0))
    text = Page(render_bench_report([bench_result(rows, limits=Limits(min_speedup=50.0))])).text
    assert "min-speedup broken" in text
    assert "limit 50" in text


def test_text_from_result_is_escaped() -> None:
    rows = (
        bench_row("pytorch", HOSTILE_TEXT, 9.0, "file"),
        bench_row(
            "onnxruntime", HOSTILE_TEXT, 3.0, "file", input=HOSTILE_TEXT, provider=HOSTILE_TEXT
        ),
    )
    operators = (ProfiledOperator(HOSTILE_TEXT, HOSTILE_TEXT, 1, 1.0, 1.0),)
    profiles = {rows[1].id: OperatorProfile(3, operators, ())}
    html = render_bench_report([hostile_result(HOSTILE_TEXT, rows, profiles)])
    page = Page(html)
    assert "script" not in page.tags
    assert "{{ 7 * 7 }}" in page.text
    assert HOSTILE_TEXT in " ".join(page.words)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    text=st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)
    | st.sampled_from(["</title>", "</style>", "]]>", "$x_", "-->", "'\"<a href=//x>"])
)
def test_names_do_not_change_the_page_structure(text: str) -> None:
    assert count_cells(text) == count_cells("x")


@cache
def count_cells(text: str) -> int:
    return Page(render_bench_report([hostile_result(text, ROWS, {})])).tags.count("td")


ROWS = (
    bench_row("pytorch", "fp32", 9.0, "file", runs=8, rounds=2),
    bench_row("onnxruntime", "fp32", 3.0, "file", runs=8, rounds=2),
)


def hostile_result(
    text: str, rows: tuple[BenchRow, ...], profiles: dict[str, OperatorProfile]
) -> BenchResult:
    return bench_result(
        rows,
        model=BenchedModel(text, "0123"),
        device=device(
            text or None,
            text or None,
            board=text or None,
            gpus=(text,),
            before=DeviceState(1.0, governors=(text,)),
        ),
        target=text,
        notes=(text,),
        noise=NoiseReport((text,)),
        profiles=profiles,
    )


def test_is_edgetl_page(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        render_page("A page", "", [Section("a", "A", (paragraph("text"),)), Section("b", "B", ())])
    )
    (tmp_path / "other.html").write_text("<html></html>")
    assert is_edgetl_page(tmp_path / "page.html")
    assert not is_edgetl_page(tmp_path / "other.html")
    assert not is_edgetl_page(tmp_path / "missing.html")
    assert Page((tmp_path / "page.html").read_text()).sections == ["a"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_bench_page_fits_a_phone_without_console_errors(two_results_page: str) -> None:
    assert seen_in_browser(two_results_page) > 8


def gpu_result() -> BenchResult:
    """Return a result of one row on a GPU, with the GPU's state before, after and in each round."""
    readings = [
        gpu_reading(),
        gpu_reading(sm_clocks_mhz=(1755,), temperature_c=71, throttle_reasons=("sw power cap",)),
    ]
    measured = bench_row("onnxruntime", "fp32", 1.2, rounds=2, provider="cuda")
    rounds = tuple(
        replace(block, gpu=reading)
        for block, reading in zip(measured.rounds, readings, strict=True)
    )
    library = FakePynvml()
    before = DeviceState(1.0, gpus={"0": Nvml(library).read_states()[0]})
    library.reasons = 0
    after = DeviceState(2.0, gpus={"0": Nvml(library).read_states()[0]})
    about = device(before=before, after=after, gpu_memory_bytes=(80 * 2**30,), cuda_driver="13.2")
    noise = NoiseReport(
        (), Interference(gpu_throttle_reasons=("sw power cap",), gpu_clock_spread=0.11)
    )
    return bench_result((replace(measured, rounds=rounds),), device=about, noise=noise)


def test_bench_page_shows_gpu_state(tmp_path: Path) -> None:
    html = render_bench_report([gpu_result()])
    for words in (
        "SM 1755 to 1980 MHz of 1980, 71 °C, 300 W, 1024 MiB, throttle reasons: sw power cap",
        "gpus: 0: sm clock mhz",
        "gpus: 0: throttle reasons",
        "81920 MiB",
        "gpu_clock_spread",
    ):
        assert words in html
    assert re.search(
        r"gpus: 0: throttle reasons.*?<td[^>]*>sw power cap.*?<td[^>]*>none", html, re.DOTALL
    )
    write_result(gpu_result(), tmp_path / "gpu.json")
    assert render_bench_report([replace(read_result(tmp_path / "gpu.json"), path=None)]) == html


def test_summary_names_the_fastest_pytorch_baseline() -> None:
    eager, graph = bench_row("pytorch", "fp32", 9.0), bench_row("pytorch", "cuda-graph", 4.0)
    onnx = bench_row("onnxruntime", "fp32", 3.0)
    text = Page(render_bench_report([bench_result((eager, graph, onnx))])).text
    assert re.search(
        r"Fastest PyTorch baseline: cuda-graph, p50 [34]\.\d\d ms; the recommended row is 1\.\d\d",
        text,
    )
    assert "against pytorch fp32" in text, "the speed-up is relative to eager mode"
    assert (
        "Fastest PyTorch baseline"
        not in Page(render_bench_report([bench_result((eager, onnx))])).text
    )


@pytest.mark.parametrize(
    ("clock", "words"),
    [
        ("gpu", "Times are time on the GPU."),
        ("host dispatch", "Times are host dispatch: time to launch"),
    ],
)
def test_operators_section_names_the_profile_clock(
    clock: Literal["gpu", "host dispatch"], words: str
) -> None:
    row = bench_row("onnxruntime", "fp32", 3.0)
    operators = (ProfiledOperator("Conv", "CUDAExecutionProvider", 1, 1.0, 1.0),)
    profile = OperatorProfile(3, operators, (), clock)

    def page_text(profile: OperatorProfile) -> str:
        return Page(render_bench_report([bench_result((row,), profiles={row.id: profile})])).text

    assert words in page_text(profile)
    # Older results do not have a clock.
    assert "Times are" not in page_text(replace(profile, clock=None))


def test_table_has_no_gpu_column_without_readings(two_results_page: str) -> None:
    assert "throttle reasons" not in two_results_page


def section_html(html: str, name: str) -> str:
    return html.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def test_runtimes_are_drawn_by_device_and_threads(runtimes_page: str) -> None:
    section = section_html(runtimes_page, "accuracy")
    (label,) = re.findall(r'aria-label="([^"]*)"', section)
    assert label.startswith("Accuracy against latency, scope model, batch 1. ")
    panels = label.split(". ", 1)[1].split("; ")
    assert [panel.partition(": ")[0] for panel in panels] == [
        "Cortex-A76 (bench), 1 thread",
        "Cortex-A76 (bench), 2 threads",
        "Raspberry Pi 5 (pi), 1 thread",
        "Raspberry Pi 5 (pi), 2 threads",
    ]
    for panel, result in zip(panels[::2], (runtimes_result(), runtimes_result(0.08)), strict=True):
        points = panel.partition(": ")[2].split(", ")
        timed = [row for row in result.rows if row.rounds and row.threads == 1]
        assert points == [
            f"{row.name} {row.accuracy.top1:.1%} in {format_milliseconds(row.p50_ms)} ms"
            for row in timed
            if row.accuracy is not None
        ]
    assert "executorch" not in section, "a row that failed its gate is not drawn"
    assert "open: 32-bit, half: 16-bit, filled: 8-bit" in section


def test_front_and_recommended_rows_are_named_in_the_drawing(runtimes_page: str) -> None:
    names = re.findall(r"<text[^>]*>([a-z0-9 -]*)</text>", section_html(runtimes_page, "accuracy"))
    counts = Counter(name for name in names if name.endswith(("fp32", "bf16", "int8")))
    assert counts == {"openvino-int8": 4, "openvino-bf16": 4}
    rows = (
        bench_row("onnxruntime", "fp32", 3.0, accuracy=accuracy(0.9)),
        bench_row("onnxruntime", "int8", 3.0, threads=1, accuracy=accuracy(0.8)),
    )
    assert "recommended" in section_html(render_bench_report([bench_result(rows)]), "accuracy")


def test_table_shows_accuracy_and_verdicts_against_plain_rows(runtimes_page: str) -> None:
    text = Page(section_html(runtimes_page, "table")).text
    assert text.count("against onnxruntime fp32 ") == 1
    assert "images/s against" in text, "no column of speed-ups over another baseline"
    openvino = runtimes_result().get_row("openvino-openvino-int8-model-cpu-b1-t2")
    comparison = compare_with_plain(runtimes_result(), openvino)
    assert comparison is not None
    ratio = comparison.speedup
    assert re.search(
        rf"openvino-int8 recommended cpu, batch 1, 2 threads .*? {ratio.ratio:.2f}× faster "
        rf"\[{ratio.low:.2f}, {ratio.high:.2f}\] 91\.4% \[86\.9, 94\.4\] 3 of 220 ",
        text,
    )
    assert text.count("recommended") == 2
    summary = Page(section_html(runtimes_page, "summary")).text
    assert summary.count("executorch-int8 was not timed, it failed the gate: logits differ") == 2
    assert summary.count("against onnxruntime fp32 2.50× faster") == 2
    assert "accuracy at export 91.4%" in summary


def test_precision_that_ran_is_shown_where_it_is_recorded(runtimes_page: str) -> None:
    assert ">precision<" not in runtimes_page
    row = bench_row("openvino", "fp32", 3.0, session=SessionRecord(precision="bf16"))
    other = bench_row("onnxruntime", "fp32", 3.0)
    text = Page(section_html(render_bench_report([bench_result((row, other))]), "table")).text
    assert "configuration precision" in text
    assert "2 threads bf16" in text


def test_wide_intervals_do_not_squeeze_the_points() -> None:
    rows = [
        bench_row("onnxruntime", variant, p50, accuracy=accuracy(top1), rounds=2, runs=20)
        for variant, p50, top1 in (("fp32", 30.0, 0.9), ("int8", 20.0, 0.88))
    ]
    # The medians of the two rounds differ, so that the interval of Student's t is enormous.
    rows = [
        replace(row, rounds=(row.rounds[0], replace(row.rounds[1], latencies_ns=(10**7,) * 20)))
        for row in rows
    ]
    assert (rows[0].p50_interval_ms or (0, 0))[1] > 1000
    section = section_html(render_bench_report([bench_result(tuple(rows))]), "accuracy")
    ticks = [float(tick) for tick in re.findall(r"<text[^>]*>([0-9.]+)</text>", section)]
    assert ticks
    assert max(ticks) < 60


def test_rows_without_accuracy_are_named_below_the_drawing() -> None:
    rows = (
        bench_row("onnxruntime", "fp32", 3.0, accuracy=accuracy(0.9)),
        bench_row("onnxruntime", "int8", 2.0, accuracy=accuracy(0.88)),
        bench_row("openvino", "fp32", 2.5),
        bench_row("openvino", "fp32", 2.5, scope="file"),
    )
    section = section_html(render_bench_report([bench_result(rows)]), "accuracy")
    assert "Not drawn, because their accuracy is not recorded: openvino fp32." in section
    assert section.count("<figure>") == 1
    assert not section_html(render_bench_report([bench_result(rows[2:])]), "accuracy")


def test_models_are_drawn_in_panels_of_their_own() -> None:
    results = [
        replace(runtimes_result(), model=BenchedModel(name, f"{index:012}"))
        for index, name in enumerate(("mobilenet_v2", "resnet18", "efficientnet_lite0"))
    ]
    section = section_html(render_bench_report(results), "accuracy")
    labels = re.findall(r'aria-label="([^"]*)"', section)
    assert len(labels) == 2, "four panels in the first drawing, two in the second"
    assert "(1 of 2)" in labels[0]
    assert "efficientnet_lite0, Cortex-A76 (bench), 2 threads: " in labels[1]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_runtimes_page_fits_a_phone(runtimes_page: str) -> None:
    assert seen_in_browser(runtimes_page) > 4


def table_cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_has_the_figures_of_the_page() -> None:
    results = [runtimes_result(), runtimes_result(0.08, device=device("pi", "Raspberry Pi 5"))]
    text = render_bench_markdown(results)
    assert text.startswith("# Latency of mobilenet_v2\n\n2 results, 2 devices")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    headings, _, *rows = map(table_cells, lines)
    assert len(rows) == sum(len(result.rows) for result in results)
    assert {len(row) for row in rows} == {len(headings)}
    cells = [dict(zip(headings, row, strict=True)) for row in rows]
    row = results[0].get_row("openvino-openvino-bf16-model-cpu-b1-t1")
    (bf16,) = [
        entry
        for entry in cells
        if entry["configuration"] == "openvino-bf16 (cpu, batch 1, 1 thread)"
        and "Cortex-A76" in entry["result"]
    ]
    assert bf16["p50 ms"].startswith(f"{row.p50_ms:.2f} [")
    assert (bf16["accuracy"], bf16["flips"]) == ("91.8% [87.4, 94.7]", "1 (of 220)")
    assert bf16["against onnxruntime fp32"].startswith("1.79× faster [")
    assert "  - executorch-int8 was not timed, it failed the gate: logits differ by 4.7" in text


def test_markdown_escapes_tags_and_cells() -> None:
    result = bench_result((bench_row("onnxruntime", HOSTILE_TEXT + "|", 1.0),))
    text = render_bench_markdown([replace(result, device=device(HOSTILE_TEXT, "a|b"))])
    assert "<script" not in text
    assert "&lt;script>" in text
    (_, _, row) = [table_cells(line) for line in text.splitlines() if line.startswith("|")]
    assert row[0].endswith("(cpu, batch 1, 2 threads)")
