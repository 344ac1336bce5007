"""The pretraining itself: a classifier learns which generator an image came from; ended at any moment, it goes on as if it had not been."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgetl.core.config.finetune import Device, Precision
from edgetl.core.errors import RunError
from edgetl.core.files import write_text
from edgetl.train.common.precision import (
    ComputeConfig,
    choose_compute_config,
    keep_slow_kernels_in_float32,
    measure_step_ms,
)
from edgetl.train.engine.checkpoint import read_checkpoint, write_checkpoint
from edgetl.train.model.factory import build_adapted_model
from edgetl.train.model.torchvision_models import preprocessing_for
from tools.pretraining.augmentation import random_views
from tools.pretraining.prefetch import ImagePool, pool_name
from tools.pretraining.recipe import Recipe

_LOG_EVERY = 50
"""Steps from one line of the loss curve to the next."""
_LONGEST_STEP_S = 60.0
"""Of a step that took longer no more is counted: the process was stopped, or the machine slept."""


@dataclass(frozen=True)
class PretrainingResult:
    """What a training came to."""

    network: nn.Module
    """The averaged weights, float32, on the device of the training."""
    steps: int
    seconds: float
    """Over all sessions, without the time in which the process was stopped."""
    core_seconds: float
    """Processor time of the training process, over all sessions: less than cores times seconds where others used the machine."""
    device: str
    precision: str
    curve: list[dict[str, Any]]
    """loss.jsonl."""


def new_network(recipe: Recipe) -> nn.Module:
    """The architecture with a classification layer for the recipe's classes; as random as its seed makes it."""
    torch.manual_seed(recipe.seed)
    network = build_adapted_model(
        recipe.model, preprocessing_for(recipe.model, None).crop, recipe.classes.total, 0, 0.2, None
    ).model
    return network.to(memory_format=torch.channels_last)


