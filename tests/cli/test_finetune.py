from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from edgetl.cli.app import create_app, main
from edgetl.cli.finetune_progress import (
    LiveTrainingProgress,
    PlainTrainingProgress,
    open_training_progress,
)
from edgetl.core.artifacts.measured_choices import AutoChoices
from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.artifacts.run_config import DatasetInfo, RunConfiguration, WeightsInfo
from edgetl.core.config.finetune import (
    AugmentationStrength,
    BatchNorm,
    ClassWeights,
    Device,
    FinetuneConfig,
    InputDevice,
    Precision,
    Sampling,
    Schedule,
)
from edgetl.core.config.presets import get_presets
from edgetl.core.errors import RunError
from edgetl.core.files import write_json
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.progress import StepProgress

MakeImages = Callable[..., Path]
Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the program and returns (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["edgetl", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def options(random_weights: Path) -> list[object]:
    model = ["--model", "mobilenet_v3_small", "--weights", random_weights, "--image-size", 32]
    return [*model, "--epochs", 1, "--finetune-epochs", 1, "--batch-size", 8, "--workers", 0]


def test_finetune_in_a_real_process(
    edgetl: Program, make_images: MakeImages, options: list[object], tmp_path: Path
) -> None:
    data = make_images("photos", ["a", "b"], count=10)
    process = edgetl("finetune", data, *options, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    run = tmp_path / "runs/photos-mobilenet_v3_small"
    metrics = json.loads((run / "metrics.json").read_text())
    accuracy, (low, high) = metrics["val"]["accuracy"], metrics["val"]["accuracy_ci95"]
    assert (
        f"Validation accuracy: {accuracy:.1%} of 4 images (95% interval {low:.1%} to {high:.1%})"
        in process.stdout
    )
    assert "Next: edgetl export runs/photos-mobilenet_v3_small" in process.stdout
    assert "2 classes, 16 training and 4 validation images" in process.stderr
    assert [
        line.split(",")[0] for line in process.stderr.splitlines() if line.startswith("epoch")
    ] == [
        "epoch 1 (phase 1)",
        "epoch 2 (phase 2)",
    ]
    assert "\x1b" not in process.stderr, "logs must not contain control characters"


def test_accuracy_is_not_reported_without_validation(
    run_program: Callable[..., tuple[int, str, str]],
    make_images: MakeImages,
    options: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = run_program(
        "finetune",
        make_images("photos", ["a", "b"]),
        *options,
        "--val-split",
        0,
        "-o",
        tmp_path / "run",
    )
    assert status == 0, err
    assert "not measured, no validation images" in out
    assert "nothing is known about accuracy" in err


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "Data folder not found"),
        ("empty", "no class folders"),
        ("one class", "one class only"),
        ("empty class", "holds no images"),
        ("undecodable", "Cannot read any image"),
        ("differ", "differ"),
        ("loose", "no class folders"),
        ("weights of another", "does not fit"),
        ("pickle", "not loaded"),
        ("no weights", "No weights at"),
        ("model", "Did you mean mobilenet_v2"),
        ("unfreeze", "--unfreeze"),
        ("blocks", "--unfreeze 99"),
        ("option", "--val-split"),
        ("size", "does not take images of 40 pixels"),
        ("inside", "inside the data folder"),
    ],
)
def test_invalid_input_exits_with_1_and_writes_nothing(
    run_program: Callable[..., tuple[int, str, str]],
    make_images: MakeImages,
    options: list[object],
    tmp_path: Path,
    kind: str,
    message: str,
) -> None:
    data, output, extra = tmp_path / "data", tmp_path / "out/run", []
    if kind == "empty":
        data.mkdir()
    elif kind == "differ":
        make_images("data/train", ["a", "b"])
        make_images("data/val", ["a", "c"])
    elif kind == "one class":
        make_images("data", ["a"])
    elif kind != "missing":
        make_images("data", ["a", "b"])
    if kind == "empty class":
        (data / "c").mkdir()
    if kind == "undecodable":
        (data / "c").mkdir()
        (data / "c/x.jpg").write_text("no image")
    if kind == "loose":
        data = data / "a"
    if kind == "pickle":
        (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"weight": Path}))
    extra = {
        "weights of another": ["--model", "resnet18"],
        "pickle": ["--weights", tmp_path / "bomb.pth"],
        "no weights": ["--weights", tmp_path / "nowhere.pth"],
        "model": ["--model", "mobilenetv2"],
        "unfreeze": ["--unfreeze", "most"],
        "blocks": ["--unfreeze", 99],
        "option": ["--val-split", 1.5],
        "size": ["--model", "vit_b_16", "--image-size", 40],
    }.get(kind, [])
    if kind == "inside":
        output = data / "run"
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run_program("finetune", data, *options, *extra, "-o", output)
    assert (status, out) == (1, "")
    assert "Error:" in err
    assert message in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before, "no files may be left behind"


