"""Provenance sections of the run report: data, recipe and versions."""

from __future__ import annotations

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
"""Maximum number of rejected files listed by name."""
_MAX_VISIBLE_CLASSES = 12
"""Maximum number of classes whose counts are visible without opening them."""
_PER_RUN_OPTIONS = ("data", "output", "model", "weights", "preset", "force")
"""Options that belong to a run, not to its preset."""


def data_section(run: RunRecord) -> Section:
    """Build the section with image counts by class, rejected files with reasons, and warnings."""
    data = run.configuration.data
    counts = data.counts
    totals = {split: sum(labels.values()) for split, labels in counts.items()}
    fingerprint = Cell(
        data.fingerprint or MISSING_VALUE,
        tooltip="SHA-256 of all paths, labels, splits and pixels",
    )
    splits = {"train": "training", "val": "validation"}
    if "test" in counts:
        splits["test"] = "test"
    pairs = [
        ("folder", value_cell(str(run.configuration.config.data))),
        *((f"{name} images", Cell(f"{totals.get(split, 0):,}")) for split, name in splits.items()),
        ("classes", Cell(str(len(run.classes)))),
        ("rejected files", value_cell(data.rejected)),
        ("fingerprint", fingerprint),
    ]
    columns = [Column("class"), *(Column(name, "number") for name in splits.values())]
    rows = []
    for label in run.classes:
        images = [counts.get(split, {}).get(label, 0) for split in splits]
        rows.append(TableRow((Cell(label), *(Cell(str(count)) for count in images))))
    class_table = table("Images by class", columns, rows)
    if len(rows) > _MAX_VISIBLE_CLASSES:
        class_table = details("Images by class", [class_table])
    blocks = [definition_list(pairs), class_table]
    if data.warnings:
        blocks += [paragraph("Warnings before training:"), bullets(data.warnings)]
    if run.rejected_files:
        blocks.append(_rejected_files_table(run))
    return Section("data", "Data", tuple(blocks))


def _rejected_files_table(run: RunRecord) -> Markup:
    files = run.rejected_files
    title = "Rejected files"
    if len(files) > _MAX_LISTED_FILES:
        title += f", {_MAX_LISTED_FILES} of {len(files)}"
    rows = [TableRow((Cell(path), Cell(reason))) for path, reason in files[:_MAX_LISTED_FILES]]
    return table(title, [Column("file"), Column("reason")], rows)


def find_preset_differences(config: FinetuneConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from the run's preset, as (value of the run, of the preset).

    A preset's value is None if it is chosen automatically.
    """
    presets = get_presets()
    preset = presets.get(config.preset, presets["default"])
    usual = {
        field.name: field.default
        for field in fields(FinetuneConfig)
        if field.default is not NO_DEFAULT
    }
    usual.update({name: preset[name] for name in RECIPE_FIELDS})
    settings = config.to_json()
    return {
        name: (settings[name], value)
        for name, value in usual.items()
        if name not in _PER_RUN_OPTIONS
        and settings[name] != value
        and str(settings[name]) != str(value)
    }


def recipe_section(run: RunRecord) -> Section:
    """Build the section with the preset, the settings that differ from it, and all settings."""
    config, weights = run.configuration.config, run.configuration.weights
    pairs = [
        ("preset", Cell(config.preset)),
        ("architecture", Cell(run.model)),
        ("weights", value_cell(weights.source)),
        ("SHA-256 of the weights", value_cell(weights.sha256)),
        ("license of the weights", value_cell(weights.license)),
        ("preprocessing", Cell(format_value(run.configuration.preprocessing.to_json()))),
    ]
    blocks: list[Markup] = [definition_list(pairs)]
    differences = find_preset_differences(config)
    if differences:
        rows = [
            TableRow(
                (
                    Cell(_option_name(name)),
                    Cell(_format_setting(value)),
                    Cell(_format_setting(usual)),
                )
            )
            for name, (value, usual) in differences.items()
        ]
        columns = [
            Column("setting"),
            Column("this run"),
            Column(f"preset {config.preset}", tooltip="auto: chosen from the data or the machine"),
        ]
        blocks.append(table("Differences from the preset", columns, rows))
    else:
        blocks.append(paragraph("All settings are those of the preset."))
    settings = [
        (_option_name(str(name)), Cell(_format_setting(value)))
        for name, value in config.to_json().items()
    ]
    blocks.append(details("All settings", [definition_list(settings)]))
    return Section("recipe", "Recipe", tuple(blocks))


def versions_section(run: RunRecord) -> Section:
    """Build the section with the versions of the software used for training."""
    pairs = [(str(name), value_cell(value)) for name, value in run.configuration.versions.items()]
    return Section("versions", "Versions", (definition_list(pairs),))


def _option_name(name: str) -> str:
    names = {"budget_s": "budget (s)", "cache_budget": "cache-budget (bytes)"}
    return names.get(name, name.replace("_", "-"))


def _format_setting(value: Any) -> str:
    return "auto" if value is None else format_value(value)
