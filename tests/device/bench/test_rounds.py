"""What becomes of a measurement that something ends early."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.core.errors import BenchError, ProviderError
from edgetl.device.bench.rounds import BenchRunner
from tests.core.artifacts.test_bench import block

DISK = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, "before anything was measured: nothing was kept"),
        (DISK, BenchError, "Nothing could be measured.*No space left"),
        (ProviderError("no such device"), ProviderError, "no such device"),
    ],
)
def test_without_figures_the_cause_is_told(
    cause: BaseException, kind: type[BaseException], message: str
) -> None:
    with pytest.raises(kind, match=message), BenchRunner().capture_stop():
        raise cause


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (
            KeyboardInterrupt(),
            KeyboardInterrupt,
            r"^Interrupted: 1 of 2 rows have figures, kept in kept\.json\. A note\.$",
        ),
        (
            BenchError("It died."),
            BenchError,
            r"^It died\. 1 of 2 rows have figures, kept in kept\.json\. A note\.$",
        ),
        (DISK, BenchError, "No space left"),
    ],
)
def test_figures_outlive_what_ended_their_measurement(
    cause: BaseException, kind: type[BaseException], message: str
) -> None:
    campaign = BenchRunner()
    campaign.round_runner.rounds_by_row["row"] = [block(1000)]
    with campaign.capture_stop():
        raise cause
    assert campaign.stop_cause is cause
    with pytest.raises(kind, match=message):
        campaign.raise_if_stopped(
            {"row": [block(1000)], "other": []}, Path("kept.json"), ["A note."]
        )
    with pytest.raises(kind) as raised:
        campaign.raise_if_stopped(
            {"row": [block(1000)]}, None, ["There is no space: the result was NOT kept."]
        )
    assert str(raised.value).endswith("NOT kept.")
    assert "None" not in str(raised.value)


def test_what_came_to_its_end_raises_nothing_and_what_was_not_timed_has_no_noise() -> None:
    campaign = BenchRunner()
    with campaign.capture_stop():
        pass
    campaign.raise_if_stopped({}, None, [])
    assert not campaign.evaluate_noise({"row": []}).is_noisy
