from __future__ import annotations

import json
import pickle
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
from edgetl.cli.finetune import finetune
from edgetl.cli.finetune_progress import (
    LiveTrainingProgress,
    PlainTrainingProgress,
    open_training_progress,
)
from edgetl.core.artifacts.measured_choices import AutoChoices
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
from edgetl.train.common.progress import EpochRecord, StepProgress

MakeImages = Callable[..., Path]
Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """(exit status, standard output, standard error) of the program, run in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["edgetl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def options(random_weights: Path) -> list[object]:
    model = ["--model", "mobilenet_v3_small", "--weights", random_weights, "--image-size", 32]
    return [*model, "--epochs", 1, "--finetune-epochs", 1, "--batch-size", 8, "--workers", 0]


def test_the_whole_way_in_a_process_of_its_own(
    edgetl: Program, make_images: MakeImages, options: list[object], tmp_path: Path
) -> None:
    data = make_images("photos", ["a", "b"], count=10)
    done = edgetl("finetune", data, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/photos-mobilenet_v3_small"
    metrics = json.loads((run / "metrics.json").read_text())
    accuracy, (low, high) = metrics["val"]["accuracy"], metrics["val"]["accuracy_ci95"]
    assert (
        f"Validation accuracy: {accuracy:.1%} of 4 images (95% interval {low:.1%} to {high:.1%})"
        in done.stdout
    )
    assert "Next: edgetl export runs/photos-mobilenet_v3_small" in done.stdout
    assert "2 classes, 16 training and 4 validation images" in done.stderr
    assert [
        line.split(",")[0] for line in done.stderr.splitlines() if line.startswith("epoch")
    ] == [
        "epoch 1 (phase 1)",
        "epoch 2 (phase 2)",
    ]
    assert "\x1b" not in done.stderr, "a log has no control characters"


def test_without_validation_the_accuracy_is_unknown(
    call: Callable[..., tuple[int, str, str]],
    make_images: MakeImages,
    options: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = call(
        "finetune",
        make_images("photos", ["a", "b"]),
        *options,
        "--val-split",
        0,
        "-o",
        tmp_path / "run",
    )
    assert status == 0, err
    assert "unknown, there were no validation images" in out
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
def test_mistakes_end_with_1_a_message_and_nothing_written(
    call: Callable[..., tuple[int, str, str]],
    make_images: MakeImages,
    options: list[object],
    tmp_path: Path,
    kind: str,
    message: str,
) -> None:
    data, output, more = tmp_path / "data", tmp_path / "out/run", []
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
    more = {
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
    status, out, err = call("finetune", data, *options, *more, "-o", output)
    assert (status, out) == (1, "")
    assert "Error:" in err
    assert message in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before, "nothing may be left behind"


def test_an_existing_folder_is_refused_and_kept(
    call: Callable[..., tuple[int, str, str]],
    make_images: MakeImages,
    options: list[object],
    tmp_path: Path,
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("precious")
    data = make_images("photos", ["a", "b"])
    for more in ([], ["--force"]):
        status, _, err = call("finetune", data, *options, "-o", tmp_path / "run", *more)
        assert status == 1
        assert "-o" in err
    assert (tmp_path / "run/thesis.txt").read_text() == "precious"


def test_offline_the_message_says_what_to_fetch_and_how_to_give_it(
    edgetl: Program, make_images: MakeImages, tmp_path: Path
) -> None:
    offline = {
        "https_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "TORCH_HOME": str(tmp_path / "cache"),
    }
    done = edgetl(
        "finetune", make_images("photos", ["a", "b"]), "-o", tmp_path / "run", env=offline
    )
    assert done.returncode == 1
    for part in (
        "https://download.pytorch.org/models/mobilenet_v2-",
        "--weights FILE",
        "internet access",
    ):
        assert part in done.stderr
    assert not (tmp_path / "run").exists()


def other(field: str, literal: Any) -> str:
    """A value that is not the default."""
    return next(value for value in get_args(literal) if value != getattr(FinetuneConfig, field))


GIVEN: dict[str, tuple[str, str, Any]] = {
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
    "--head-width": ("7", "head_width", 7),
    "--dropout": ("0", "dropout", 0.0),
    "--epochs": ("0", "epochs", 0),
    "--lr": ("0.5", "lr", 0.5),
    "--unfreeze": ("7", "unfreeze", "7"),
    "--finetune-epochs": ("0", "finetune_epochs", 0),
    "--finetune-lr": ("0.5", "finetune_lr", 0.5),
    "--batch-size": ("auto", "batch_size", "auto"),
    "--batch-norm": (other("batch_norm", BatchNorm), "batch_norm", other("batch_norm", BatchNorm)),
    "--schedule": (other("schedule", Schedule), "schedule", other("schedule", Schedule)),
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
        other("augment", AugmentationStrength),
        "augment",
        other("augment", AugmentationStrength),
    ),
    "--views": ("7", "views", 7),
    "--mixup": ("0.77", "mixup", 0.77),
    "--cutmix": ("0.77", "cutmix", 0.77),
    "--class-weights": (
        other("class_weights", ClassWeights),
        "class_weights",
        other("class_weights", ClassWeights),
    ),
    "--sampling": (other("sampling", Sampling), "sampling", other("sampling", Sampling)),
    "--val-split": ("0.77", "val_split", 0.77),
    "--seed": ("7", "seed", 7),
    "--split-seed": ("8", "split_seed", 8),
    "--device": (other("device", Device), "device", other("device", Device)),
    "--input-device": (
        other("input_device", InputDevice),
        "input_device",
        other("input_device", InputDevice),
    ),
    "--precision": (other("precision", Precision), "precision", other("precision", Precision)),
    "--workers": ("0", "workers", 0),
    "--cache-budget": ("2GB", "cache_budget", 2 * 10**9),
    "--compile": ("", "compile", True),
}
"""Option to what is given, the field it sets, and the value it sets it to: never the default's."""