def test_existing_folder_is_rejected_and_unchanged(
    run_program: Callable[..., tuple[int, str, str]],
    make_images: MakeImages,
    options: list[object],
    tmp_path: Path,
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("precious")
    data = make_images("photos", ["a", "b"])
    for extra in ([], ["--force"]):
        status, _, err = run_program("finetune", data, *options, "-o", tmp_path / "run", *extra)
        assert status == 1
        assert "-o" in err
    assert (tmp_path / "run/thesis.txt").read_text() == "precious"


def test_offline_error_names_the_file_to_download(
    forked: Program, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    process = forked("finetune", make_images("photos", ["a", "b"]), "-o", tmp_path / "run")
    assert process.returncode == 1
    for part in (
        "https://download.pytorch.org/models/mobilenet_v2-",
        "--weights FILE",
        "internet access",
    ):
        assert part in process.stderr
    assert not (tmp_path / "run").exists()


def non_default(field: str, literal: Any) -> str:
    """Return a value that is not the default."""
    return next(value for value in get_args(literal) if value != getattr(FinetuneConfig, field))


OPTION_VALUES: dict[str, tuple[str, str, Any]] = {
    "--output": ("runs/a", "output", Path("runs/a")),
    "--force": ("", "force", True),
    "--allow-leaks": ("", "allow_leaks", True),
    "--deterministic": ("", "deterministic", True),
    "--tensorboard": ("", "tensorboard", True),
    "--mlflow": ("mlruns", "mlflow", "mlruns"),
    "--preset": ("classic", "preset", "classic"),
    "--model": ("resnet18", "model", "resnet18"),
    "--weights": ("none", "weights", "none"),
    "--image-size": ("64", "image_size", 64),
    "--interpolation": ("bicubic", "interpolation", "bicubic"),
    "--head-width": ("7", "head_width", 7),
    "--dropout": ("0", "dropout", 0.0),
    "--epochs": ("0", "epochs", 0),
    "--lr": ("0.5", "lr", 0.5),
    "--unfreeze": ("7", "unfreeze", "7"),
    "--finetune-epochs": ("0", "finetune_epochs", 0),
    "--finetune-lr": ("0.5", "finetune_lr", 0.5),
    "--batch-size": ("auto", "batch_size", "auto"),
    "--batch-norm": (
        non_default("batch_norm", BatchNorm),
        "batch_norm",
        non_default("batch_norm", BatchNorm),
    ),
    "--schedule": (
        non_default("schedule", Schedule),
        "schedule",
        non_default("schedule", Schedule),
    ),
    "--warmup": ("0.77", "warmup", 0.77),
    "--lr-decay": ("0.77", "lr_decay", 0.77),
    "--weight-decay": ("0.77", "weight_decay", 0.77),
    "--clip-gradient": ("0.77", "clip_gradient", 0.77),
    "--label-smoothing": ("0.77", "label_smoothing", 0.77),
    "--ema": ("0.77", "ema", 0.77),
    "--patience": ("7", "patience", 7),
    "--target-accuracy": ("0.77", "target_accuracy", 0.77),
    "--budget": ("1h30m", "budget_s", 5400.0),
    "--augment": (
        non_default("augment", AugmentationStrength),
        "augment",
        non_default("augment", AugmentationStrength),
    ),
    "--views": ("7", "views", 7),
    "--mixup": ("0.77", "mixup", 0.77),
    "--cutmix": ("0.77", "cutmix", 0.77),
    "--class-weights": (
        non_default("class_weights", ClassWeights),
        "class_weights",
        non_default("class_weights", ClassWeights),
    ),
    "--sampling": (
        non_default("sampling", Sampling),
        "sampling",
        non_default("sampling", Sampling),
    ),
    "--val-split": ("0.77", "val_split", 0.77),
    "--test-split": ("0.11", "test_split", 0.11),
    "--seed": ("7", "seed", 7),
    "--split-seed": ("8", "split_seed", 8),
    "--device": (non_default("device", Device), "device", non_default("device", Device)),
    "--input-device": (
        non_default("input_device", InputDevice),
        "input_device",
        non_default("input_device", InputDevice),
    ),
    "--precision": (
        non_default("precision", Precision),
        "precision",
        non_default("precision", Precision),
    ),
    "--workers": ("0", "workers", 0),
    "--cache-budget": ("2GB", "cache_budget", 2 * 10**9),
    "--compile": ("", "compile", True),
}
"""Option to argument, field and parsed value, which is never the default."""


def finetune_options() -> dict[str, Any]:
    """Return the declared parameters by option name."""
    command = typer.main.get_command(create_app()).commands["finetune"]  # type: ignore[attr-defined]
    return {
        name: parameter
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("--")
    }


def help_rows(flag: str) -> dict[str, str]:
    """Return the rows of the help by the long name of their option."""
    text = (
        CliRunner()
        .invoke(
            create_app("finetune"), ["finetune", flag], env={"COLUMNS": "102"}, prog_name="edgetl"
        )
        .output
    )
    rows: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"  (?:-\w, )?(--[\w-]+)", line):
            name = match[1]
        elif not line.startswith("   "):
            name = ""
        if name:
            rows[name] = f"{rows.get(name, '')} {line.strip()}".strip()
    return rows


def test_help_all_shows_every_option_with_its_default() -> None:
    rows = help_rows("--help-all")
    assert rows.keys() == {*OPTION_VALUES, "--config", "--resume", "--help", "--help-all"}
    for option, (_, field, _) in OPTION_VALUES.items():
        default = getattr(FinetuneConfig, field)
        if default is not None and not isinstance(default, bool):
            value = f"{default:g}" if isinstance(default, float) else default
            assert f"[default: {value}]" in rows[option]
    assert "[default: no-compile]" in rows["--compile"]
    for option in (
        "--output",
        "--image-size",
        "--patience",
        "--target-accuracy",
        "--budget",
        "--views",
        "--workers",
        "--cache-budget",
    ):
        assert "[default: " in rows[option], "the help must describe the default"


def test_help_all_groups_options_by_panel() -> None:
    result = CliRunner().invoke(create_app("finetune"), ["finetune", "--help-all"])
    assert result.exit_code == 0
    headings = [line for line in result.output.splitlines() if re.fullmatch(r"[A-Z][\w ]+:", line)]
    assert headings == [
        "Arguments:", "Options:", "Model:", "Recipe:", "Data and augmentation:", "Machine:",
    ]  # fmt: skip
    assert "More options" not in result.output


def test_help_shows_basic_options_and_where_the_rest_is() -> None:
    rows = help_rows("--help")
    assert {"--output", "--epochs", "--budget", "--config", "--help-all"} <= rows.keys()
    assert "--label-smoothing" not in rows
    assert len(rows) <= 16
    result = CliRunner().invoke(create_app(), ["finetune", "--help"], prog_name="edgetl")
    assert result.output.splitlines()[-1] == "More options: edgetl finetune --help-all"


def test_every_config_field_has_an_option() -> None:
    assert {field for _, field, _ in OPTION_VALUES.values()} == {
        field.name for field in fields(FinetuneConfig)
    } - {"data", "augment_file"}
    assert finetune_options().keys() == {*OPTION_VALUES, "--config", "--resume", "--help-all"}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[FinetuneConfig]:
    """Record the configs passed to the library, without training or importing torch."""
    configs: list[FinetuneConfig] = []

    def stop(config: FinetuneConfig, progress: object) -> None:
        configs.append(config)
        raise RunError("stopped")

    library = ModuleType("edgetl.train.finetune")
    library.finetune = stop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library.__name__, library)
    return configs


