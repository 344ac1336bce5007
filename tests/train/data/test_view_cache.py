"""GPU view cache: the batches are equal to those of the wrapped loader."""

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
    """Loader whose pixels identify the view; it records the loaded keys."""

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


def batch_contents(batches: Iterator[tuple[Tensor, Tensor]]) -> list[list[tuple[int, int]]]:
    return [
        list(zip(pixels[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))
        for pixels, labels in batches
    ]


VALIDATION: list[ViewKey] = [(None, index) for index in range(10)]
TRAINING: list[ViewKey] = [(1, index) for index in range(10, 30)]
SIZE = SIDE * SIDE * 3


@pytest.mark.parametrize(("capacity", "loaded"), [(30, 30), (29, 50), (10, 50), (9, 60), (0, 60)])
def test_group_is_loaded_once_when_it_fits(capacity: int, loaded: int) -> None:
    loader = CountingLoader()
    cached_loader = GpuViewCache(loader, [VALIDATION, TRAINING], SIDE, DEVICE, capacity * SIZE)  # type: ignore[arg-type]
    for _ in range(2):
        list(cached_loader.iter_eval_batches(range(10), 4))
        list(cached_loader([TRAINING[:8], TRAINING[8:]]))
    assert len(loader.loaded) == loaded


@given(
    st.lists(
        st.lists(st.sampled_from([*VALIDATION, *TRAINING, (2, 3)]), min_size=1, max_size=6),
        max_size=8,
    ),
    st.integers(0, 31),
)
def test_batches_equal_those_of_the_loader(batches: list[list[ViewKey]], capacity: int) -> None:
    cached_loader = GpuViewCache(
        CountingLoader(), [VALIDATION, TRAINING], SIDE, DEVICE, capacity * SIZE
    )  # type: ignore[arg-type]
    for _ in range(2):
        assert batch_contents(cached_loader(batches)) == batch_contents(CountingLoader()(batches))


def test_abandoned_epoch_caches_only_loaded_views() -> None:
    loader = CountingLoader()
    cached_loader = GpuViewCache(loader, [VALIDATION], SIDE, DEVICE, 10 * SIZE)  # type: ignore[arg-type]
    next(cached_loader(group_into_batches(VALIDATION, 5)))
    assert batch_contents(cached_loader(group_into_batches(VALIDATION, 5))) == batch_contents(
        CountingLoader()(group_into_batches(VALIDATION, 5))
    )
    assert loader.loaded == VALIDATION


def test_rows_are_uploaded_once_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_loader = GpuViewCache(CountingLoader(), [VALIDATION], SIDE, DEVICE, 10 * SIZE)  # type: ignore[arg-type]
    created: list[int] = []
    original = torch.tensor

    def count_tensor(content: list[int], **options: object) -> Tensor:
        created.append(len(content))
        return original(content, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("edgetl.train.data.loader.torch.tensor", count_tensor)
    monkeypatch.setattr(
        CountingLoader, "__call__", lambda self, batches: iter(EXPECTED[: len(batches)])
    )
    for _ in range(2):
        list(cached_loader(group_into_batches(VALIDATION, 3)))
    assert created == [10, 10]


EXPECTED = list(CountingLoader()(group_into_batches(VALIDATION, 3)))
