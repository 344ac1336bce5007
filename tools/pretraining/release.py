"""Release folder of a pretrained model: fp16 weights without the head, recipe, card, checksums."""

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
from edgetl.train.model.stock_models import get_architecture, preprocessing_for
from edgetl.train.results import package_versions
from tools.pretraining.augmentation import normalize
from tools.pretraining.card import render_card
from tools.pretraining.recipe import Recipe, write_recipe
from tools.pretraining.training import PretrainingResult

RESULTS = "results.json"
_BATCH = 32
_UNSEEN = 10**9
"""First number of the images that no training uses."""


def write_release(folder: Path, recipe: Recipe, pretrained: PretrainingResult) -> dict[str, Any]:
    """Write the release folder of a backbone and return the content of results.json.

    Args:
        folder: `models/<architecture>-builtin`, or any other folder.
        recipe: recipe of the pretraining.
        pretrained: result of the pretraining.
    """
    model = pretrained.model.to("cpu").float().eval()
    update_batch_norm(model, recipe)
    default_side = preprocessing_for(recipe.model, None).crop
    images_seen = pretrained.steps * recipe.batch_size
    shards_drawn = recipe.first_shards + images_seen // (recipe.shard_images * recipe.reuse)
    results = {
        "model": recipe.model,
        "steps": pretrained.steps,
        "images_seen": images_seen,
        "images_drawn": recipe.shard_images * shards_drawn,
        "classes": recipe.classes.total,
        "seconds": round(pretrained.seconds, 1),
        "core_seconds": round(pretrained.core_seconds, 1),
        "device": pretrained.device,
        "precision": pretrained.precision,
        "versions": package_versions(),
        "unseen_accuracy": {
            str(side): round(unseen_accuracy(model, recipe, side), 4)
            for side in (recipe.sides[-1], default_side)
        },
        "curve": thin_curve(pretrained.curve),
        "worth": {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = release_tensors(model, get_architecture(recipe.model).head)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary, {"model": recipe.model})
    write_recipe(folder / RECIPE_FILE, recipe, pretrained.steps)
    write_json(folder / RESULTS, results)
    write_card(folder)
    return results


def write_card(folder: Path, **more: Any) -> None:
    """Write card.md from the recipe and the results, and update the checksums.

    Args:
        folder: release folder.
        more: values to add to the results.

    Raises:
        ConfigError: the folder has no valid results.json.
    """
    results = {**read_json(folder / RESULTS, ConfigError, "The backbone's results"), **more}
    write_json(folder / RESULTS, results)
    recipe_text = (folder / RECIPE_FILE).read_text(encoding="utf-8")
    weights_bytes = (folder / WEIGHTS_FILE).stat().st_size
    write_text(folder / CARD_FILE, render_card(results, recipe_text, weights_bytes))
    write_checksums(folder)


def release_tensors(model: nn.Module, head: str) -> dict[str, Tensor]:
    """Return the weights to release, without the classification layer `head` and without counters.

    Matrices and kernels are fp16. Vectors are float32: BatchNorm statistics exceed the range of
    fp16, and all vectors together take only 1% of the file.
    """
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(f"{head}.") and tensor.is_floating_point()
    }
    return {
        name: (tensor.half() if tensor.dim() > 1 else tensor.float()).contiguous()
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def update_batch_norm(model: nn.Module, recipe: Recipe) -> None:
    """Recompute the BatchNorm statistics as plain averages over images of the fine-tuning size.

    Pretraining uses smaller images, and activations depend on the image size (Touvron et al., 2019,
    arXiv:1906.06423).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    side = preprocessing_for(recipe.model, None).crop
    for values, _ in _unseen_batches(recipe, side, recipe.statistics_images, _UNSEEN):
        model(values)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def unseen_accuracy(model: nn.Module, recipe: Recipe, side: int) -> float:
    """Return the top-1 accuracy on new generated images of this side, in [0, 1]."""
    correct = count = 0
    for values, labels in _unseen_batches(recipe, side, recipe.statistics_images, 2 * _UNSEEN):
        correct += int((model(values).argmax(1) == labels).sum())
        count += len(labels)
    return correct / count


def _unseen_batches(
    recipe: Recipe, side: int, count: int, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    preprocessing = preprocessing_for(recipe.model, None)
    generator = np.random.default_rng([recipe.seed, first])
    all_labels = generator.integers(0, recipe.classes.total, count)
    for start in range(0, count, _BATCH):
        labels = all_labels[start : start + _BATCH]
        images = [
            recipe.classes.draw(int(label), first + start + index, side)
            for index, label in enumerate(labels)
        ]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        yield normalize(pixels, preprocessing), torch.from_numpy(labels)


def thin_curve(curve: Sequence[Mapping[str, Any]], points: int = 40) -> list[dict[str, Any]]:
    """Return about `points` evenly spaced lines of a loss curve, including the last one."""
    step = max(1, len(curve) // points)
    lines = [*curve[:-1][::step], *curve[-1:]]
    return [
        {
            name: round(value, 5) if isinstance(value, float) else value
            for name, value in line.items()
        }
        for line in lines
    ]
