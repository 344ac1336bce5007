"""Mutated files of pretrained weights: bytes, and the names, types and layouts of tensors."""

from __future__ import annotations

import random
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgetl.train.model.stock_models import build_model
from edgetl.train.model.weights import load_pretrained_weights, read_weights
from tools.checks.fuzz.mutation import VALUES
from tools.checks.fuzz.target import Target, mutate_file

_NAME = "squeezenet1_1"
_CHANGES = (
    lambda tensor: tensor.to("meta"),
    lambda tensor: tensor.to_sparse(),
    lambda tensor: tensor.flatten()[:1].expand(10**10),
    lambda tensor: tensor.to(torch.int8),
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor.half(),
    lambda tensor: tensor.double(),
    lambda tensor: tensor.to(torch.float8_e5m2),
    lambda tensor: tensor > 0,
    lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    lambda tensor: tensor[..., :0],
    lambda tensor: tensor * float("nan"),
    lambda tensor: tensor.reshape(-1),
    lambda tensor: nn.Parameter(tensor),
    lambda tensor: [tensor],
)  # fmt: skip


@cache
def _model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(_NAME, 224)


def prepare(folder: Path) -> None:
    """Write the same weights in every format."""
    state = _model().state_dict()
    torch.save(state, folder / "weights.pth")
    torch.save(state, folder / "weights.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "weights.safetensors")


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Write one mutated file."""
    names = ["weights.pth", "weights.pth", "weights.pt", "weights.safetensors"]
    path = case / generator.choice(names)
    if generator.random() < 0.5 or path.suffix == ".safetensors":
        path.write_bytes((originals / path.name).read_bytes())
        _mutate_ends(path, generator)
    else:
        state = _mutate_state(generator)
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix == ".pth")
    if path.suffix == ".pth" and generator.random() < 0.1:
        # The earlier mutation may have damaged the archive.
        with suppress(zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
            _compress_with_bomb(path)


def _mutate_ends(path: Path, generator: random.Random) -> None:
    """Mutate the first or the last bytes of a file, where headers and pickles are.

    Over 90% of the bytes are numbers, where a change is harmless.
    """
    content = path.read_bytes()
    size = min(len(content), 20_000)
    if generator.random() < 0.5:
        path.write_bytes(content[:size])
        mutate_file(path, generator)
        path.write_bytes(path.read_bytes() + content[size:])
    else:
        path.write_bytes(content[-size:])
        mutate_file(path, generator)
        path.write_bytes(content[:-size] + path.read_bytes())


def _mutate_state(generator: random.Random) -> Any:
    state: dict[Any, Any] = dict(_model().state_dict())
    for _ in range(generator.randint(1, 3)):
        name = generator.choice(list(state))
        match generator.randrange(5):
            case 0:
                state[generator.choice([3, None, ("a",), "", "module.x"])] = state.pop(name)
            case 1:
                state[name] = generator.choice(VALUES)
            case _ if isinstance(state[name], Tensor):
                # The layout after a first change may not support the second one.
                with suppress(RuntimeError, NotImplementedError):
                    state[name] = generator.choice(_CHANGES)(state[name])
            case _:
                state[name] = torch.zeros(2)
    wrapped = [{"state_dict": state}, {"model": [state]}, [state]]
    return generator.choice([state, state, state, *wrapped, 3])


def _compress_with_bomb(path: Path) -> None:
    """Compress the archive and add 200 MiB of zeros."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr("weights/data/bomb", bytes(200 * 2**20))


def use(case: Path) -> None:
    """Read the weights and load them into a model."""
    (path,) = case.iterdir()
    weights = read_weights(str(path), _NAME)
    assert weights is not None
    load_pretrained_weights(_model(), weights, _NAME)


TARGET = Target(prepare, make_case, use)
