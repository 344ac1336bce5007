from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgetl.cli.app import create_app, main
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.presets import (
    PRESET_DESCRIPTIONS,
    RECIPE_FIELDS,
    format_preset_toml,
    get_presets,
    resolve_config,
)


def test_list_shows_descriptions_and_differing_values() -> None:
    result = CliRunner().invoke(create_app(), ["presets"])
    assert result.exit_code == 0
    rows = {
        line.split("│")[1].strip(): line
        for line in result.output.splitlines()
        if line.startswith("│")
    }
    differing = {
        field.replace("_", "-")
        for field in RECIPE_FIELDS
        if len({values[field] for values in get_presets().values()}) > 1
    }
    assert rows.keys() == differing
    assert "finetune-lr" in rows, "classic sets its own learning rate"
    for name, values in get_presets().items():
        assert f"{name}  {PRESET_DESCRIPTIONS[name]}" in result.output.splitlines()
        assert (
            f" {'auto' if values['finetune_lr'] is None else values['finetune_lr']} "
            in rows["finetune-lr"]
        )


@pytest.mark.parametrize("name", get_presets())
def test_preset_prints_a_valid_config_file(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(create_app(), ["presets", name])
    assert result.exit_code == 0
    assert result.stdout == format_preset_toml(name)
    (tmp_path / "my.toml").write_text(result.stdout)
    assert resolve_config(Path("photos"), None, tmp_path / "my.toml", {}) == FinetuneConfig(
        Path("photos"), preset=name, **get_presets()[name]
    )


def test_json_is_complete() -> None:
    content = json.loads(CliRunner().invoke(create_app(), ["presets", "--json"]).stdout)
    assert content["schema"] == 1
    assert content["presets"] == {
        name: {"note": PRESET_DESCRIPTIONS[name], "values": values}
        for name, values in get_presets().items()
    }
    assert json.loads(CliRunner().invoke(create_app(), ["presets", "classic", "--json"]).stdout)[
        "presets"
    ].keys() == {"classic"}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_unknown_preset_is_rejected_with_known_names(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["edgetl", "presets", "best", *options])
    with pytest.raises(SystemExit) as exit_info:
        main()
    captured = capsys.readouterr()
    assert (exit_info.value.code, captured.out) == (1, "")
    assert "Unknown preset 'best'. Use one of default, classic" in captured.err
