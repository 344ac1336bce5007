"""Options of `edgetl bench` in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetl.cli.app import format_error
from edgetl.core.config.bench import BenchConfig, Limits
from edgetl.core.config.options import build_config
from edgetl.core.config.presets import read_config_file
from edgetl.core.errors import ConfigError

TARGET = Path("bundle")
TOML = """
scope = ["model", "image"]
batch = "1,4"
threads = 2
pytorch = "none"
rate = [7.5]
sustained = "10m"
max-p99 = "30ms"
max_regression = 0.05
baseline = "old.json"
seed = 7
"""


def test_toml_file_sets_options_and_limits(tmp_path: Path) -> None:
    file = tmp_path / "bench.toml"
    file.write_text(TOML)
    config = build_config(BenchConfig, target=TARGET, **read_config_file(file, BenchConfig))
    assert config == BenchConfig(
        TARGET,
        ("model", "image"),
        (1, 4),
        (2,),
        torch_modes=(),
        rates=(7.5,),
        sustained_s=600.0,
        baseline=Path("old.json"),
        limits=Limits(max_regression=0.05, max_p99_ms=30.0),
        seed=7,
    )


@pytest.mark.parametrize(
    "config",
    [
        BenchConfig(TARGET),
        BenchConfig(
            TARGET, ("file",), (1,), (1, 2), ("cuda",), ("fp32",), ("no-tf32",), ("eager", "bf16"),
            (0.5, 30.0), 2, 60.0, True, Path("x.npz"), Path("old.json"), True, Limits(0.0, 1e-4, 2.0),
            Path("new.json"), 2**63 - 1, True,
        ),
    ],
)  # fmt: skip
def test_json_file_repeats_configuration(config: BenchConfig, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(config.to_json()))
    options = read_config_file(file, BenchConfig)
    assert build_config(BenchConfig, target=TARGET, **options) == config


def test_json_leaves_out_defaults() -> None:
    assert BenchConfig(TARGET).to_json() == {}
    assert BenchConfig(TARGET, torch_modes=(), limits=Limits(max_p99_ms=5.0)).to_json() == {
        "torch_modes": (),
        "max_p99_ms": 5.0,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rounds": 3, "wheels": "x"}, "unknown key 'wheels'"),
        ({"rounds": "many"}, "rounds: must be an integer, got 'many'"),
        ({"scopes": "model", "scope": "file"}, "scope: set twice"),
        ({"max_p99_ms": "soon"}, "is not a latency"),
        ({"providers": True}, "providers: must be a list of strings, got True"),
        ({"variants": [["int8"]]}, "variants: must be a list of strings"),
        ({"threads": [1, None]}, "threads: must be a list of numbers"),
        ({"threads": 1.5}, "threads: must be integers"),
        ([1], "must be an object of options"),
    ],
)
def test_invalid_file_is_reported(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        read_config_file(file, BenchConfig)


def test_all_problems_are_reported_by_field_or_option() -> None:
    with pytest.raises(ConfigError) as raised:
        BenchConfig(TARGET, scopes=(), batches=(0,), rounds=1, sustained_s=5.0, rates=(1.0,))
    assert str(raised.value).splitlines() == [
        "scopes must name at least one scope: model, image, file.",
        "batches must be >= 1, got 0.",
        "rounds must be >= 2 (an interval needs two), got 1.",
        "sustained_s must be at least 10s, got 5s.",
        "rates paces single images: leave batches at 1, or add 1 to it.",
    ]
    with pytest.raises(ConfigError) as raised:
        BenchConfig(TARGET, limits=Limits(max_regression=0.05))
    assert format_error(raised.value) == (
        "--max-regression needs an earlier result: give --baseline RESULT.json."
    )
