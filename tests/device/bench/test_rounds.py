"""Tests of measurements that stop early."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.core.errors import BenchError, ProviderError
from edgetl.device.bench.rounds import RoundRunner
from edgetl.device.hardware.state import read_device_state
from tests.core.artifacts.test_bench import block

DISK_FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("cause", "error_type", "message"),
    [
        (
            KeyboardInterrupt(),
            KeyboardInterrupt,
            "before anything was measured: no result was written",
        ),
        (DISK_FULL, BenchError, "Nothing could be measured.*No space left"),
        (ProviderError("no such device"), ProviderError, "no such device"),
    ],
)
def test_stop_without_rounds_raises_cause(
    cause: BaseException, error_type: type[BaseException], message: str
) -> None:
    with pytest.raises(error_type, match=message), RoundRunner().capture_stop():
        raise cause


@pytest.mark.parametrize(
    ("cause", "error_type", "message"),
    [
        (
            KeyboardInterrupt(),
            KeyboardInterrupt,
            r"^Interrupted: 1 of 2 rows were timed, see partial\.json\. A note\.$",
        ),
        (
            BenchError("It died."),
            BenchError,
            r"^It died\. 1 of 2 rows were timed, see partial\.json\. A note\.$",
        ),
        (DISK_FULL, BenchError, "No space left"),
    ],
)
def test_stop_reports_where_completed_rounds_are(
    cause: BaseException, error_type: type[BaseException], message: str
) -> None:
    runner = RoundRunner()
    runner.rounds_by_row["row"] = [block(1000)]
    with runner.capture_stop():
        raise cause
    assert runner.stop_cause is cause
    with pytest.raises(error_type, match=message):
        runner.raise_if_stopped(2, Path("partial.json"), ["A note."])
    with pytest.raises(error_type) as raised:
        runner.raise_if_stopped(1, None, ["There is no space: the result was NOT written."])
    assert str(raised.value).endswith("NOT written.")
    assert "None" not in str(raised.value)


def test_noise_reasons_use_names_of_rows() -> None:
    runner = RoundRunner()
    runner.rounds_by_row["id"] = [block(1_000_000), block(2_000_000)]
    runner.device_states = (read_device_state(), read_device_state())
    for names, name in ((None, "id"), ({"id": "resnet18"}, "resnet18"), ({"other": "x"}, "id")):
        reasons = runner.evaluate_noise(names).reasons
        assert f"the rounds of {name} differ by 67%" in reasons


def test_complete_run_without_timed_rows_raises_nothing() -> None:
    runner = RoundRunner()
    with runner.capture_stop():
        pass
    runner.raise_if_stopped(1, None, [])
    assert not runner.evaluate_noise().is_noisy
