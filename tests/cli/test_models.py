from __future__ import annotations

import json

from typer.testing import CliRunner

from edgetl.cli.app import create_app
from edgetl.core.architectures import load_architectures


def test_table_lists_all_architectures() -> None:
    result = CliRunner().invoke(create_app(), ["models"])
    assert result.exit_code == 0
    assert all(name in result.output for name in load_architectures())


def test_table_says_which_weights_are_at_hand() -> None:
    result = CliRunner().invoke(create_app(), ["models", "e"])
    cells = {line.split("│")[1].strip(): line for line in result.output.splitlines() if "│" in line}
    assert "lite" in cells["efficientnet_lite0"].split("│")[6]
    assert "builtin" in cells["mobilenet_v3_small"].split("│")[6]
    assert not cells["resnet18"].split("│")[6].strip()


def test_json_is_complete() -> None:
    content = json.loads(CliRunner().invoke(create_app(), ["models", "--json"]).stdout)
    assert content["schema"] == 1
    assert {row["name"] for row in content["models"]} == set(load_architectures())
    assert next(row for row in content["models"] if row["name"] == "mobilenet_v2")["unfreeze"] == 3


def test_pattern_filters_names() -> None:
    result = CliRunner().invoke(create_app(), ["models", "squeeze", "--json"])
    assert [row["name"] for row in json.loads(result.stdout)["models"]] == [
        "squeezenet1_0",
        "squeezenet1_1",
    ]
    assert CliRunner().invoke(create_app(), ["models", "nonsense"]).exit_code == 1