def finetune_options() -> dict[str, Any]:
    """Option to what the program declares of it."""
    command = typer.main.get_command(create_app()).commands["finetune"]  # type: ignore[attr-defined]
    return {
        name: parameter
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("--")
    }


def test_help_shows_every_option_with_its_default() -> None:
    text = (
        CliRunner()
        .invoke(create_app("finetune"), ["finetune", "--help"], env={"COLUMNS": "400"})
        .output
    )
    rows = {
        words[1]: line
        for line in text.splitlines()
        if len(words := line.split()) > 1 and words[1].startswith("--")
    }
    assert rows.keys() == {*GIVEN, "--config", "--resume", "--help"}
    for option, (_, field, _) in GIVEN.items():
        default = getattr(FinetuneConfig, field)
        if default is not None and field not in (
            "force",
            "allow_leaks",
            "tensorboard",
            "compile",
            "deterministic",
        ):
            shown = f"{default:g}" if isinstance(default, float) else default
            assert f"[default: ({shown})]" in rows[option]
    assert "[default: (no-compile)]" in rows["--compile"]
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
        assert "[default: (" in rows[option], "what happens without it"
    for panel in ("Model", "Recipe", "Data and augmentation", "Machine"):
        assert f"─ {panel} ─" in text


def test_every_field_of_the_configuration_has_an_option() -> None:
    assert {field for _, field, _ in GIVEN.values()} == {
        field.name for field in fields(FinetuneConfig)
    } - {"data", "augment_file"}
    assert finetune_options().keys() == {*GIVEN, "--config", "--resume"}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[FinetuneConfig]:
    """What the library is asked for; nothing is trained, and torch is not loaded."""
    seen: list[FinetuneConfig] = []

    def stop(config: FinetuneConfig, progress: object) -> None:
        seen.append(config)
        raise RunError("asked")

    library = ModuleType("edgetl.train.finetune")
    library.finetune = stop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library.__name__, library)
    return seen


