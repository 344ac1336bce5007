"""Command line of the GPU check.

Exit status: 0 if every step passed; 1 without a GPU, or if a step failed, timed out or was skipped;
2 for a usage error.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import edgetl
from tools.checks.gpu_check.report import write_report
from tools.checks.gpu_check.runner import StepResult, run_steps
from tools.checks.gpu_check.settings import BUILTIN, Settings
from tools.checks.gpu_check.steps import BUDGET_S, STEPS, choose_steps
from tools.checks.gpu_check.wheels import install_wheels, step_variables

REHEARSAL_SLACK = 6.0
"""Factor on every time limit of a rehearsal, which may run on two busy cores."""
_PRINT_GPU_NAME = (
    "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check and return the exit status."""
    options = _parser().parse_args(arguments)
    if options.list:
        print(_table())
        return 0
    try:
        steps = choose_steps(options.only.split(",") if options.only else None)
    except ValueError as error:
        _parser().error(str(error))
    slack = REHEARSAL_SLACK if options.rehearsal else 1.0
    steps = [replace(step, limit_s=slack * step.limit_s) for step in steps]
    deadline = time.monotonic() + slack * BUDGET_S
    # Exit through SystemExit, so that the running step's processes are killed too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="edgetl-gpu-check-") as scratch_name:
        scratch = Path(scratch_name)
        site = install_wheels(options.wheels, scratch / "site") if options.wheels else None
        variables = step_variables(scratch, site)
        device = "cpu (rehearsal)" if options.rehearsal else gpu_name(variables)
        if not device:
            print("No GPU found: PyTorch sees no CUDA device. Nothing was checked.")
            return 1
        output = options.output or _new_folder()
        (output / "logs").mkdir(parents=True, exist_ok=True)
        settings = Settings(
            folder=scratch,
            device="cpu" if options.rehearsal else "cuda",
            weights=_resolve_weights(options.weights),
            photos=options.photos.resolve() if options.photos else None,
        )
        settings.write(scratch / "settings.json")
        metadata = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "edgetl": edgetl.__version__,
            "device": device,
            "note": _note(options.rehearsal),
        }

        def report(results: Sequence[StepResult]) -> None:
            write_report(output, metadata, steps, results)
            if results:
                last = results[-1]
                reason = f": {last.reason}" if last.reason else ""
                print(f"{last.step.name}: {last.status}, {last.seconds:.1f} s{reason}", flush=True)

        settings_file = scratch / "settings.json"
        results = run_steps(steps, settings_file, output / "logs", deadline, variables, report)
    print(f"Results: {output / 'result.md'} and result.json.")
    return 0 if all(result.status == "passed" for result in results) else 1


def gpu_name(variables: Mapping[str, str]) -> str:
    """Return the name of the GPU that PyTorch sees in a new process; empty without a GPU.

    Args:
        variables: environment of the process.
    """
    command = [sys.executable, "-c", _PRINT_GPU_NAME]
    process = subprocess.run(command, env=dict(variables), capture_output=True, text=True)
    return process.stdout.strip().rpartition("\n")[2]


def _note(rehearsal: bool) -> str:
    if rehearsal:
        return "a rehearsal on the CPU with tiny sizes: it only tests the check's code"
    return "all figures were measured on the device named above"


def _resolve_weights(weights: str) -> str:
    if weights == BUILTIN:
        return weights
    path = Path(weights).resolve()
    if not path.is_file():
        sys.exit(f"--weights {weights}: file not found. Pass `builtin` or a weights file.")
    return str(path)


def _new_folder() -> Path:
    return Path("gpu-check") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def _table() -> str:
    lines = [f"{step.name:14}{step.limit_s:5g} s  {step.title}" for step in STEPS]
    return "\n".join([*lines, f"{'total':14}{sum(step.limit_s for step in STEPS):5g} s"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.checks.gpu_check",
        description="Validate edgetl on a machine with a GPU in under nine minutes.",
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="DIR", help="output folder (default: a new folder)")
    add("--list", action="store_true", help="list the steps with their time limits")
    add("--only", metavar="STEP,...", help="run only these steps and the steps they need")
    add("--photos", type=Path, metavar="DIR", help="class folders (default: generated photos)")
    add("--weights", default=BUILTIN, metavar="FILE", help="MobileNetV2 weights (default: builtin)")
    add("--wheels", type=Path, metavar="DIR", help="install the wheels in this folder first")
    add("--rehearsal", action="store_true", help="run every step on the CPU with tiny sizes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
