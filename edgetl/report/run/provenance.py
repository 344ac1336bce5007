"""What a run's figures rest on: the images, the recipe, and the versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from typing import Any

from markupsafe import Markup

from edgetl.core.artifacts.run import RunRecord
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.presets import RECIPE_FIELDS, get_presets
from edgetl.core.formatting import MISSING_VALUE
from edgetl.report.html.blocks import (
    Cell,
    Column,
    Section,
    TableRow,
    bullets,
    definition_list,
    details,
    paragraph,
    table,
)
from edgetl.report.html.text import format_value, value_cell

_MAX_LISTED_FILES = 20
"""Rejected files that are named."""
_MAX_VISIBLE_CLASSES = 12
"""Classes whose counts are shown at once."""
_PER_RUN_OPTIONS = ("data", "output", "model", "weights", "preset", "force")
"""What every run is given anew: no departure from a preset."""


def data_section(run: RunRecord) -> Section:
    """How many images of which class, what was left out and why, and what was noticed."""
    counts = run.data["counts"]
    totals = {part: sum(labels.values()) for part, labels in counts.items()}
    pairs = [
        ("folder", value_cell(run.config.get("data"))),
        ("training images", Cell(f"{totals.get('train', 0):,}")),
        ("validation images", Cell(f"{totals.get('val', 0):,}")),
        ("classes", Cell(str(len(run.classes)))),
        ("files left out", value_cell(run.data.get("rejected", len(run.rejected_files)))),
        (
            "fingerprint",
            Cell(
                str(run.data.get("fingerprint") or MISSING_VALUE),
                tooltip="SHA-256 of all paths, labels, parts and pixels",
            ),
        ),
    ]
    columns = [Column("class"), Column("training", "number"), Column("validation", "number")]
    rows = [
        TableRow(
            (
                Cell(label),
                *(Cell(str(counts.get(part, {}).get(label, 0))) for part in ("train", "val")),
            )
        )
        for label in run.classes
    ]
    shown = table("Images by class", columns, rows)
    blocks = [
        definition_list(pairs),
        shown if len(rows) <= _MAX_VISIBLE_CLASSES else details("Images by class", [shown]),
    ]
    if run.data["warnings"]:
        blocks += [paragraph("Noticed before training:"), bullets(run.data["warnings"])]
    if run.rejected_files:
        body = [
            TableRow((Cell(path), Cell(reason)))
            for path, reason in run.rejected_files[:_MAX_LISTED_FILES]
        ]
        more = (
            f", {_MAX_LISTED_FILES} of {len(run.rejected_files)}"
            if len(run.rejected_files) > _MAX_LISTED_FILES
            else ""
        )
        blocks.append(table(f"Files left out{more}", [Column("file"), Column("why")], body))
    return Section("data", "Data", tuple(blocks))


def find_preset_differences(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Setting to (this run's value, its preset's), of those that differ; what the preset leaves to edgetl is None."""
    known = get_presets()
    preset = known.get(str(config.get("preset")), known["default"])
    defaults = {
        field.name: field.default
        for field in fields(FinetuneConfig)
        if field.default is not NO_DEFAULT
    }
    usual = {**defaults, **{name: preset[name] for name in RECIPE_FIELDS}}
    return {
        name: (config[name], usual[name])
        for name in usual
        if name in config
        and name not in _PER_RUN_OPTIONS
        and config[name] != usual[name]
        and str(config[name]) != str(usual[name])
    }


def recipe_section(run: RunRecord) -> Section:
    """The preset and what departs from it; every setting on demand."""
    preset, found = str(run.config.get("preset", "default")), find_preset_differences(run.config)
    pairs = [
        ("preset", Cell(preset)),
        ("architecture", Cell(run.model)),
        ("weights", value_cell(run.weights.get("source"))),
        ("SHA-256 of the weights", value_cell(run.weights.get("sha256"))),
        ("preprocessing", Cell(format_value(run.preprocessing))),
    ]
    blocks: list[Markup] = [definition_list(pairs)]
    if found:
        rows = [
            TableRow(
                (Cell(_option_name(name)), Cell(_format_setting(own)), Cell(_format_setting(usual)))
            )
            for name, (own, usual) in found.items()
        ]
        columns = [
            Column("setting"),
            Column("this run"),
            Column(f"preset {preset}", tooltip="auto: chosen by the data or the machine"),
        ]
        blocks.append(table("What differs from the preset", columns, rows))
    else:
        blocks.append(paragraph("Nothing differs from the preset."))
    every = [
        (_option_name(str(name)), Cell(_format_setting(value)))
        for name, value in run.config.items()
    ]
    blocks.append(details("Every setting", [definition_list(every)]))
    return Section("recipe", "Recipe", tuple(blocks))


def versions_section(run: RunRecord) -> Section:
    """What the run's figures depend on."""
    return Section(
        "versions",
        "Versions",
        (
            definition_list(
                [(str(name), value_cell(value)) for name, value in run.versions.items()]
            ),
        ),
    )


def _option_name(name: str) -> str:
    return {"budget_s": "budget (s)", "cache_budget": "cache-budget (bytes)"}.get(
        name, name.replace("_", "-")
    )


def _format_setting(value: Any) -> str:
    return "auto" if value is None else format_value(value)
