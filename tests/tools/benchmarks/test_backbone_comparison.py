"""Statistics and tables of the backbone comparison, and a comparison of real exported files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgetl.core.errors import ConfigError
from edgetl.core.files import read_json, write_json
from edgetl.core.typed_json import to_json
from tests.helpers.bench_results import bench_row
from tools.benchmarks import backbone_comparison
from tools.benchmarks.backbone_comparison import (
    RESULT,
    ComparedRun,
    ComparisonResult,
    LatencyResult,
    compare_speed,
    compute_overall_difference,
    main,
    markdown,
    permute_images,
    permute_sets,
    read_comparison,
    run_folder,
)
from tools.benchmarks.backbone_gain import Backbone


def run(data: str, architecture: str, seed: int, int8: str, fp32: str = "") -> ComparedRun:
    return ComparedRun(
        data, architecture, "imagenet", seed, 30, 2_000_000, 12.0, fp32 or int8, int8, "U8S8"
    )


def comparison(latency: LatencyResult | None = None) -> ComparisonResult:
    """Return a result in which `other` is better on `far` and equal on `near`."""
    runs = [
        run("near", "base", 0, "1111111100"),
        run("near", "base", 1, "1111111010"),
        run("near", "other", 0, "1111111100", "1111111110"),
        run("near", "other", 1, "1111111010"),
        run("far", "base", 0, "1110000000" * 4),
        run("far", "base", 1, "1110000000" * 4),
        run("far", "other", 0, "1111000000" * 4),
        run("far", "other", 1, "1111000000" * 4),
    ]
    return ComparisonResult("0.1.0", "base", tuple(runs), latency)


def latency() -> LatencyResult:
    times = {"base int8": 4.0, "base fp32": 8.0, "other int8": 5.0, "other fp32": 9.0}
    rows = [bench_row("onnxruntime", name, p50, threads=1) for name, p50 in times.items()]
    return LatencyResult("2026-01-02T03:04:05+00:00", "Cortex-A76", "quiet", tuple(rows))


def test_permutation_over_images_matches_exact_probability() -> None:
    # With 3 wins and no loss, 2 of the 8 arrangements of signs are as extreme.
    assert permute_images([[1.0, 1.0, 1.0, 0.0]]) == pytest.approx(0.25, abs=0.01)
    assert permute_images([[0.0, 0.0], [0.0]]) == 1.0
    # 10 wins: 2 of 1024.
    assert permute_images([[1.0] * 10 + [0.0] * 90]) == pytest.approx(2 / 1024, abs=0.001)
    assert permute_images([[1.0] * 40]) == pytest.approx(1 / 20_001)


def test_permutation_over_images_weighs_data_sets_equally() -> None:
    # The win on one of two images outweighs the loss on one of a thousand.
    wins, losses = [0.5] * 6 + [0.0] * 6, [-0.5] * 6 + [0.0] * 994
    assert permute_images([wins, losses]) < 0.1
    assert permute_images([wins, [-value for value in wins]]) == 1.0


def test_permutation_over_sets_is_exact() -> None:
    assert permute_sets([0.01, 0.02, 0.005, 0.03, 0.01, 0.02]) == 2 / 64
    assert permute_sets([0.01, -0.01]) == 1.0
    # |3 - 1| is reached by 3 - 1, 3 + 1 and their opposites.
    assert permute_sets([0.03, -0.01]) == 1.0
    assert permute_sets([0.03, 0.01]) == 0.5


def test_overall_difference_is_mean_over_data_sets() -> None:
    overall = compute_overall_difference(comparison(), "other", "int8")
    assert overall is not None
    near, far = overall.sets
    assert (near.data, near.difference.value) == ("near", 0.0)
    assert far.difference.value == pytest.approx(0.1)
    assert far.discordant == ((4, 0, 0.125), (4, 0, 0.125))
    assert overall.value == pytest.approx(0.05)
    # `near` has no variance of its own beyond that of its images.
    half_width = (far.difference.high - far.difference.low) / 2
    assert overall.high - overall.value >= half_width / 2
    # Two seeds with the same four wins are four images, not eight: 2 of 16 arrangements.
    assert overall.image_p == pytest.approx(2 / 16, abs=0.01)
    assert overall.set_p == 1.0
    fp32 = compute_overall_difference(comparison(), "other", "fp32")
    assert fp32 is not None
    assert fp32.sets[0].difference.value == pytest.approx(0.05)


def test_only_seeds_that_both_finished_are_paired() -> None:
    result = comparison()
    runs = tuple(item for item in result.runs if (item.architecture, item.seed) != ("base", 1))
    overall = compute_overall_difference(ComparisonResult("0.1.0", "base", runs), "other", "int8")
    assert overall is not None
    assert [len(item.discordant) for item in overall.sets] == [1, 1]
    assert compute_overall_difference(result, "absent", "int8") is None


def test_runs_without_file_are_compared_in_fp32_only() -> None:
    result = comparison()
    runs = [
        replace(item, int8="", export_failed="no parity" if item.seed else None)
        if item.architecture == "other" and item.data == "far"
        else item
        for item in result.runs
    ]
    result = ComparisonResult("0.1.0", "base", tuple(runs))
    fp32, int8 = (
        compute_overall_difference(result, "other", variant) for variant in ("fp32", "int8")
    )
    assert fp32 is not None
    assert int8 is not None
    assert [item.data for item in fp32.sets] == ["near", "far"]
    assert [item.data for item in int8.sets] == ["near"]
    line = next(row for row in markdown(result).splitlines() if "| far | 30 + 40 | other" in row)
    assert line.endswith("| \N{EM DASH}, failed |")


def test_speed_is_baseline_over_architecture() -> None:
    speedup = compare_speed(latency(), "other", "base", "int8")
    assert speedup is not None
    assert speedup.ratio == pytest.approx(4 / 5, rel=0.03)
    assert speedup.low <= speedup.ratio <= speedup.high
    assert compare_speed(latency(), "absent", "base", "int8") is None


def test_tables_have_losses_differences_and_latencies() -> None:
    lines = markdown(comparison(latency())).splitlines()
    near = next(line for line in lines if line.startswith("| near | 30 + 10 | other"))
    assert near.startswith("| near | 30 + 10 | other | 85.0 | 90.0, 80.0 | +5.0 [")
    assert near.endswith("| -10.0, +0.0 |")
    far = next(line for line in lines if line.startswith("| far | 30 + 40 | other"))
    assert "4:0 (p 0.12), 4:0 (p 0.12)" in far
    baseline = next(line for line in lines if line.startswith("| far | 30 + 40 | base"))
    assert baseline.endswith("| 30.0 | 30.0, 30.0 |  |  | +0.0, +0.0 |")
    overall = next(line for line in lines if line.startswith("| other | int8 |"))
    assert "| 1 : 0 |" in overall
    timed = next(line for line in lines if line.startswith("| other | ") and "0.8" in line)
    cells = [cell.strip() for cell in timed.strip("|").split("|")]
    assert cells[1].startswith("5.0")
    assert cells[2].startswith("9.0")
    assert cells[3].startswith("0.8")
    assert cells[4].startswith("1.8")


def test_result_is_read_as_written(tmp_path: Path) -> None:
    result = comparison(latency())
    write_json(tmp_path / RESULT, to_json(result))
    assert read_comparison(tmp_path / RESULT) == result


def test_folder_of_a_run_is_a_plain_name(tmp_path: Path) -> None:
    backbone = Backbone("timm:net", "imagenet")
    folder = run_folder(tmp_path, Path("/photos/far"), backbone, 2)
    assert folder == tmp_path / "far" / "timm-net-s2"


def test_comparison_resumes_and_keeps_latencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[str, str, int]] = []

    def classify(_: object, data: str, backbone: Backbone, seed: int) -> ComparedRun:
        measured.append((data, backbone.architecture, seed))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return run(data, backbone.architecture, seed, "1101" if seed else "1110")

    commands: list[list[str]] = []

    def execute(command: list[str], variables: dict[str, str]) -> SimpleNamespace:
        commands.append(command[3:])
        assert Path(variables["EDGETL_CACHE"]).is_dir()
        return SimpleNamespace()

    monkeypatch.setattr(backbone_comparison, "classify_run", classify)
    monkeypatch.setattr(backbone_comparison, "execute", execute)
    monkeypatch.setattr(backbone_comparison, "measure_latency", lambda *_: latency())
    arguments = [
        "/photos/near", "/photos/far", "--row", "base=imagenet", "--row", "other=/w/other.pth",
        "--seeds", "2", "-o", str(tmp_path),
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="Repeat the command to resume"):
        main(arguments)
    main(arguments)
    assert measured[3:] == [
        ("far", "base", 0), ("far", "other", 0),
        ("near", "base", 1), ("near", "other", 1), ("far", "base", 1), ("far", "other", 1),
    ]  # fmt: skip
    assert measured[:3] == [("near", "base", 0), ("near", "other", 0), ("far", "base", 0)]
    folder = str(tmp_path / "near" / "other-s0")
    assert commands[2:4] == [
        ["finetune", "/photos/near", "--model", "other", "--weights", "/w/other.pth",
         "--seed", "0", "-o", folder, "--force"],
        ["export", folder, "--variants", "fp32,int8"],
    ]  # fmt: skip
    assert "| near | 30 + 4 | other | 75.0 | 75.0, 75.0 |" in capsys.readouterr().out
    main([*arguments, "--no-latency"])
    result = read_comparison(tmp_path / RESULT)
    assert result.latency == latency()
    assert len(result.runs) == 8


def test_refused_export_is_recorded_and_later_seeds_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []

    def execute(command: list[str], _: dict[str, str]) -> SimpleNamespace:
        if command[3] == "export":
            exported.append(Path(command[4]).name)
            raise SystemExit("labels differ")
        return SimpleNamespace()

    monkeypatch.setattr(
        backbone_comparison,
        "classify_run",
        lambda _, data, backbone, seed: run(data, backbone.architecture, seed, "", "1101"),
    )
    monkeypatch.setattr(backbone_comparison, "execute", execute)
    arguments = [
        "/photos/near", "--row", "base=imagenet", "--seeds", "2", "--export-seeds", "1",
        "--no-latency", "-o", str(tmp_path),
    ]  # fmt: skip
    main(arguments)
    main(arguments)
    result = read_comparison(tmp_path / RESULT)
    assert [item.export_failed for item in result.runs] == ["labels differ", None]
    assert exported == ["base-s0"]
    main([*arguments, "--export-seeds", "2"])
    assert exported == ["base-s0", "base-s1"]


@pytest.mark.slow
def test_real_files_are_classified_and_timed(
    tmp_path: Path, parts: Path, random_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        str(parts), "--row", f"mobilenet_v3_small={random_weights}", "--seeds", "1",
        "--rounds", "2", "-o", str(tmp_path),
    ]  # fmt: skip
    main(arguments)
    result = read_comparison(tmp_path / RESULT)
    (compared,) = result.runs
    metrics = read_json(
        tmp_path / "parts" / "mobilenet_v3_small-s0" / "metrics.json", ConfigError, "The metrics"
    )
    assert isinstance(metrics["val"], dict)
    assert compared.accuracy("fp32") == pytest.approx(metrics["val"]["accuracy"])
    assert len(compared.int8) == 20
    assert result.latency is not None
    assert [row.variant for row in result.latency.rows] == [
        "mobilenet_v3_small fp32", "mobilenet_v3_small int8",
    ]  # fmt: skip
    assert all(len(row.rounds) == 2 and row.threads == 1 for row in result.latency.rows)
    assert "| mobilenet_v3_small | " in capsys.readouterr().out
