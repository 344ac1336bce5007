"""Write edgetl/core/architectures.csv from the installed torchvision and EfficientNet-Lite.

python tools/repo/architecture_table.py

tools/checks/timm_models.py writes the table of timm's architectures in the same format.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torchvision

from edgetl.core.architectures import Architecture
from edgetl.train.model.sources.efficientnet_lite_network import LITE_SCALES
from edgetl.train.model.stock_models import describe_architecture

TABLE = Path(__file__).parents[2] / "edgetl/core/architectures.csv"
TIMM_TABLE = TABLE.with_name("timm_architectures.csv")


def main() -> None:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    rows = [describe_architecture(name) for name in sorted([*names, *LITE_SCALES])]
    write_table(TABLE, rows)


def write_table(table: Path, rows: Sequence[Architecture]) -> None:
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(
            stream, [field.name for field in fields(Architecture)], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    print(f"{len(rows)} architectures written to {table}")


if __name__ == "__main__":
    main()
