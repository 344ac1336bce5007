from __future__ import annotations

from dataclasses import replace

import pytest

from edgetl.core.artifacts.device import DeviceInfo, DeviceState
from edgetl.core.typed_json import FieldError, parse_as, to_json

BOARD = DeviceInfo(host="here", machine="aarch64", cpu="Cortex-A76", board="Raspberry Pi 5")


def test_description_is_most_specific_name() -> None:
    device = BOARD
    for name in ("board", "cpu", "machine", "host"):
        assert device.description == getattr(device, name)
        device = replace(device, **{name: None})
    assert replace(BOARD, board=None, cpu="").description == "aarch64"
    assert DeviceInfo().description == "unknown device"


@pytest.mark.parametrize("change", [{"host": "there"}, {"cores": 8}, {"memory_bytes": 2**30}])
def test_same_device_has_same_identity(change: dict[str, str | int]) -> None:
    later = replace(BOARD, python="3.13.1", packages={"numpy": "3"}, after=DeviceState(3.0))
    assert BOARD.is_same_device(later)
    assert not BOARD.is_same_device(replace(BOARD, **change))


def test_states_are_stored_only_where_measured() -> None:
    assert not {"before", "after", "energy"} & to_json(BOARD).keys()
    measured = replace(BOARD, before=DeviceState(1.0), after=DeviceState(3.0))
    assert parse_as(DeviceInfo, to_json(measured)) == measured


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cores": "4"}, "the device.cores must be an integer"),
        ({"before": {}}, "the device.before has no field 'monotonic_s'"),
        ({"before": {"monotonic_s": 1, "load": [1.0, 2.0]}}, "load must be a list of 3 values"),
        ({"color": "red"}, "unknown field 'color'"),
    ],
)
def test_wrong_field_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        parse_as(DeviceInfo, {**to_json(BOARD), **change}, "the device")
