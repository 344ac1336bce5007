from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgetl.cli.app import create_app
from edgetl.core.runtimes import RUNTIMES
from edgetl.device import doctor
from edgetl.device.doctor import (
    inspect_environment,
    list_providers,
    try_provider,
    try_runtime,
    try_torch,
)
from edgetl.device.runtime import cuda_libraries
from edgetl.device.runtime.node_counts import count_nodes


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Fake package versions; all probes succeed."""
    names = (*doctor.DEVICE_PACKAGES, *doctor.TRAIN_PACKAGES)
    versions: dict[str, str | None] = {
        **dict.fromkeys(names, "99.0"),
        "onnxruntime": "1.31.0",
        "onnxruntime-gpu": None,
    }
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    monkeypatch.setattr(doctor, "list_providers", lambda: (["CPUExecutionProvider"], None))
    monkeypatch.setattr(doctor, "try_provider", lambda name: None)
    monkeypatch.setattr(doctor, "try_runtime", lambda name: None)
    monkeypatch.setattr(doctor, "try_torch", lambda: (doctor.TorchInfo((), None, 2), None))
    monkeypatch.setattr(
        doctor.metadata,
        "requires",
        lambda name: ["numpy>=1.26", 'torch>=2.11; extra == "train"', "typer<0.29,>=0.15"],
    )
    return versions


@pytest.mark.usefixtures("installed")
def test_complete_environment_has_no_findings() -> None:
    environment = inspect_environment()
    assert environment.findings == ()
    assert environment.providers == {"CPUExecutionProvider": None}


def test_two_onnxruntime_packages_are_a_fatal_finding(installed: dict[str, str | None]) -> None:
    installed["onnxruntime-gpu"] = "1.30.0"
    (finding,) = inspect_environment().findings
    assert finding.fatal
    assert "onnxruntime 1.31.0 and onnxruntime-gpu 1.30.0" in finding.what
    assert finding.remedy.startswith("pip uninstall --yes onnxruntime onnxruntime-gpu")


def test_missing_runtime_is_a_fatal_finding(installed: dict[str, str | None]) -> None:
    installed["onnxruntime"] = None
    (finding,) = inspect_environment().findings
    assert finding.fatal
    assert 'pip install "edgetl[cpu]"' in finding.remedy


def test_missing_onnxruntime_is_not_fatal_beside_openvino(
    installed: dict[str, str | None],
) -> None:
    installed["onnxruntime"], installed["openvino"] = None, "2026.4.1"
    environment = inspect_environment()
    (finding,) = environment.findings
    assert not finding.fatal
    assert "not with OpenVINO 2026.4.1" in finding.effect
    assert environment.runtimes["openvino"].works
    assert not environment.runtimes["onnxruntime"].works


def test_runtime_that_cannot_be_imported_is_reported(
    installed: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed["openvino"] = "2026.4.1"
    monkeypatch.setattr(doctor, "try_runtime", lambda name: "Illegal instruction")
    (finding,) = inspect_environment().findings
    assert not finding.fatal
    assert finding.what == "OpenVINO 2026.4.1 cannot be imported: Illegal instruction"
    assert finding.remedy == 'pip install --force-reinstall "edgetl[openvino]"'
    installed["onnxruntime"] = None
    assert len(inspect_environment().fatal_findings) == 2


@pytest.mark.usefixtures("installed")
def test_missing_runtimes_have_their_pip_command() -> None:
    runtimes = inspect_environment().runtimes
    assert list(runtimes) == list(RUNTIMES)
    assert runtimes["openvino"].version is None
    assert runtimes["openvino"].install == 'pip install "edgetl[openvino]"'


def test_missing_torch_is_not_fatal(installed: dict[str, str | None]) -> None:
    for name in doctor.TRAIN_PACKAGES:
        installed[name] = None
    environment = inspect_environment()
    (finding,) = environment.findings
    assert not finding.fatal
    assert environment.fatal_findings == []
    assert finding.remedy == 'pip install "edgetl[train]"'
    assert environment.torch is None


def test_outdated_package_is_reported(installed: dict[str, str | None]) -> None:
    installed["torch"], installed["numpy"] = "2.9.1+cpu", "1.25.2"
    numpy, torch = inspect_environment().findings
    assert (numpy.what, numpy.fatal) == ("numpy 1.25.2 is older than 1.26", True)
    assert (torch.what, torch.fatal) == ("torch 2.9.1+cpu is older than 2.11", False)


def test_import_failure_is_reported(
    installed: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "list_providers", lambda: ([], "ImportError: libfoo.so"))
    monkeypatch.setattr(
        doctor,
        "try_torch",
        lambda: (None, "RuntimeError: operator torchvision::nms does not exist"),
    )
    runtime, torch = inspect_environment().findings
    assert runtime.fatal
    assert "libfoo.so" in runtime.what
    assert "torchvision::nms" in torch.what
    assert not torch.fatal


def test_gpu_unusable_by_onnxruntime_is_reported(
    installed: dict[str, str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card = tmp_path / "driver/nvidia/gpus/0000:01:00.0/information"
    card.parent.mkdir(parents=True)
    card.write_text("Model: \t\t NVIDIA Imaginary 9\n")
    monkeypatch.setattr(
        doctor,
        "list_providers",
        lambda: (["CUDAExecutionProvider", "CPUExecutionProvider"], None),
    )
    monkeypatch.setattr(
        doctor,
        "try_provider",
        lambda name: "libcurand.so.10 is missing" if name.startswith("CUDA") else None,
    )
    monkeypatch.setattr(cuda_libraries, "_installed_version", {"onnxruntime-gpu": "1.31.1"}.get)
    (finding,) = inspect_environment(proc=tmp_path).findings
    assert (
        "NVIDIA Imaginary 9 is present, but CUDAExecutionProvider does not start: libcurand.so.10 is missing"
        in finding.what
    )
    assert finding.remedy == 'pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"'
    monkeypatch.setattr(
        doctor,
        "try_provider",
        lambda name: "libcuda.so.1 is missing" if name.startswith("CUDA") else None,
    )
    (finding,) = inspect_environment(proc=tmp_path).findings
    assert finding.remedy.startswith("install NVIDIA's driver")


def test_probes_work_in_this_environment() -> None:
    listed, problem = list_providers()
    assert problem is None
    assert "CPUExecutionProvider" in listed
    assert try_provider("CPUExecutionProvider") is None
    assert try_provider("ImaginaryExecutionProvider")


def test_crash_of_a_runtime_is_its_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert try_runtime("onnxruntime") is None
    (tmp_path / "openvino.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "exit status -6" in (try_runtime("openvino") or "")


def test_crashing_probe_returns_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch, problem = try_torch()
    assert torch is None
    assert problem == "ImportError: libtorch.so: cannot open"


def test_command_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = inspect_environment()
    monkeypatch.setattr(doctor, "inspect_environment", lambda bundle: environment)
    table, as_json = (
        CliRunner().invoke(create_app("doctor"), ["doctor", *options], env={"COLUMNS": "100"})
        for options in ([], ["--json"])
    )
    assert table.exit_code == as_json.exit_code == 0, table.output
    content = json.loads(as_json.stdout)
    assert (content["schema"], content["kind"], content["findings"]) == (1, "doctor", [])
    assert content["packages"]["numpy"] in table.stdout
    assert content["cores"]["available"] >= 1
    assert content["runtimes"]["onnxruntime"]["title"] == "ONNX Runtime"
    assert "ONNX Runtime" in table.stdout
    assert "provider: works" in table.stdout
    assert "No problems found" in table.stdout


@pytest.mark.usefixtures("installed")
def test_doctor_shows_nodes_by_provider(
    stock_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider", "QNNExecutionProvider"]
    replies = {
        "'cuda'": ({"CUDAExecutionProvider": 3, "CPUExecutionProvider": 1}, None),
        "'qnn'": ({}, "QNNExecutionProvider did not take 2 of 3 compute nodes"),
    }

    def answer(script: str) -> tuple[object, str]:
        return next(reply for name, reply in replies.items() if name in script), ""

    monkeypatch.setattr(doctor, "list_providers", lambda: (providers, None))
    monkeypatch.setattr(doctor, "_run_probe", answer)
    environment = inspect_environment(bundle=stock_bundle)
    assert {(item.provider, item.problem) for item in environment.placements} == {
        ("CUDAExecutionProvider", None),
        ("QNNExecutionProvider", "QNNExecutionProvider did not take 2 of 3 compute nodes"),
    }
    result = CliRunner().invoke(create_app(), ["doctor", str(stock_bundle)])
    assert "fp32 on CUDA  4 nodes: CUDA 75.0%, CPU 25.0%" in result.output
    assert "fp32 on QNN  QNNExecutionProvider did not take 2 of 3 compute nodes" in result.output


@pytest.mark.usefixtures("installed")
def test_doctor_says_if_all_nodes_run_on_the_cpu(stock_bundle: Path) -> None:
    result = CliRunner().invoke(create_app(), ["doctor", str(stock_bundle)])
    assert "All nodes run on the CPU: no other provider starts here." in result.output


def test_count_nodes_reports_provider_that_is_not_installed(stock_bundle: Path) -> None:
    counts, problem = count_nodes(stock_bundle / "fp32.onnx", "qnn", "fp32")
    assert counts == {}
    assert "has no QNNExecutionProvider" in (problem or "")