@pytest.fixture
def parse_config(
    run_program: Callable[..., tuple[int, str, str]], requests: list[FinetuneConfig]
) -> Callable[..., FinetuneConfig]:
    """Return a function that returns the config for a command line."""

    def parse(*arguments: object) -> FinetuneConfig:
        status, _, err = run_program("finetune", *arguments)
        assert (status, err.strip()) == (1, "Error: stopped")
        return requests.pop()

    return parse


def test_config_is_the_default_without_options(
    parse_config: Callable[..., FinetuneConfig],
) -> None:
    assert parse_config("photos") == FinetuneConfig(Path("photos"))


@pytest.mark.parametrize("option", OPTION_VALUES)
def test_option_sets_only_its_field(
    parse_config: Callable[..., FinetuneConfig], option: str
) -> None:
    text, field, value = OPTION_VALUES[option]
    assert getattr(FinetuneConfig, field) != value, "the default would hide a lost option"
    extra = get_presets()["classic"] if option == "--preset" else {}
    assert parse_config("photos", option, *[text] * bool(text)) == replace(
        FinetuneConfig(Path("photos")), **{**extra, field: value}
    )


def test_options_override_the_file_and_the_file_the_preset(
    parse_config: Callable[..., FinetuneConfig], tmp_path: Path
) -> None:
    file = tmp_path / "my.toml"
    file.write_text(
        'preset = "default"\nlr = 0.5\nbatch-size = 7\nval-split = 0.3\nworkers = 0\ncompile = true\ndevice = "cpu"\n'
    )
    config = parse_config(
        "photos",
        "--preset",
        "classic",
        "--config",
        file,
        "--lr",
        0.25,
        "--val-split",
        FinetuneConfig.val_split,
        "--no-compile",
    )
    assert (config.preset, config.finetune_lr, config.batch_norm) == ("classic", 1e-5, "train")
    assert (config.batch_size, config.workers, config.device) == (7, 0, "cpu")
    assert (config.lr, config.val_split, config.compile) == (0.25, FinetuneConfig.val_split, False)


