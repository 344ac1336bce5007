"""What a run's figures rest on: the images, the recipe, and the versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from typing import Any

from markupsafe import Markup

from edgetl.core.artifacts.run import TrainedRun
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.presets import RECIPE, presets
from edgetl.core.formatting import MISSING
from edgetl.report.html.blocks import (
    Cell,
    Column,
    Section,
    TableRow,
    bullets,
    facts,
    folded,
    paragraph,
    table,
)
from edgetl.report.html.text import text_of, told_cell

_LISTED = 20
"""Rejected files that are named."""
_UNFOLDED = 12
"""Classes whose counts are shown at once."""
_ASKED = ("data", "output", "model", "weights", "preset", "force")
"""What every run is given anew: no departure from a preset."""


def data_section(run: TrainedRun) -> Section:
    """How many images of which class, what was left out and why, and what was noticed."""
    counts = run.data["counts"]
    totals = {part: sum(labels.values()) for part, labels in counts.items()}
    pairs = [
        ("folder", told_cell(run.config.get("data"))),
        ("training images", Cell(f"{totals.get('train', 0):,}")),
        ("validation images", Cell(f"{totals.get('val', 0):,}")),
        ("classes", Cell(str(len(run.classes)))),
        ("files left out", told_cell(run.data.get("rejected", len(run.rejected)))),
        (
            "fingerprint",
            Cell(
                str(run.data.get("fingerprint") or MISSING),
                title="SHA-256 of all paths, labels, parts and pixels",
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
    blocks = [facts(pairs), shown if len(rows) <= _UNFOLDED else folded("Images by class", [shown])]
    if run.data["warnings"]:
        blocks += [paragraph("Noticed before training:"), bullets(run.data["warnings"])]
    if run.rejected:
        body = [TableRow((Cell(path), Cell(reason))) for path, reason in run.rejected[:_LISTED]]
        more = f", {_LISTED} of {len(run.rejected)}" if len(run.rejected) > _LISTED else ""
        blocks.append(table(f"Files left out{more}", [Column("file"), Column("why")], body))
    return Section("data", "Data", tuple(blocks))


def differing(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Setting to (this run's value, its preset's), of those that differ; what the preset leaves to edgetl is None."""
    known = presets()
    preset = known.get(str(config.get("preset")), known["default"])
    defaults = {
        field.name: field.default
        for field in fields(FinetuneConfig)
        if field.default is not NO_DEFAULT
    }
    usual = {**defaults, **{name: preset[name] for name in RECIPE}}
    return {
        name: (config[name], usual[name])
        for name in usual
        if name in config
        and name not in _ASKED
        and config[name] != usual[name]
        and str(config[name]) != str(usual[name])
    }


def recipe_section(run: TrainedRun) -> Section:
    """The preset and what departs from it; every setting on demand."""
    preset, found = str(run.config.get("preset", "default")), differing(run.config)
    pairs = [
        ("preset", Cell(preset)),
        ("architecture", Cell(run.model)),
        ("weights", told_cell(run.weights.get("source"))),
        ("SHA-256 of the weights", told_cell(run.weights.get("sha256"))),
        ("preprocessing", Cell(text_of(run.preprocessing))),
    ]
    blocks: list[Markup] = [facts(pairs)]
    if found:
        rows = [
            TableRow((Cell(_option(name)), Cell(_value(own)), Cell(_value(usual))))
            for name, (own, usual) in found.items()
        ]
        columns = [
            Column("setting"),
            Column("this run"),
            Column(f"preset {preset}", title="auto: chosen by the data or the machine"),
        ]
        blocks.append(table("What differs from the preset", columns, rows))
    else:
        blocks.append(paragraph("Nothing differs from the preset."))
    every = [(_option(str(name)), Cell(_value(value))) for name, value in run.config.items()]
    blocks.append(folded("Every setting", [facts(every)]))
    return Section("recipe", "Recipe", tuple(blocks))


def versions_section(run: TrainedRun) -> Section:
    """What the run's figures depend on."""
    return Section(
        "versions",
        "Versions",
        (facts([(str(name), told_cell(value)) for name, value in run.versions.items()]),),
    )


def _option(name: str) -> str:
    return {"budget_s": "budget (s)", "cache_budget": "cache-budget (bytes)"}.get(
        name, name.replace("_", "-")
    )


def _value(value: Any) -> str:
    return "auto" if value is None else text_of(value)
