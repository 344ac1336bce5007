from __future__ import annotations

import re
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
from edgetl.core.artifacts.session import OperatorProfile, ProfiledOperator
from edgetl.core.config.bench import Limits
from edgetl.device.hardware.nvml import Nvml
from edgetl.report.bench.page import render_bench_report
from edgetl.report.charts.latency import split_rows
from edgetl.report.html.blocks import Section, is_edgetl_page, paragraph, render_page
from tests.helpers.bench_results import bench_result, bench_row, board, device, server
from tests.helpers.browser import CHROMIUM
from tests.helpers.gpus import FakePynvml, gpu_reading
from tests.helpers.pages import Page, seen_in_browser

HOSTILE_TEXT = "<script>alert('x')</script>\"&{{ 7 * 7 }}"


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
