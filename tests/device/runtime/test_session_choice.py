"""Saved recommendations: writing, reading, and the choice of what to run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgetl.cli.app import create_app
from edgetl.core.artifacts.recommendation import RecommendedOptions
from edgetl.core.artifacts.saved_recommendation import (
    MeasuredDevice,
    SavedRecommendation,
    read_saved_recommendation,
    write_saved_recommendation,
)
from edgetl.core.errors import BundleError
from edgetl.core.paths import BundleDirectory
from edgetl.device.hardware.info import collect_device_info
from edgetl.device.predict import predict
from edgetl.device.runtime import classifier as classifier_module
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.classifier import open_classifier
from edgetl.device.runtime.session_choice import (
    SessionOptions,
    choose_session,
    runtime_package_version,
)

MakeBundle = Callable[..., Path]


def _recommend(bundle: Path, **changes: Any) -> SavedRecommendation:
    """Save a recommendation for this device in a bundle."""
    opened = open_bundle(bundle)
    device = collect_device_info()
    options = RecommendedOptions(
        variant="fp32",
        providers=("CPUExecutionProvider",),
        intra_op_num_threads=1,
        inter_op_num_threads=1,
        graph_optimization_level="ORT_ENABLE_ALL",
        batch=1,
        session_mode="optimized-model",
    )
    recommendation = SavedRecommendation(
        created="2026-11-28T20:00:00+00:00",
        edgetl="0.1.0",
        device=MeasuredDevice(device.description, device.cpu, device.machine),
        runtime_version=runtime_package_version("onnxruntime"),
        file_sha256=opened.select_variant("fp32").sha256,
        options=replace(options, **changes.pop("options", {})),
        provider="cpu",
        p50_ms=1.5,
        p50_ci95_ms=(1.4, 1.6),
        reasons=("It is the fastest.",),
    )
    recommendation = replace(recommendation, **changes)
    write_saved_recommendation(opened.directory, recommendation)
    return recommendation


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return make_bundle()


def test_saved_recommendation_is_read_as_written(bundle: Path) -> None:
    directory = BundleDirectory(bundle)
    assert read_saved_recommendation(directory) is None
    recommendation = _recommend(bundle)
    assert read_saved_recommendation(directory) == recommendation
    content = json.loads(directory.recommendation.read_text())
    assert (content["schema"], content["kind"]) == (1, "recommendation")
    assert open_bundle(bundle).file_statuses == {
        record.file: "as proven" for record in open_bundle(bundle).manifest.files
    }


def test_recommendation_is_used_without_choices(bundle: Path) -> None:
    _recommend(bundle)
    choice = choose_session(open_bundle(bundle), SessionOptions())
    assert (choice.variant.name, choice.threads, choice.session_mode) == (
        "fp32",
        1,
        "optimized-model",
    )
    assert choice.note == (
        "Recommended by the benchmark of 2026-11-28: onnxruntime fp32, 1 thread, optimized-model"
    )


@pytest.mark.parametrize(
    "options",
    [
        SessionOptions(variant="fp32"),
        SessionOptions(provider="cpu"),
        SessionOptions(threads=1),
        SessionOptions(runtime="onnxruntime"),
        SessionOptions(use_recommendation=False),
    ],
)
def test_any_choice_sets_recommendation_aside(bundle: Path, options: SessionOptions) -> None:
    _recommend(bundle)
    choice = choose_session(open_bundle(bundle), options)
    assert (choice.session_mode, choice.threads, choice.note) == ("default", options.threads, "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": MeasuredDevice("another", "Cortex-A72", "aarch64")}, "measured on another"),
        ({"runtime_version": "0.1"}, "measured with onnxruntime 0.1, not "),
        ({"file_sha256": "0" * 64}, "fp32 is another file"),
        ({"options": {"variant": "int8"}}, "int8 is another file"),
        ({"options": {"intra_op_num_threads": 4096}}, "takes 4096 threads"),
        ({"options": {"runtime": "tvm"}}, "tvm is not installed"),
        ({"options": {"session_mode": "turbo"}}, "no session mode 'turbo'"),
        ({"options": {"session_mode": "no-spinning"}}, "with 1 thread"),
    ],
)
def test_recommendation_is_ignored_where_it_does_not_hold(
    bundle: Path, changes: dict[str, Any], reason: str
) -> None:
    _recommend(bundle, **changes)
    choice = choose_session(open_bundle(bundle), SessionOptions())
    assert reason in choice.note
    assert (choice.session_mode, choice.threads, choice.runtime) == ("default", None, None)


def test_broken_recommendation_is_ignored_with_note(bundle: Path) -> None:
    path = BundleDirectory(bundle).recommendation
    path.write_text('{"schema": 1, "kind": "recommendation"}')
    with pytest.raises(BundleError, match="--save-recommendation` writes it again"):
        read_saved_recommendation(BundleDirectory(bundle))
    assert "is broken" in choose_session(open_bundle(bundle), SessionOptions()).note


def test_open_classifier_logs_recommendation(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _recommend(bundle)
    with caplog.at_level(logging.INFO, "edgetl"):
        open_classifier(bundle)
    assert "Recommended by the benchmark" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "edgetl"):
        open_classifier(bundle, use_recommendation=False)
    assert not caplog.text


def test_predict_uses_recommended_session_mode(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _recommend(bundle)
    modes: list[str] = []
    open_variant = classifier_module.open_variant

    def record_mode(*arguments: Any) -> Any:
        modes.append(arguments[-1])
        return open_variant(*arguments)

    monkeypatch.setattr(classifier_module, "open_variant", record_mode)
    images = open_bundle(bundle).load_golden().files
    notes: list[str] = []
    recommended = list(predict(bundle, images, notify=notes.append))
    plain = list(predict(bundle, images, use_recommendation=False, notify=notes.append))
    assert recommended == plain
    assert modes == ["optimized-model", "default"]
    assert len(notes) == 1


def test_predict_command_prints_recommendation(bundle: Path) -> None:
    _recommend(bundle)
    image = str(open_bundle(bundle).load_golden().files[0])
    result = CliRunner().invoke(create_app(), ["predict", str(bundle), image])
    assert (result.exit_code, "Recommended by" in result.stderr) == (0, True)
    result = CliRunner().invoke(
        create_app(), ["predict", str(bundle), image, "--no-recommendation"]
    )
    assert (result.exit_code, "Recommended by" in result.stderr) == (0, False)
