"""List what check.sh runs, and print its results as a table.

    python -m tools.checks.arm64.results BUNDLE
    python -m tools.checks.arm64.results BUNDLE FOLDER

The first command prints a line for each runtime: its name, its extra, and the variants that
`predict` runs. The second one reads FOLDER/RUNTIME/CORE: `verify.json` and, by variant, the CSV
files of `predict`, each with an exit status beside it (`.status`). FOLDER/RUNTIME/error is the
reason why a runtime did not run. The exit status is 1 if a required variant failed.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.exit_status import describe_exit_status
from edgetl.core.typed_json import parse_as
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.verify import VerifyResult
from tools.checks.bundle_runtimes import BundleRuntime, list_bundle_runtimes

REQUIRED = (("fp32",), ("int8",), ("openvino-fp32", "ncnn-fp32"), ("litert-fp32",))
"""Variants that must work on every core; of several in one entry, one is enough.

The int8 kernels of the other runtimes depend on instructions that a core may lack.
"""


@dataclass(frozen=True)
class Result:
    """Result of one variant on one emulated core."""

    runtime: str
    variant: str
    core: str
    passed: bool
    text: str


NO_CORE = "-"
"""Core of the results of a runtime that could not be installed."""


def list_predicted_variants(runtime: BundleRuntime, bundle: Bundle) -> list[str]:
    """Return the variants of a runtime that `predict` runs: float32, and those in `REQUIRED`."""
    selected = {runtime.fp32_variant, *(name for names in REQUIRED for name in names)}
    return [
        item.name
        for item in bundle.variants
        if item.runtime == runtime.name and item.name in selected
    ]


def read_results(bundle: Bundle, folder: Path) -> list[Result]:
    """Return the results below `folder`, in the order of runtimes, cores and variants."""
    results = []
    for runtime in list_bundle_runtimes(bundle):
        variants = [item.name for item in bundle.variants if item.runtime == runtime.name]
        error = folder / runtime.name / "error"
        if error.is_file():
            text = error.read_text(encoding="utf-8").strip()
            results += [Result(runtime.name, name, NO_CORE, False, text) for name in variants]
            continue
        for core in sorted(path for path in folder.glob(f"{runtime.name}/*") if path.is_dir()):
            for name in variants:
                passed, text = _read_result(bundle, core, name)
                results.append(Result(runtime.name, name, core.name, passed, text))
    return results


def find_failures(results: Sequence[Result]) -> list[str]:
    """Return the entries of `REQUIRED` that ran and failed, with the core."""
    failures = []
    cores = dict.fromkeys(result.core for result in results if result.core != NO_CORE)
    for core in cores or (NO_CORE,):
        passed = {
            result.variant: result.passed for result in results if result.core in (core, NO_CORE)
        }
        for names in REQUIRED:
            present = [name for name in names if name in passed]
            if present and not any(passed[name] for name in present):
                failures.append(f"{' and '.join(present)} on {core}")
    return failures


def _read_result(bundle: Bundle, core: Path, variant: str) -> tuple[bool, str]:
    """Return whether a variant passed `verify`, and `predict` if that ran, with a description."""
    try:
        content = json.loads((core / "verify.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return False, f"verify {_read_status(core / 'verify.status')}"
    results = [parse_as(VerifyResult, item, "result") for item in content["variants"]]
    result = next((item for item in results if item.variant == variant), None)
    if result is None:
        return False, "not verified"
    gate = result.gate
    if not gate.passed:
        reason = (gate.reason or "").splitlines()[0].rstrip(".")
        crash = re.search(r"killed by (.*)", reason)
        return False, f"crashed: {crash[1]}" if crash else f"refused: {reason}"
    text = f"logits differ by up to {gate.max_logit_difference:.2g} ({gate.tolerance:.2g} allowed)"
    predictions = core / f"{variant}.csv"
    if not predictions.is_file():
        return True, f"top-1 of verify {gate.top1_agreement} of {gate.images}, {text}"
    status_file = core / f"{variant}.status"
    if not status_file.is_file() or status_file.read_text().strip() != "0":
        return False, f"predict {_read_status(status_file)}"
    equal, total = count_golden_labels(bundle, predictions)
    return equal == total, f"golden labels {equal} of {total}, {text}"


def _read_status(path: Path) -> str:
    if not path.is_file():
        return "did not finish"
    # A shell adds 128 to the number of the signal that killed a program.
    status = int(path.read_text())
    return describe_exit_status(128 - status if status > 128 else status)


def count_golden_labels(bundle: Bundle, predictions: Path) -> tuple[int, int]:
    """Return how many labels of `predict` equal PyTorch's, and the number of golden images."""
    golden = bundle.load_golden()
    best = golden.logits.argmax(1)
    expected = {
        path.name: bundle.labels[index] for path, index in zip(golden.files, best, strict=True)
    }
    with predictions.open(encoding="utf-8", newline="") as stream:
        labels = {Path(row["path"]).name: row["label"] for row in csv.DictReader(stream)}
    return sum(labels.get(name) == label for name, label in expected.items()), len(expected)


def print_table(results: Sequence[Result]) -> None:
    rows = [("runtime", "variant", "core", "result")]
    rows += [(result.runtime, result.variant, result.core, result.text) for result in results]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, text in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        print("  ".join([*padded, text]))


def main() -> None:
    bundle = open_bundle(Path(sys.argv[1]))
    if len(sys.argv) == 2:
        for runtime in list_bundle_runtimes(bundle):
            print(runtime.name, runtime.extra, *list_predicted_variants(runtime, bundle))
        return
    results = read_results(bundle, Path(sys.argv[2]))
    print_table(results)
    if failures := find_failures(results):
        sys.exit(f"Required variants failed on aarch64: {'; '.join(failures)}.")


if __name__ == "__main__":
    main()