def test_augment_accepts_a_pipeline_file(
    parse_config: Callable[..., FinetuneConfig], tmp_path: Path
) -> None:
    pipeline, file = tmp_path / "pipeline.json", tmp_path / "my.toml"
    pipeline.write_text("{}")
    file.write_text(f"augment-file = '{pipeline}'")
    assert parse_config("photos", "--augment", pipeline).augment_file == pipeline
    assert parse_config("photos", "--config", file).augment_file == pipeline
    config = parse_config("photos", "--config", file, "--augment", "none")
    assert (config.augment, config.augment_file) == ("none", None), "the option overrides the file"


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["--augment", "wild"],
            ["--augment: must be one of none, light, medium, strong or a file"],
        ),
        (["--augment", "."], ["--augment: must be one of"]),
        (["--budget", "soon"], ["--budget: 'soon' is not a duration"]),
        (["--budget", "0"], ["--budget must be > 0"]),
        (["--cache-budget", "much"], ["--cache-budget: 'much' is not a size"]),
        (
            ["--budget", "soon", "--cache-budget", "much", "--augment", "wild"],
            ["--budget: ", "--cache-budget: ", "--augment: "],
        ),
        (
            ["--warmup", 1, "--views", 0],
            [
                "--warmup must be < 1, got 1.0",
                "--views must be >= 2 (the first is the image itself), got 0",
            ],
        ),
        (["--class-weights", "balanced", "--sampling", "balanced"], ["Use one of the two"]),
        (["--preset", "best"], ["Unknown preset 'best'. Use one of default, classic"]),
        (["--config", "nowhere.toml"], ["Cannot read nowhere.toml (No such file or directory)"]),
        (["--config", "not.toml"], ["not.toml is not TOML"]),
        (
            ["--config", "keys.toml"],
            ["keys.toml: unknown key 'speed'", "keys.toml: lr: must be a number, got 'fast'"],
        ),
    ],
)
def test_invalid_options_are_rejected_before_reading_data(
    run_program: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[object],
    messages: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not.toml").write_text("epochs: 5")
    (tmp_path / "keys.toml").write_text('speed = 1\nlr = "fast"')
    status, out, err = run_program("finetune", "photos", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("Error: ")
    assert err.count("Error") == 1
    for message in messages:
        assert message in err
    assert "Data folder not found" not in err


def test_unknown_choice_is_a_usage_error(
    run_program: Callable[..., tuple[int, str, str]],
) -> None:
    status, _, err = run_program("finetune", "photos", "--schedule", "step")
    assert status == 2
    assert "--schedule" in err


STEP = StepProgress(
    phase=2,
    epoch=6,
    epochs=10,
    images=32,
    images_total=500,
    loss=0.25,
    accuracy=0.75,
    images_per_second=41.0,
)
RECORD = EpochRecord(2, 6, 0.25, 0.75, 0.5, 0.8, 1e-4, 12.0, 41.0, 60.0)


def test_terminal_shows_loss_accuracy_speed_and_time_left() -> None:
    console = Console(force_terminal=True, width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with open_training_progress(console) as progress:
        assert isinstance(progress, LiveTrainingProgress)
        progress.on_progress("checking images", 1, 2)
        progress.on_progress("checking images", 2, 2)
        progress.on_step_end(STEP)
        progress._bar.refresh()
        console.print(progress._bar.get_renderable())
        progress.on_epoch_end(RECORD, best=True)
    text = console.export_text()
    for part in (
        "epoch 6/10 (phase 2)",
        "loss 0.250",
        "accuracy 0.750",
        "41 images/s",
        "left",
        "51%",
    ):
        assert part in text


def test_log_has_one_line_per_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=False, stderr=True, width=200)
    with open_training_progress(console) as progress:
        assert type(progress) is PlainTrainingProgress
        progress.on_progress("checking images", 1, 2)
        progress.on_step_end(STEP)
        progress.on_epoch_end(RECORD, best=True)
        progress.warn("look [here]")
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0]
        == "epoch 6 (phase 2), loss 0.250, accuracy 0.750, val loss 0.500, val accuracy 0.800, 41 images/s, 12.0 s *"
    )
    assert lines[1:] == ["Warning: look [here]"]


