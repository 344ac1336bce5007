"""The command line of the check.

Exit status: 0, every step passed; 1, no GPU, or a step failed, was late or was skipped; 2, usage.
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
from tools.checks.gpu_check.runner import Outcome, run_steps
from tools.checks.gpu_check.settings import BUILTIN, Settings
from tools.checks.gpu_check.steps import BUDGET_S, STEPS, choose_steps
from tools.checks.gpu_check.wheels import install_wheels, step_variables

REHEARSAL_SLACK = 6.0
"""Factor on every limit: a rehearsal may run on two busy cores."""
_GPU_NAME = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check."""
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
    # What ends this process must end the step's processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="edgetl-gpu-check-") as name:
        scratch = Path(name)
        site = install_wheels(options.wheels, scratch / "site") if options.wheels else None
        variables = step_variables(scratch, site)
        device = "cpu (rehearsal)" if options.rehearsal else gpu_name(variables)
        if not device:
            print("There is no GPU here: PyTorch sees no CUDA device, so nothing was checked.")
            return 1
        output = options.output or _new_folder()
        (output / "logs").mkdir(parents=True, exist_ok=True)
        settings = Settings(
            folder=scratch,
            device="cpu" if options.rehearsal else "cuda",
            weights=options.weights if options.weights == BUILTIN else _existing(options.weights),
            photos=options.photos.resolve() if options.photos else None,
        )
        settings.write(scratch / "settings.json")
        facts = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "edgetl": edgetl.__version__,
            "device": device,
            "note": _note(options.rehearsal),
        }

        def report(outcomes: Sequence[Outcome]) -> None:
            write_report(output, facts, steps, outcomes)
            if outcomes:
                last = outcomes[-1]
                reason = f": {last.reason}" if last.reason else ""
                print(f"{last.step.name}: {last.status}, {last.seconds:.1f} s{reason}", flush=True)

        settings_file, logs = scratch / "settings.json", output / "logs"
        outcomes = run_steps(steps, settings_file, logs, deadline, variables, report)
    print(f"{output / 'result.md'} and result.json hold the figures.")
    return 0 if all(outcome.status == "passed" for outcome in outcomes) else 1


def gpu_name(variables: Mapping[str, str]) -> str:
    """The name of the GPU that PyTorch sees in a process with these variables; empty without one."""
    command = [sys.executable, "-c", _GPU_NAME]
    done = subprocess.run(command, env=dict(variables), capture_output=True, text=True)
    return done.stdout.strip().rpartition("\n")[2]


def _note(rehearsal: bool) -> str:
    if rehearsal:
        return "a rehearsal on the CPU with tiny sizes: it runs the check's code, no figure counts"
    return "every figure was measured on the device named here"


def _existing(weights: str) -> str:
    path = Path(weights).resolve()
    if not path.is_file():
        sys.exit(f"--weights {weights}: no such file. Give `builtin` or a weights file.")
    return str(path)


def _new_folder() -> Path:
    return Path("gpu-check") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def _table() -> str:
    lines = [f"{step.name:14}{step.limit_s:5g} s  {step.title}" for step in STEPS]
    return "\n".join([*lines, f"{'total':14}{sum(step.limit_s for step in STEPS):5g} s"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.checks.gpu_check",
        description="Prove edgetl on a machine with a GPU, in under nine minutes.",
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="DIR", help="where results go (a new folder)")
    add("--list", action="store_true", help="show the steps with their limits")
    add("--only", metavar="STEP,...", help="these steps, with those they need")
    add("--photos", type=Path, metavar="DIR", help="a folder of class folders (generated photos)")
    add("--weights", default=BUILTIN, metavar="FILE", help="weights of MobileNetV2 (builtin)")
    add("--wheels", type=Path, metavar="DIR", help="install these wheels for the steps first")
    add("--rehearsal", action="store_true", help="run every step on the CPU with tiny sizes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
