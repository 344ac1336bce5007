"""Results as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetl.core.files import write_json, write_text
from tools.checks.gpu_check.runner import Step, StepResult


def write_report(
    folder: Path, metadata: Mapping[str, Any], steps: Sequence[Step], results: Sequence[StepResult]
) -> None:
    """Write result.json and result.md, with the steps without a result marked as not run yet."""
    content = {
        "kind": "gpu-check",
        **metadata,
        "steps": [result.to_json() for result in results],
        "not_run": [step.name for step in steps[len(results) :]],
    }
    write_json(folder / "result.json", content)
    write_text(folder / "result.md", render_markdown(content))


def render_markdown(content: Mapping[str, Any]) -> str:
    """Render the content of result.json: a table of the steps, then each step's details."""
    lines = ["# GPU check", ""]
    lines += [f"- {name}: {content[name]}" for name in ("created", "edgetl", "device", "note")]
    lines += ["", "| step | status | seconds | limit |", "| --- | --- | --- | --- |"]
    for entry in content["steps"]:
        limit = f"{entry['limit_s']:g} s"
        lines.append(f"| {entry['step']} | {entry['status']} | {entry['seconds']:.1f} | {limit} |")
    lines += [f"| {name} | not run yet | | |" for name in content["not_run"]]
    for entry in content["steps"]:
        lines += _render_details(entry)
    return "\n".join(lines) + "\n"


def _render_details(entry: Mapping[str, Any]) -> list[str]:
    lines = ["", f"## {entry['step']}: {entry['title']}", "", f"Status: {entry['status']}."]
    if entry["reason"]:
        lines += ["", f"Reason: {entry['reason']}."]
    if entry["requirements"]:
        lines.append("")
    for requirement in entry["requirements"]:
        mark = "passed" if requirement["passed"] else "FAILED"
        detail = f" ({requirement['detail']})" if requirement["detail"] else ""
        lines.append(f"- {mark}: {requirement['text']}{detail}")
    if entry["figures"]:
        lines += ["", "| figure | value |", "| --- | --- |"]
        lines += [f"| {name} | {text} |" for name, text in _rows(entry["figures"], "")]
    if entry["log"]:
        lines += ["", "```text", *entry["log"], "```"]
    return lines


def _rows(figures: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            rows += _rows(value, f"{prefix}{name} / ")
        else:
            rows.append((f"{prefix}{name}", _format_value(value)))
    return rows


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_format_value, value))
    return str(value).replace("|", "\\|").replace("\n", " ")
