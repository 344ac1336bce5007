"""Table and exit status of the check on emulated aarch64."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from edgetl.core.artifacts.gate import GateResult
from edgetl.core.typed_json import to_json
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.images import load_image
from edgetl.device.verify import VerifyResult
from tests.helpers.bundles import LABELS, colour_logits, colour_model, write_bundle, write_pictures
from tools.checks.arm64.results import NO_CORE, Result, find_failures, read_results

PASSED = GateResult(True, True, 4, 4, 1e-6, 0.05)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    images = write_pictures(tmp_path / "bundle/golden")
    logits = np.stack([colour_logits(load_image(path)) for path in images])
    models = dict.fromkeys(("fp32", "int8", "fp16"), colour_model())
    return open_bundle(write_bundle(tmp_path / "bundle", models, logits))


def write_verification(folder: Path, gates: dict[str, GateResult]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results = [VerifyResult(name, name, "cpu", gate) for name, gate in gates.items()]
    content = {"variants": [to_json(result) for result in results]}
    (folder / "verify.json").write_text(json.dumps(content))
    (folder / "verify.status").write_text("0\n")


def write_predictions(bundle: Bundle, folder: Path, variant: str, wrong: int = 0) -> None:
    golden = bundle.load_golden()
    with (folder / f"{variant}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label"])
        for number, path in enumerate(golden.files):
            best = int(golden.logits[number].argmax()) + (number < wrong)
            writer.writerow([f"/work/golden/{path.name}", LABELS[best % len(LABELS)]])
    (folder / f"{variant}.status").write_text("0\n")


def read_texts(bundle: Bundle, folder: Path) -> dict[str, tuple[bool, str]]:
    return {result.variant: (result.passed, result.text) for result in read_results(bundle, folder)}


def test_labels_of_predict_are_compared_with_golden(bundle: Bundle, tmp_path: Path) -> None:
    core = tmp_path / "results/onnxruntime/max"
    write_verification(core, dict.fromkeys(("fp32", "int8", "fp16"), PASSED))
    write_predictions(bundle, core, "fp32")
    write_predictions(bundle, core, "int8", wrong=1)
    texts = read_texts(bundle, tmp_path / "results")
    logits = "logits differ by up to 1e-06 (0.05 allowed)"
    assert texts == {
        "fp32": (True, f"golden labels 4 of 4, {logits}"),
        "int8": (False, f"golden labels 3 of 4, {logits}"),
        "fp16": (True, f"top-1 of verify 4 of 4, {logits}"),
    }


def test_refusal_and_crash_are_told_apart(bundle: Bundle, tmp_path: Path) -> None:
    core = tmp_path / "results/onnxruntime/max"
    crash = "The gate process of litert was killed by SIGILL (illegal instruction).\nmore"
    gates = {
        "fp32": PASSED,
        "int8": GateResult.failure("Not loadable."),
        "fp16": GateResult.failure(crash),
    }
    write_verification(core, gates)
    (core / "fp32.csv").write_text("")
    (core / "fp32.status").write_text("132\n")
    texts = read_texts(bundle, tmp_path / "results")
    assert texts["fp32"][1].startswith("predict was killed by SIGILL (illegal instruction")
    assert texts["int8"] == (False, "refused: Not loadable")
    assert texts["fp16"] == (False, "crashed: SIGILL (illegal instruction)")


def test_failed_verify_and_install_are_reported(bundle: Bundle, tmp_path: Path) -> None:
    core = tmp_path / "results/onnxruntime/max"
    core.mkdir(parents=True)
    (core / "verify.json").write_text("")
    (core / "verify.status").write_text("139\n")
    texts = read_texts(bundle, tmp_path / "results")
    assert set(texts.values()) == {(False, "verify was killed by SIGSEGV")}
    (core / "verify.status").unlink()
    texts = read_texts(bundle, tmp_path / "results")
    assert set(texts.values()) == {(False, "verify did not finish")}
    (core.parent / "error").write_text("not installed\n")
    assert read_results(bundle, tmp_path / "results")[0] == Result(
        "onnxruntime", "fp32", NO_CORE, False, "not installed"
    )


@pytest.mark.parametrize(
    ("results", "failures"),
    [
        ([("fp32", "a", True), ("openvino-int8", "a", False)], []),
        ([("fp32", "a", True), ("fp32", "b", False)], ["fp32 on b"]),
        ([("openvino-fp32", "a", False), ("ncnn-fp32", "a", True)], []),
        ([("openvino-fp32", NO_CORE, False), ("ncnn-fp32", "a", True)], []),
        (
            [("openvino-fp32", "a", False), ("ncnn-fp32", NO_CORE, False)],
            ["openvino-fp32 and ncnn-fp32 on a"],
        ),
        ([("litert-fp32", NO_CORE, False)], ["litert-fp32 on -"]),
    ],
)
def test_required_variants_are_judged_by_core(
    results: list[tuple[str, str, bool]], failures: list[str]
) -> None:
    rows = [Result("runtime", name, core, passed, "") for name, core, passed in results]
    assert find_failures(rows) == failures
