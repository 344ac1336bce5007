from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from edgetl.cli.app import app, main
from edgetl.cli.finetune_progress import Bar, PlainLog, open_progress
from edgetl.train.progress import EpochRecord, Step

MakeImages = Callable[..., Path]
Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
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


def test_the_whole_way_in_a_process_of_its_own(edgetl: Program, make_images: MakeImages, options: list[object], tmp_path: Path) -> None:
    data = make_images("photos", ["a", "b"], count=10)
    done = edgetl("finetune", data, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/photos-mobilenet_v3_small"
    metrics = json.loads((run / "metrics.json").read_text())
    accuracy, (low, high) = metrics["val"]["accuracy"], metrics["val"]["accuracy_ci95"]
    assert f"Validation accuracy: {accuracy:.1%} of 4 images (95% interval {low:.1%} to {high:.1%})" in done.stdout
    assert "Next: edgetl export runs/photos-mobilenet_v3_small" in done.stdout
    assert "2 classes, 16 training and 4 validation images" in done.stderr
    assert [line.split(",")[0] for line in done.stderr.splitlines() if line.startswith("epoch")] == [
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
    status, out, err = call("finetune", make_images("photos", ["a", "b"]), *options, "--val-split", 0, "-o", tmp_path / "run")
    assert status == 0, err
    assert "unknown, there were no validation images" in out
    assert "nothing is known about accuracy" in err


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No data folder"),
        ("empty", "no class folders"),
        ("one class", "one class only"),
        ("empty class", "holds no images"),
        ("undecodable", "can be read"),
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
    call: Callable[..., tuple[int, str, str]], make_images: MakeImages, options: list[object], tmp_path: Path, kind: str, message: str
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
    call: Callable[..., tuple[int, str, str]], make_images: MakeImages, options: list[object], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("precious")
    data = make_images("photos", ["a", "b"])
    for more in ([], ["--force"]):
        status, _, err = call("finetune", data, *options, "-o", tmp_path / "run", *more)
        assert status == 1
        assert "-o" in err
    assert (tmp_path / "run/thesis.txt").read_text() == "precious"


def test_offline_the_message_says_what_to_fetch_and_how_to_give_it(edgetl: Program, make_images: MakeImages, tmp_path: Path) -> None:
    offline = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path / "cache")}
    done = edgetl("finetune", make_images("photos", ["a", "b"]), "-o", tmp_path / "run", env=offline)
    assert done.returncode == 1
    for part in ("https://download.pytorch.org/models/mobilenet_v2-", "--weights FILE", "internet access"):
        assert part in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_shows_every_option_with_its_default() -> None:
    text = CliRunner().invoke(app, ["finetune", "--help"], env={"COLUMNS": "200"}).output
    options = (
        "--output --force --model --weights --image-size --epochs --lr --unfreeze --finetune-epochs --finetune-lr --batch-size --augment"
    )
    for option in [*options.split(), "--val-split", "--device", "--precision", "--workers", "--seed"]:
        assert option in text
    for default in ("mobilenet_v2", "imagenet", "0.0001", "light", "auto", "0.2", "32"):
        assert f"default: {default}" in text


STEP = Step(phase=2, epoch=6, epochs=10, images=32, images_total=500, loss=0.25, accuracy=0.75, images_per_second=41.0)
RECORD = EpochRecord(2, 6, 0.25, 0.75, 0.5, 0.8, 1e-4, 12.0, 41.0)


def test_a_terminal_sees_loss_accuracy_speed_and_time_left() -> None:
    console = Console(force_terminal=True, width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with open_progress(console) as progress:
        assert isinstance(progress, Bar)
        progress.files(1, 2)
        progress.files(2, 2)
        progress.step(STEP)
        progress._bar.refresh()
        console.print(progress._bar.get_renderable())
        progress.epoch(RECORD, best=True)
    text = console.export_text()
    for part in ("epoch 6/10 (phase 2)", "loss 0.250", "accuracy 0.750", "41 images/s", "left", "51%"):
        assert part in text


def test_a_log_gets_a_line_an_epoch_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=False, stderr=True, width=200)
    with open_progress(console) as progress:
        assert type(progress) is PlainLog
        progress.files(1, 2)
        progress.step(STEP)
        progress.epoch(RECORD, best=True)
        progress.warn("look [here]")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "epoch 6 (phase 2), loss 0.250, accuracy 0.750, val loss 0.500, val accuracy 0.800, 41 images/s, 12.0 s *"
    assert lines[1:] == ["Warning: look [here]"]


@pytest.mark.parametrize("command", ["finetune", "models"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom edgetl.cli.app import app\n"
        f"assert CliRunner().invoke(app, ['{command}', '--help']).exit_code == 0\n"
        "print(sorted({'numpy', 'PIL', 'torch', 'onnxruntime', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"
