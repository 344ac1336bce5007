"""Mutated files of pretrained weights: bytes, names, types and layouts of tensors."""

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

from edgetl.train.model.torchvision_models import build_model
from edgetl.train.model.weights import load_weights, read_weights
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
def _network() -> nn.Module:
    torch.manual_seed(0)
    return build_model(_NAME, 224)


def prepare(folder: Path) -> None:
    """Write the same weights in every format."""
    state = _network().state_dict()
    torch.save(state, folder / "weights.pth")
    torch.save(state, folder / "weights.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "weights.safetensors")


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Write one mutated file."""
    path = case / generator.choice(
        ["weights.pth", "weights.pth", "weights.pt", "weights.safetensors"]
    )
    if generator.random() < 0.5 or path.suffix == ".safetensors":
        path.write_bytes((originals / path.name).read_bytes())
        _mutate_head(path, generator)
    else:
        torch.save(
            _mutated_state(generator), path, _use_new_zipfile_serialization=path.suffix == ".pth"
        )
    if path.suffix == ".pth" and generator.random() < 0.1:
        with suppress(
            zipfile.BadZipFile, NotImplementedError, OSError, ValueError
        ):  # damaged already
            _deflate(path)


def _mutate_head(path: Path, generator: random.Random) -> None:
    # Nine tenths of the bytes are numbers, where a change is harmless: a header or a pickle is aimed at instead.
    content = path.read_bytes()
    size = min(len(content), 20_000)
    first = generator.random() < 0.5
    head, rest = (content[:size], content[size:]) if first else (content[-size:], content[:-size])
    path.write_bytes(head)
    mutate_file(path, generator)
    mutated = path.read_bytes()
    path.write_bytes(mutated + rest if first else rest + mutated)


def _mutated_state(generator: random.Random) -> Any:
    state: dict[Any, Any] = dict(_network().state_dict())
    for _ in range(generator.randint(1, 3)):
        name = generator.choice(list(state))
        match generator.randrange(5):
            case 0:
                state[generator.choice([3, None, ("a",), "", "module.x"])] = state.pop(name)
            case 1:
                state[name] = generator.choice(VALUES)
            case _ if isinstance(state[name], Tensor):
                try:
                    state[name] = generator.choice(_CHANGES)(state[name])
                except (
                    RuntimeError,
                    NotImplementedError,
                ):  # a second change that the first one's layout does not know
                    continue
            case _:
                state[name] = torch.zeros(2)
    return generator.choice(
        [state, state, state, {"state_dict": state}, {"model": [state]}, [state], 3]
    )


def _deflate(path: Path) -> None:
    with zipfile.ZipFile(path) as plain:
        entries = {entry.filename: plain.read(entry) for entry in plain.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
        packed.writestr("weights/data/bomb", bytes(200 * 2**20))


def use(case: Path) -> None:
    """Read it, and copy it into a network."""
    (path,) = case.iterdir()
    weights = read_weights(str(path), _NAME)
    assert weights is not None
    load_weights(_network(), weights, _NAME)


TARGET = Target(prepare, make_case, use)
