from __future__ import annotations

from pathlib import Path

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.presets import resolve_config
from edgetl.report.run.provenance import find_preset_differences


def test_preset_differences_ignore_per_run_options() -> None:
    assert find_preset_differences(resolve_config(Path("photos"), "classic", None, {})) == {}
    changed = resolve_config(
        Path("photos"),
        "classic",
        None,
        {"epochs": 7, "seed": 3, "output": Path("runs/x"), "model": "resnet18"},
    )
    assert find_preset_differences(changed) == {"epochs": (7, 5), "seed": (3, 0)}


def test_preset_difference_from_automatic_value_is_none() -> None:
    assert find_preset_differences(FinetuneConfig(Path("photos"), batch_size=16)) == {
        "batch_size": (16, None)
    }


def test_preset_differences_of_other_versions() -> None:
    config = FinetuneConfig.from_json(
        {"data": "photos", "preset": "removed preset", "lr": 0.1, "unknown setting": 1}
    )
    assert find_preset_differences(config) == {"lr": (0.1, 0.002)}
