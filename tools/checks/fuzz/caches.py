"""Mutated cache files: remembered measurements and activations, which are made again where they are not what was written."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from edgetl.train.common.autotune import cached_measurement
from edgetl.train.features.store import FeatureStore, TensorSpec
from tools.checks.fuzz.target import Target, copy_originals, mutate_file, mutate_json_file

_KEY = "0" * 32
_FACTS = {"model": "mobilenet_v2", "choice of": ["a", "b"]}


def _measure() -> dict[str, Any]:
    return {"fast": "onnxruntime", "exact": "pytorch-fp32", "milliseconds": {"onnxruntime": 1.5}}


def _in_cache(folder: Path) -> dict[str, Any]:
    os.environ["EDGETL_CACHE"] = str(folder)
    return cached_measurement(_FACTS, _measure)


def prepare(folder: Path) -> None:
    """Write a measurement and an entry of activations."""
    _in_cache(folder)
    store = FeatureStore(folder / "activations", 2**30)
    with store.create(_KEY, [(2, 4)], [(3,)], [TensorSpec((5,), torch.float16)]) as made:
        for values in (*made.train, *made.val):
            values.fill_(1.0)


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Mutate one file."""
    copy_originals(originals, case)
    path = generator.choice(sorted(path for path in case.rglob("*") if path.is_file()))
    if path.suffix == ".json" and generator.random() < 0.8:
        mutate_json_file(path, generator)
    else:
        mutate_file(path, generator)


def use(case: Path) -> None:
    """Ask for both; what comes back is what was written."""
    assert _in_cache(case) == _measure()
    found = FeatureStore(case / "activations", 2**30).open(_KEY)
    if found is not None:
        assert [tuple(values.shape) for values in (*found.train, *found.val)] == [(2, 4, 5), (3, 5)]
        assert all(bool((values == 1).all()) for values in (*found.train, *found.val))
        shutil.rmtree(case / "activations", ignore_errors=True)


TARGET = Target(prepare, make_case, use)
