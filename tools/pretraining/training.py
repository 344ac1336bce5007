"""Pretraining: a classifier learns the generator class of an image.

An interrupted training continues as if it had not been interrupted.
"""

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
from edgetl.train.engine.checkpoint import (
    checkpoint_errors,
    load_optimizer_tensors,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)
from edgetl.train.model.factory import build_adapted_model
from edgetl.train.model.stock_models import preprocessing_for
from tools.pretraining.augmentation import random_views
from tools.pretraining.prefetch import ImagePool, pool_name
from tools.pretraining.recipe import Recipe

_LOG_EVERY = 50
"""Steps between two lines of the loss curve."""
_MAX_STEP_S = 60.0
"""Maximum time counted per step; if it takes longer, the process was stopped or suspended."""


@dataclass(frozen=True)
class PretrainingResult:
    """Result of a pretraining."""

    model: nn.Module
    """Model with the averaged weights, float32, on the training device."""
    steps: int
    seconds: float
    """Training time over all sessions, without the time in which the process was stopped."""
    core_seconds: float
    """CPU time of the training process over all sessions.

    It is less than cores times seconds if other programs used the machine.
    """
    device: str
    precision: str
    curve: list[dict[str, Any]]
    """Lines of loss.jsonl."""


def build_model(recipe: Recipe) -> nn.Module:
    """Build the model with a head for the recipe's classes and random weights from its seed."""
    torch.manual_seed(recipe.seed)
    side = preprocessing_for(recipe.model, None).crop
    adapted = build_adapted_model(recipe.model, side, recipe.classes.total, 0, 0.2, None)
    return adapted.model.to(memory_format=torch.channels_last)


