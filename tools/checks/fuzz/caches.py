"""Mutated cache files: measurements and features, which are recomputed if they are damaged."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import torch

from edgetl.train.common.autotune import cached_measurement
from edgetl.train.features.extractor import ExtractorChoice
from edgetl.train.features.store import FeatureStore, TensorSpec
from tools.checks.fuzz.target import Target, copy_originals, mutate_file, mutate_json_file

_KEY = "0" * 32
_FACTS = {"model": "mobilenet_v2", "choice of": ["a", "b"]}


def _measure() -> ExtractorChoice:
    return ExtractorChoice("onnxruntime", "pytorch-fp32", {"onnxruntime": 1.5})


def _cached_measurement(folder: Path) -> ExtractorChoice:
    os.environ["EDGETL_CACHE"] = str(folder)
    return cached_measurement(ExtractorChoice, _FACTS, _measure)


def prepare(folder: Path) -> None:
    """Write a measurement and an entry of features."""
    _cached_measurement(folder)
    store = FeatureStore(folder / "activations", 2**30)
    with store.create(_KEY, [(2, 4)], [(3,)], [TensorSpec((5,), torch.float16)]) as features:
        for tensor in (*features.train, *features.val):
            tensor.fill_(1.0)


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Mutate one file."""
    copy_originals(originals, case)
    path = generator.choice(sorted(path for path in case.rglob("*") if path.is_file()))
    if path.suffix == ".json" and generator.random() < 0.8:
        mutate_json_file(path, generator)
    else:
        mutate_file(path, generator)


def use(case: Path) -> None:
    """Read both. The result is valid, or the features are missing."""
    assert _cached_measurement(case) == _measure()
    features = FeatureStore(case / "activations", 2**30).open(_KEY)
    if features is not None:
        tensors = (*features.train, *features.val)
        assert [tuple(tensor.shape) for tensor in tensors] == [(2, 4, 5), (3, 5)]
        assert all(bool((tensor == 1).all()) for tensor in tensors)
        shutil.rmtree(case / "activations", ignore_errors=True)


TARGET = Target(prepare, make_case, use)