@pytest.fixture
def asked(
    call: Callable[..., tuple[int, str, str]], requests: list[FinetuneConfig]
) -> Callable[..., FinetuneConfig]:
    """What the library is asked for by that command line."""

    def ask(*arguments: object) -> FinetuneConfig:
        status, _, err = call("finetune", *arguments)
        assert (status, err.strip()) == (1, "Error: asked")
        return requests.pop()

    return ask


def test_without_options_the_configuration_is_the_default(
    asked: Callable[..., FinetuneConfig],
) -> None:
    assert asked("photos") == FinetuneConfig(Path("photos"))


@pytest.mark.parametrize("option", GIVEN)
def test_an_option_sets_its_field_and_no_other(
    asked: Callable[..., FinetuneConfig], option: str
) -> None:
    text, field, value = GIVEN[option]
    assert getattr(FinetuneConfig, field) != value, "an option that is lost would not be seen"
    more = get_presets()["classic"] if option == "--preset" else {}
    assert asked("photos", option, *[text] * bool(text)) == replace(
        FinetuneConfig(Path("photos")), **{**more, field: value}
    )


def test_an_option_stands_above_the_file_and_the_file_above_the_preset(
    asked: Callable[..., FinetuneConfig], tmp_path: Path
) -> None:
    file = tmp_path / "my.toml"
    file.write_text(
        'preset = "default"\nlr = 0.5\nbatch-size = 7\nval-split = 0.3\nworkers = 0\ncompile = true\ndevice = "cpu"\n'
    )
    config = asked(
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


def test_augment_takes_a_saved_pipeline(
    asked: Callable[..., FinetuneConfig], tmp_path: Path
) -> None:
    pipeline, file = tmp_path / "pipeline.json", tmp_path / "my.toml"
    pipeline.write_text("{}")
    file.write_text(f"augment-file = '{pipeline}'")
    assert asked("photos", "--augment", pipeline).augment_file == pipeline
    assert asked("photos", "--config", file).augment_file == pipeline
    config = asked("photos", "--config", file, "--augment", "none")
    assert (config.augment, config.augment_file) == ("none", None), (
        "the option stands above the file"
    )


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["--augment", "wild"],
            ["--augment: 'wild' is neither one of none, light, medium, strong nor a file"],
        ),
        (["--augment", "."], ["--augment: '.' is neither one of"]),
        (["--budget", "soon"], ["--budget: 'soon' is no length of time"]),
        (["--budget", "0"], ["--budget is above 0"]),
        (["--cache-budget", "much"], ["--cache-budget: 'much' is no size"]),
        (
            ["--budget", "soon", "--cache-budget", "much", "--augment", "wild"],
            ["--budget: ", "--cache-budget: ", "--augment: "],
        ),
        (
            ["--warmup", 1, "--views", 0],
            [
                "--warmup lies in [0, 1), not 1.0",
                "--views is 2 (the first is the image itself) to 10000",
            ],
        ),
        (["--class-weights", "balanced", "--sampling", "balanced"], ["Take one of the two"]),
        (["--preset", "best"], ["Unknown preset 'best'. Known: default, classic"]),
        (["--config", "nowhere.toml"], ["nowhere.toml cannot be read (No such file or directory)"]),
        (["--config", "not.toml"], ["not.toml is not TOML"]),
        (
            ["--config", "keys.toml"],
            ["keys.toml: unknown key 'speed'", "keys.toml: lr: takes a number, not 'fast'"],
        ),
    ],
)
def test_wrong_options_end_with_1_and_a_message_before_anything_is_read(
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[object],
    messages: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not.toml").write_text("epochs: 5")
    (tmp_path / "keys.toml").write_text('speed = 1\nlr = "fast"')
    status, out, err = call("finetune", "photos", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("Error: ")
    assert err.count("Error") == 1
    for message in messages:
        assert message in err
    assert "Data folder not found" not in err


def test_a_name_that_an_option_does_not_know_is_wrong_usage(
    call: Callable[..., tuple[int, str, str]],
) -> None:
    status, _, err = call("finetune", "photos", "--schedule", "step")
    assert status == 2
    assert "--schedule" in err


def test_the_command_is_a_function_of_python_too(requests: list[FinetuneConfig]) -> None:
    some = {
        "model": "resnet18",
        "weights": "none",
        "image_size": 64,
        "epochs": 3,
        "finetune_epochs": 0,
    }
    with pytest.raises(RunError):
        finetune(Path("data"), Path("run"), **some)
    assert requests == [FinetuneConfig(Path("data"), Path("run"), **some)]


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


def test_a_terminal_sees_loss_accuracy_speed_and_time_left() -> None:
    console = Console(force_terminal=True, width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with open_training_progress(console) as progress:
        assert isinstance(progress, LiveTrainingProgress)
        progress.on_files_checked(1, 2)
        progress.on_files_checked(2, 2)
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


def test_a_log_gets_a_line_an_epoch_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=False, stderr=True, width=200)
    with open_training_progress(console) as progress:
        assert type(progress) is PlainTrainingProgress
        progress.on_files_checked(1, 2)
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
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom edgetl.cli.app import create_app\n"
        f"assert CliRunner().invoke(create_app(), ['{command}', '--help']).exit_code == 0\n"
        "print(sorted({'numpy', 'PIL', 'torch', 'onnxruntime', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def recorded_run(tmp_path: Path) -> Path:
    """The config.json of a run on a folder `photos`, with choices."""
    asked = FinetuneConfig(Path("photos"), seed=3, epochs=4)
    content = {
        "asked": asked.to_json(),
        "config": {**asked.to_json(), "workers": 2},
        "choices": {"threads": 2, "precision": {"1": "bf16"}},
    }
    path = tmp_path / "config.json"
    write_json(path, content)
    return path


@pytest.mark.parametrize(
    ("more", "changed", "keeps_choices"),
    [
        ((), {}, True),
        (("--seed", 4, "-o", "again"), {"seed": 4, "output": Path("again")}, True),
        (("--precision", "fp32"), {"precision": "fp32"}, False),
        (("elsewhere", "--epochs", 4), {"data": Path("elsewhere")}, True),
    ],
)
def test_a_rerun_takes_options_and_choices_of_its_run(
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    recorded_run: Path,
    more: tuple[object, ...],
    changed: dict[str, Any],
    keeps_choices: bool,
) -> None:
    seen: list[tuple[FinetuneConfig, AutoChoices | None]] = []

    def stop(config: FinetuneConfig, progress: object, choices: AutoChoices | None) -> None:
        seen.append((config, choices))
        raise RunError("asked")

    library = ModuleType("edgetl.train.finetune")
    library.finetune = stop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library.__name__, library)
    status, _, err = call("finetune", *more, "--config", recorded_run)
    assert status == 1
    ((config, choices),) = seen
    assert config == replace(FinetuneConfig(Path("photos"), seed=3, epochs=4, workers=2), **changed)
    assert choices == (AutoChoices(threads=2, precision={"1": "bf16"}) if keeps_choices else None)
    assert ("The recorded choices do not hold with another --precision" in err) is not keeps_choices


def test_what_is_no_run_s_config_json_is_refused(
    call: Callable[..., tuple[int, str, str]], recorded_run: Path, tmp_path: Path
) -> None:
    status, _, err = call("finetune", "--config", recorded_run, "--preset", "classic")
    assert status == 1
    assert "leave --preset out" in err
    other = tmp_path / "other.json"
    write_json(other, {})
    status, _, err = call("finetune", "photos", "--config", other)
    assert status == 1
    assert "is not the config.json of a run" in err
