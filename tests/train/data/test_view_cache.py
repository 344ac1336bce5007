"""Views that stay on the device are the loader's own, in the order asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgetl.train.data.loader import ViewKey, group_into_batches
from edgetl.train.data.view_cache import GpuViewCache

SIDE = 2
DEVICE = torch.device("cpu")


class CountingLoader:
    """Every view is told by its pixels; counts what was loaded."""

    def __init__(self) -> None:
        self.loaded: list[ViewKey] = []

    def __call__(self, batches: Sequence[Sequence[ViewKey]]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            self.loaded += batch
            pixels = torch.stack(
                [
                    torch.full((SIDE, SIDE, 3), 100 * (view or 0) + index, dtype=torch.uint8)
                    for view, index in batch
                ]
            )
            yield pixels, torch.tensor([index for _, index in batch])


def content(batches: Iterator[tuple[Tensor, Tensor]]) -> list[list[tuple[int, int]]]:
    return [
        list(zip(pixels[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))
        for pixels, labels in batches
    ]


VALIDATION: list[ViewKey] = [(None, index) for index in range(10)]
TRAINING: list[ViewKey] = [(1, index) for index in range(10, 30)]
SIZE = SIDE * SIDE * 3


@pytest.mark.parametrize(("room", "loaded"), [(30, 30), (29, 50), (10, 50), (9, 60), (0, 60)])
def test_a_group_is_loaded_once_if_it_fits_as_a_whole(room: int, loaded: int) -> None:
    loader = CountingLoader()
    resident = GpuViewCache(loader, [VALIDATION, TRAINING], SIDE, DEVICE, room * SIZE)  # type: ignore[arg-type]
    for _ in range(2):
        list(resident.iter_eval_batches(range(10), 4))
        list(resident([TRAINING[:8], TRAINING[8:]]))
    assert len(loader.loaded) == loaded


@given(
    st.lists(
        st.lists(st.sampled_from([*VALIDATION, *TRAINING, (2, 3)]), min_size=1, max_size=6),
        max_size=8,
    ),
    st.integers(0, 31),
)
def test_batches_are_the_loader_s(batches: list[list[ViewKey]], room: int) -> None:
    resident = GpuViewCache(CountingLoader(), [VALIDATION, TRAINING], SIDE, DEVICE, room * SIZE)  # type: ignore[arg-type]
    for _ in range(2):
        assert content(resident(batches)) == content(CountingLoader()(batches))


def test_an_abandoned_pass_leaves_only_what_was_seen() -> None:
    loader = CountingLoader()
    resident = GpuViewCache(loader, [VALIDATION], SIDE, DEVICE, 10 * SIZE)  # type: ignore[arg-type]
    next(resident(group_into_batches(VALIDATION, 5)))
    assert content(resident(group_into_batches(VALIDATION, 5))) == content(
        CountingLoader()(group_into_batches(VALIDATION, 5))
    )
    assert loader.loaded == VALIDATION


def test_the_rows_of_a_pass_are_uploaded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = GpuViewCache(CountingLoader(), [VALIDATION], SIDE, DEVICE, 10 * SIZE)  # type: ignore[arg-type]
    created: list[int] = []
    original = torch.tensor

    def counted(content: list[int], **options: object) -> Tensor:
        created.append(len(content))
        return original(content, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("edgetl.train.data.loader.torch.tensor", counted)
    monkeypatch.setattr(
        CountingLoader, "__call__", lambda self, batches: iter(EXPECTED[: len(batches)])
    )
    for _ in range(2):
        list(resident(group_into_batches(VALIDATION, 3)))
    assert created == [10, 10]


EXPECTED = list(CountingLoader()(group_into_batches(VALIDATION, 3)))
