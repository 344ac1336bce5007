"""Turns of two programs, and the network for benchncnn."""

import sys

import pytest

from tools.benchmarks.runtime_tools import remove_other_outputs, run_in_turns

_PARAM = """7767517
5 6
Input                    in0                      0 1 pixels
InnerProduct             linear                   1 1 pixels value 0=5 1=1 2=640
Split                    split                    1 3 value logits first second
Softmax                  softmax                  1 1 first probabilities
Reduction                unknown                  1 1 second unknown_score 0=4
"""


def test_remove_other_outputs_ends_the_network_at_the_logits() -> None:
    lines = remove_other_outputs(_PARAM).splitlines()
    assert lines == ["7767517", "3 6", *_PARAM.splitlines()[2:5]]


_PROGRAM = """
import signal, time
stops = []
signal.signal(signal.SIGCONT, lambda *_: stops.append(1))
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    time.sleep(0.01)
print(len(stops))
"""


def _command(seconds: float) -> list[str]:
    return [sys.executable, "-c", _PROGRAM.format(seconds=seconds)]


def test_programs_take_turns() -> None:
    # A child of the process is stopped with it.
    parent = f"import subprocess; raise SystemExit(subprocess.run({_command(1)}).returncode)"
    [first, *_] = run_in_turns(_command(3), [sys.executable, "-c", parent], is_interrupted=True)
    assert int(first) >= 1


def test_a_turn_can_be_a_complete_run() -> None:
    outputs = run_in_turns(_command(1), _command(0.5), is_interrupted=False)
    assert len(outputs) >= 2
    assert set(outputs) == {"0\n"}


def test_a_command_that_fails_ends_the_comparison() -> None:
    with pytest.raises(SystemExit, match="no such file"):
        run_in_turns(
            [sys.executable, "-c", "raise SystemExit('no such file')"],
            _command(9),
            is_interrupted=True,
        )