def pretrain(
    recipe: Recipe,
    work: Path,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: int = 1,
    checkpoint_every_s: float = 60.0,
    log: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> PretrainingResult:
    """Train as the recipe says, or resume the training in `work`.

    Cross-entropy over the generators' classes, AdamW, and a cosine learning rate. All random
    numbers of a step are derived from (seed, step), so checkpoints need no generator state.

    Args:
        recipe: recipe of the training.
        work: folder of the checkpoint, the loss curve (loss.jsonl) and the image pool.
        device: `auto`, `cpu` or `cuda`.
        precision: `auto`, `fp32` or `bf16`.
        workers: number of processes that draw images.
        checkpoint_every_s: time between two checkpoints.
        log: function called with each line of progress.

    Raises:
        RunError: the checkpoint is damaged or of another recipe, or the loss is not finite.
        ConfigError: the device or the precision is not available.
    """
    compute_config = choose_compute_config(device, precision)
    if compute_config.precision == "fp16":
        # fp16 would need the state of a loss scaler, and is only faster on GPUs from before 2020.
        compute_config = replace(compute_config, precision="fp32")
    trainer = _Trainer(recipe, work, compute_config)
    resumed = trainer.resume()
    action = "Resuming" if resumed else "Starting"
    log(f"{action} at step {trainer.step}, {recipe.classes.total} classes, {work}")
    with ImagePool(work / pool_name(recipe), recipe, workers) as pool:
        if not resumed:
            trainer.choose_precision(pool)
        saved_s = time.monotonic()
        while trainer.progress < 1:
            trainer.train_step(pool, log)
            # Save only between steps: an interrupt may come in the middle of one.
            if time.monotonic() - saved_s >= checkpoint_every_s:
                trainer.save()
                saved_s = time.monotonic()
    trainer.save()
    return trainer.result()


class _Trainer:
    def __init__(self, recipe: Recipe, work: Path, compute_config: ComputeConfig) -> None:
        self._recipe = recipe
        self._work = work
        self._compute_config = compute_config
        self._compute_config_by_side = dict.fromkeys(recipe.sides, compute_config)
        self._preprocessing = preprocessing_for(recipe.model, None)
        self._model = build_model(recipe).to(compute_config.device).train()
        averaging = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self._model, multi_avg_fn=averaging, use_buffers=True)
        if compute_config.device.type == "cpu":
            keep_slow_kernels_in_float32(self._model)
        parameters = list(self._model.parameters())
        groups = [
            {
                "params": [parameter for parameter in parameters if parameter.dim() > 1],
                "weight_decay": recipe.weight_decay,
            },
            {
                "params": [parameter for parameter in parameters if parameter.dim() <= 1],
                "weight_decay": 0.0,
            },
        ]
        # beta2 is 0.99: with the usual 0.999, the first steps after a stretch of small gradients
        # are too large.
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99), fused=True)
        self.step = 0
        self.seconds = 0.0
        self._step_started_s = time.monotonic()
        self._previous_core_seconds = 0.0
        self._process_started_s = time.process_time()
        self._curve: list[dict[str, Any]] = []
        self._sums = torch.zeros(2, dtype=torch.float64, device=compute_config.device)

    @property
    def core_seconds(self) -> float:
        return self._previous_core_seconds + time.process_time() - self._process_started_s

    @property
    def progress(self) -> float:
        if self._recipe.steps:
            return self.step / self._recipe.steps
        return self.seconds / self._recipe.budget_s

    def resume(self) -> bool:
        path = self._work / "state.safetensors"
        if not path.exists():
            return False
        checkpoint = read_checkpoint(path)
        metadata = checkpoint.facts
        if metadata["recipe"] != self._recipe.to_json():
            raise RunError(
                f"{self._work} contains the training of another recipe. "
                "Choose another --work folder, or remove it."
            )
        with checkpoint_errors(path):
            self._model.load_state_dict(checkpoint.part("network"))
            self._average.load_state_dict(checkpoint.part("average"))
            load_optimizer_tensors(self._optimizer, checkpoint.part("optimiser"))
        self.step = metadata["step"]
        self.seconds = metadata["seconds"]
        self._curve = metadata["curve"]
        self._previous_core_seconds = metadata["core_seconds"]
        self._sums = torch.tensor(
            metadata["sums"], dtype=torch.float64, device=self._compute_config.device
        )
        self._compute_config_by_side = {
            int(side): replace(self._compute_config, precision=name)
            for side, name in metadata["precision"].items()
        }
        self._write_curve()
        return True

    def save(self) -> None:
        metadata = {
            "recipe": self._recipe.to_json(),
            "step": self.step,
            "seconds": self.seconds,
            "core_seconds": self.core_seconds,
            "precision": {
                side: compute_config.precision
                for side, compute_config in self._compute_config_by_side.items()
            },
            "sums": self._sums.tolist(),
            "curve": self._curve,
        }
        parts = {
            "network": self._model.state_dict(),
            "average": self._average.state_dict(),
            "optimiser": optimizer_tensors(self._optimizer),
        }
        write_checkpoint(self._work / "state.safetensors", parts, metadata)

    def choose_precision(self, pool: ImagePool) -> None:
        """Choose the precision measured fastest here for each side, if bf16 is allowed."""
        if not self._compute_config.may_use_bf16:
            return
        for side in self._compute_config_by_side:
            values, labels = self._batch(pool, side)
            step_ms = measure_step_ms(
                self._model, self._model, (values,), labels, self._compute_config
            )
            self._compute_config_by_side[side] = replace(
                self._compute_config,
                precision="bf16" if step_ms["bf16"] < step_ms["fp32"] else "fp32",
            )

    def train_step(self, pool: ImagePool, log: Callable[[str], None]) -> None:
        """Run one training step and log it if a line is due."""
        now_s = time.monotonic()
        self.seconds += min(now_s - self._step_started_s, _MAX_STEP_S)
        self._step_started_s = now_s
        recipe = self._recipe
        progress = min(1.0, self.progress)
        warmup_factor = min(1.0, (progress + 1e-3) / max(recipe.warmup, 1e-3))
        lr = recipe.lr * warmup_factor * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        side = recipe.sides[min(len(recipe.sides) - 1, int(progress * len(recipe.sides)))]
        values, labels = self._batch(pool, side)
        torch.manual_seed(_derive_seed(recipe.seed, self.step, 5))  # dropout
        with self._compute_config_by_side[side].autocast():
            logits = self._model(values)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), recipe.clip_gradient)
        self._optimizer.step()
        self._average.update_parameters(self._model)
        self.step += 1
        accuracy = (logits.detach().argmax(1) == labels).double().mean()
        self._sums += torch.stack([loss.detach().double(), accuracy])
        if self.step % _LOG_EVERY == 0 or self.step == recipe.steps:
            self._log_step(lr, side, log)

    def _batch(self, pool: ImagePool, side: int) -> tuple[Tensor, Tensor]:
        images, labels = pool.batch(self.step)
        generator = torch.Generator().manual_seed(_derive_seed(self._recipe.seed, self.step, 4))
        device_images = torch.from_numpy(images).to(self._compute_config.device)
        views = random_views(
            device_images, side, self._recipe.least_crop, self._preprocessing, generator
        )
        return views, torch.from_numpy(labels).to(self._compute_config.device)

    def _log_step(self, lr: float, side: int, log: Callable[[str], None]) -> None:
        previous_step = self._curve[-1]["step"] if self._curve else 0
        steps = self.step - previous_step
        loss, accuracy = (self._sums / steps).tolist()
        self._sums.zero_()
        if not math.isfinite(loss):
            raise RunError(
                f"The loss is not finite at step {self.step}. "
                "Lower lr in the recipe, and choose another --work folder."
            )
        previous_s = self._curve[-1]["seconds"] if self._curve else 0.0
        images_per_s = steps * self._recipe.batch_size / max(1e-9, self.seconds - previous_s)
        line = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "loss": loss,
            "accuracy": accuracy,
            "lr": lr,
            "side": side,
        }
        self._curve.append({**line, "images_per_second": round(images_per_s, 1)})
        self._write_curve(append=True)
        log(
            f"{100 * min(1.0, self.progress):.1f}% step {self.step}, loss {loss:.3f}, "
            f"accuracy {accuracy:.3f}, {side} px, {images_per_s:.0f} images/s, {self.seconds:.0f} s"
        )

    def _write_curve(self, append: bool = False) -> None:
        path = self._work / "loss.jsonl"
        if append:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(self._curve[-1]) + "\n")
        else:
            write_text(path, "".join(json.dumps(line) + "\n" for line in self._curve))

    def result(self) -> PretrainingResult:
        model: nn.Module = self._average.module
        precisions = dict.fromkeys(
            compute_config.precision for compute_config in self._compute_config_by_side.values()
        )
        return PretrainingResult(
            model.eval(),
            self.step,
            self.seconds,
            self.core_seconds,
            self._compute_config.device_name,
            " and ".join(precisions),
            self._curve,
        )


def _derive_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