@pytest.mark.parametrize("command", ["finetune", "models", "presets"])
def test_help_imports_no_heavy_package(command: str) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom edgetl.cli.app import create_app\n"
        f"assert CliRunner().invoke(create_app(), ['{command}', '--help']).exit_code == 0\n"
        "print(sorted({'numpy', 'PIL', 'torch', 'onnxruntime', 'matplotlib'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout.strip() == "[]"


@pytest.fixture
def recorded_run(tmp_path: Path) -> Path:
    """Write the config.json of a run on a folder `photos`, with choices."""
    config = FinetuneConfig(Path("photos"), seed=3, epochs=4)
    run = RunDirectory(tmp_path)
    RunConfiguration(
        config=replace(config, workers=2),
        requested_config=config,
        classes=("a", "b"),
        preprocessing=Preprocessing.for_image_size(64),
        versions={},
        data=DatasetInfo("0" * 64, {}),
        weights=WeightsInfo("none", None),
        choices=AutoChoices(threads=2, precision={"1": "bf16"}),
    ).write(run)
    return run.config


@pytest.mark.parametrize(
    ("extra", "changed", "keeps_choices"),
    [
        ((), {}, True),
        (("--seed", 4, "-o", "again"), {"seed": 4, "output": Path("again")}, True),
        (("--precision", "fp32"), {"precision": "fp32"}, False),
        (("elsewhere", "--epochs", 4), {"data": Path("elsewhere")}, True),
    ],
)
def test_rerun_reuses_options_and_choices(
    run_program: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    recorded_run: Path,
    extra: tuple[object, ...],
    changed: dict[str, Any],
    keeps_choices: bool,
) -> None:
    calls: list[tuple[FinetuneConfig, AutoChoices | None]] = []

    def stop(config: FinetuneConfig, progress: object, choices: AutoChoices | None) -> None:
        calls.append((config, choices))
        raise RunError("stopped")

    library = ModuleType("edgetl.train.finetune")
    library.finetune = stop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library.__name__, library)
    status, _, err = run_program("finetune", *extra, "--config", recorded_run)
    assert status == 1
    ((config, choices),) = calls
    assert config == replace(FinetuneConfig(Path("photos"), seed=3, epochs=4, workers=2), **changed)
    assert choices == (AutoChoices(threads=2, precision={"1": "bf16"}) if keeps_choices else None)
    assert (
        "Ignoring the recorded choices, which depend on --precision" in err
    ) is not keeps_choices


def test_invalid_config_json_is_rejected(
    run_program: Callable[..., tuple[int, str, str]], recorded_run: Path, tmp_path: Path
) -> None:
    status, _, err = run_program("finetune", "--config", recorded_run, "--preset", "classic")
    assert status == 1
    assert "Remove --preset" in err
    other = tmp_path / "other.json"
    write_json(other, {})
    status, _, err = run_program("finetune", "photos", "--config", other)
    assert status == 1
    assert "is not the config.json of a run" in err