def pretrain(
    recipe: Recipe,
    work: Path,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: int = 1,
    checkpoint_every_s: float = 60.0,
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> PretrainingResult:
    """Train by a recipe, or go on with what lies in `work`.

    Cross-entropy over the generators' classes, AdamW, a cosine. Every random number of a step is drawn from (seed, step), so none needs
    keeping.

    Args:
        work: for the checkpoint, the loss curve (loss.jsonl) and the pool of images.
        workers: processes that draw.

    Raises:
        RunError: `work` holds another recipe's training or a damaged one, or the loss is no longer finite.
        ConfigError: a device or precision that is not there.
    """
    computing = choose_compute_config(device, precision)
    if computing.precision == "fp16":
        computing = replace(
            computing, precision="fp32"
        )  # its scaler would be one more state to keep, for GPUs of before 2020
    training = _Trainer(recipe, work, computing)
    resumed = training.resume()
    tell(
        f"{'Going on at' if resumed else 'Beginning'} step {training.step}, {recipe.classes.total} classes, {work}"
    )
    with ImagePool(work / pool_name(recipe), recipe, workers) as pool:
        if not resumed:
            training.choose_precision(pool)
        saved = time.monotonic()
        while training.progress < 1:
            training.advance(pool, tell)
            # Not when interrupted: that may be in the middle of a step.
            if time.monotonic() - saved >= checkpoint_every_s:
                training.save()
                saved = time.monotonic()
    training.save()
    return training.result()


class _Trainer:
    def __init__(self, recipe: Recipe, work: Path, computing: ComputeConfig) -> None:
        self._recipe, self._work, self._computing = recipe, work, computing
        self._arithmetic = dict.fromkeys(recipe.sides, computing)
        self._preprocessing = preprocessing_for(recipe.model, None)
        self._network = new_network(recipe).to(computing.device).train()
        averaging = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self._network, multi_avg_fn=averaging, use_buffers=True)
        if computing.device.type == "cpu":
            keep_slow_kernels_in_float32(self._network)
        parameters = list(self._network.parameters())
        groups = [
            {
                "params": [one for one in parameters if one.dim() > 1],
                "weight_decay": recipe.weight_decay,
            },
            {"params": [one for one in parameters if one.dim() <= 1], "weight_decay": 0.0},
        ]
        # A short memory of squared gradients: with the usual 0.999 a step that follows on a calm stretch is too long.
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99), fused=True)
        self._parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "network": self._network,
            "average": self._average,
            "optimiser": self._optimizer,
        }
        self.step, self.seconds, self._ticked = 0, 0.0, time.monotonic()
        self._cores_before, self._cores_began = 0.0, time.process_time()
        self._curve: list[dict[str, Any]] = []
        self._sums = torch.zeros(2, dtype=torch.float64, device=computing.device)

    @property
    def core_seconds(self) -> float:
        return self._cores_before + time.process_time() - self._cores_began

    @property
    def progress(self) -> float:
        return (
            self.step / self._recipe.steps
            if self._recipe.steps
            else self.seconds / self._recipe.budget_s
        )

    def resume(self) -> bool:
        path = self._work / "state.safetensors"
        if not path.exists():
            return False
        state = read_checkpoint(path)
        facts = state.metadata
        if facts["recipe"] != self._recipe.to_json():
            raise RunError(
                f"{self._work} holds a training by another recipe. Choose another --work folder, or remove it."
            )
        for name, part in self._parts.items():
            state.restore(name, part)
        self.step, self.seconds, self._curve = facts["step"], facts["seconds"], facts["curve"]
        self._cores_before = facts["core_seconds"]
        self._sums = torch.tensor(facts["sums"], dtype=torch.float64, device=self._computing.device)
        self._arithmetic = {
            int(side): replace(self._computing, precision=name)
            for side, name in facts["precision"].items()
        }
        self._write_curve()
        return True

    def save(self) -> None:
        facts = {
            "recipe": self._recipe.to_json(),
            "step": self.step,
            "seconds": self.seconds,
            "core_seconds": self.core_seconds,
            "precision": {
                side: computing.precision for side, computing in self._arithmetic.items()
            },
            "sums": self._sums.tolist(),
            "curve": self._curve,
        }
        write_checkpoint(self._work / "state.safetensors", self._parts, facts)

    def choose_precision(self, pool: ImagePool) -> None:
        """The arithmetic that is measured fastest here for each size of image, where it is open."""
        for side in self._arithmetic if self._computing.may_use_bf16 else ():
            values, labels = self._batch(pool, side)
            taken = measure_step_ms(
                self._network, self._network, (values,), labels, self._computing
            )
            self._arithmetic[side] = replace(
                self._computing, precision="bf16" if taken["bf16"] < taken["fp32"] else "fp32"
            )

    def advance(self, pool: ImagePool, tell: Callable[[str], None]) -> None:
        """One step."""
        now = time.monotonic()
        self.seconds, self._ticked = self.seconds + min(now - self._ticked, _LONGEST_STEP_S), now
        recipe, progress = self._recipe, min(1.0, self.progress)
        rate = (
            recipe.lr
            * min(1.0, (progress + 1e-3) / max(recipe.warmup, 1e-3))
            * 0.5
            * (1 + math.cos(math.pi * progress))
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        side = recipe.sides[min(len(recipe.sides) - 1, int(progress * len(recipe.sides)))]
        values, labels = self._batch(pool, side)
        torch.manual_seed(_key(recipe.seed, self.step, 5))  # dropout
        with self._arithmetic[side].autocast():
            logits = self._network(values)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.parameters(), recipe.clip_gradient)
        self._optimizer.step()
        self._average.update_parameters(self._network)
        self.step += 1
        self._sums += torch.stack(
            [loss.detach().double(), (logits.detach().argmax(1) == labels).double().mean()]
        )
        if self.step % _LOG_EVERY == 0 or self.step == recipe.steps:
            self._note(rate, side, tell)

    def _batch(self, pool: ImagePool, side: int) -> tuple[Tensor, Tensor]:
        images, labels = pool.batch(self.step)
        generator = torch.Generator().manual_seed(_key(self._recipe.seed, self.step, 4))
        moved = torch.from_numpy(images).to(self._computing.device)
        views = random_views(moved, side, self._recipe.least_crop, self._preprocessing, generator)
        return views, torch.from_numpy(labels).to(self._computing.device)

    def _note(self, rate: float, side: int, tell: Callable[[str], None]) -> None:
        since = self.step - (self._curve[-1]["step"] if self._curve else 0)
        loss, accuracy = (self._sums / since).tolist()
        self._sums.zero_()
        if not math.isfinite(loss):
            raise RunError(
                f"The loss is not finite at step {self.step}. Take a lower lr in the recipe, and another --work folder."
            )
        before = self._curve[-1]["seconds"] if self._curve else 0.0
        speed = since * self._recipe.batch_size / max(1e-9, self.seconds - before)
        line = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "loss": loss,
            "accuracy": accuracy,
            "lr": rate,
            "side": side,
        }
        self._curve.append({**line, "images_per_second": round(speed, 1)})
        self._write_curve(append=True)
        done = f"{100 * min(1.0, self.progress):.1f}%"
        tell(
            f"{done} step {self.step}, loss {loss:.3f}, accuracy {accuracy:.3f}, {side} px, {speed:.0f} images/s, {self.seconds:.0f} s"
        )

    def _write_curve(self, append: bool = False) -> None:
        path = self._work / "loss.jsonl"
        if append:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(self._curve[-1]) + "\n")
        else:
            write_text(path, "".join(json.dumps(line) + "\n" for line in self._curve))

    def result(self) -> PretrainingResult:
        network: nn.Module = self._average.module
        used = " and ".join(
            dict.fromkeys(computing.precision for computing in self._arithmetic.values())
        )
        return PretrainingResult(
            network.eval(),
            self.step,
            self.seconds,
            self.core_seconds,
            self._computing.device_name,
            used,
            self._curve,
        )


def _key(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
