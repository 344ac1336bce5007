"""From a pretrained network to the folder that ships: BatchNorm's statistics, fp16 weights without the head, recipe, card, checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgetl.core.builtin_weights import CARD_FILE, RECIPE_FILE, WEIGHTS_FILE, write_checksums
from edgetl.core.errors import ConfigError
from edgetl.core.files import atomic_path, read_json, write_json, write_text
from edgetl.train.model.torchvision_models import get_architecture, preprocessing_for
from edgetl.train.results import package_versions
from tools.pretraining.augmentation import normalize
from tools.pretraining.card import card
from tools.pretraining.recipe import Recipe, write_recipe
from tools.pretraining.training import PretrainingResult

RESULTS = "results.json"
_BATCH = 32
_UNSEEN = 10**9
"""First number of images that no training has seen."""


def write_release(folder: Path, recipe: Recipe, pretrained: PretrainingResult) -> dict[str, Any]:
    """Write the folder of a backbone; returns what results.json holds.

    Args:
        folder: `models/<architecture>-builtin`, or anywhere else.
    """
    network = pretrained.network.to("cpu").float().eval()
    update_batch_norm(network, recipe)
    own_side = preprocessing_for(recipe.model, None).crop
    results = {
        "model": recipe.model,
        "steps": pretrained.steps,
        "images_seen": pretrained.steps * recipe.batch_size,
        "images_drawn": recipe.shard_images
        * (
            recipe.first_shards
            + pretrained.steps * recipe.batch_size // (recipe.shard_images * recipe.reuse)
        ),
        "classes": recipe.classes.total,
        "seconds": round(pretrained.seconds, 1),
        "core_seconds": round(pretrained.core_seconds, 1),
        "device": pretrained.device,
        "precision": pretrained.precision,
        "versions": package_versions(),
        "unseen_accuracy": {
            str(side): round(unseen_accuracy(network, recipe, side), 4)
            for side in (recipe.sides[-1], own_side)
        },
        "curve": thin_curve(pretrained.curve),
        "worth": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = release_tensors(network, get_architecture(recipe.model).head)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary, {"model": recipe.model})
    write_recipe(folder / RECIPE_FILE, recipe, pretrained.steps)
    write_json(folder / RESULTS, results)
    write_card(folder)
    return results


def write_card(folder: Path, **more: Any) -> None:
    """Write card.md anew from recipe and results, with `more` among the results, and the checksums with it.

    Raises:
        ConfigError: the folder is no backbone's.
    """
    results = {**read_json(folder / RESULTS, ConfigError, "The backbone's results"), **more}
    write_json(folder / RESULTS, results)
    write_text(
        folder / CARD_FILE,
        card(
            results,
            (folder / RECIPE_FILE).read_text(encoding="utf-8"),
            (folder / WEIGHTS_FILE).stat().st_size,
        ),
    )
    write_checksums(folder)


def release_tensors(network: nn.Module, head: str) -> dict[str, Tensor]:
    """Matrices and kernels in fp16, vectors in float32, without the classification layer at `head` and without counters.

    Statistics of BatchNorm spread over more powers of ten than fp16 has, and all vectors together are a hundredth of the file.
    """
    kept = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.startswith(f"{head}.") and tensor.is_floating_point()
    }
    return {
        name: (tensor.half() if tensor.dim() > 1 else tensor.float()).contiguous()
        for name, tensor in kept.items()
    }


@torch.no_grad()
def update_batch_norm(network: nn.Module, recipe: Recipe) -> None:
    """BatchNorm's statistics as plain averages over generated images at the size that fine-tuning uses.

    Training saw small images; what a layer gives depends on their size (Touvron et al., 2019, arXiv:1906.06423).
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for values, _ in _unseen_batches(
        recipe, preprocessing_for(recipe.model, None).crop, recipe.statistics_images, _UNSEEN
    ):
        network(values)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def unseen_accuracy(network: nn.Module, recipe: Recipe, side: int) -> float:
    """Share of new images of the generators that are told right, at this size of input."""
    right = count = 0
    for values, labels in _unseen_batches(recipe, side, recipe.statistics_images, 2 * _UNSEEN):
        right += int((network(values).argmax(1) == labels).sum())
        count += len(labels)
    return right / count


def _unseen_batches(recipe: Recipe, side: int, count: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    preprocessing = preprocessing_for(recipe.model, None)
    chosen = np.random.default_rng([recipe.seed, first]).integers(0, recipe.classes.total, count)
    for start in range(0, count, _BATCH):
        labels = chosen[start : start + _BATCH]
        images = np.stack(
            [
                recipe.classes.draw(int(label), first + start + at, side)
                for at, label in enumerate(labels)
            ]
        )
        yield (
            normalize(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, preprocessing),
            torch.from_numpy(labels),
        )


def thin_curve(curve: Sequence[Mapping[str, Any]], points: int = 40) -> list[dict[str, Any]]:
    """About so many lines of a loss curve, evenly, its last one among them."""
    step = max(1, len(curve) // points)
    kept = [*curve[:-1][::step], *curve[-1:]]
    return [
        {
            name: round(value, 5) if isinstance(value, float) else value
            for name, value in line.items()
        }
        for line in kept
    ]
