"""How a network answers on images it is only shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetl.core.statistics import calibration_error
from edgetl.train.common.distributed import SINGLE_PROCESS, DistributedGroup


@dataclass(frozen=True)
class Evaluation:
    """Logits of a set of images, in their order."""

    logits: Tensor
    """float32 [images, classes], on the CPU."""
    targets: Tensor
    """int64 [images]."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(F.cross_entropy(self.logits, self.targets))

    @property
    def correct_count(self) -> int:
        """Images whose highest logit is their label's."""
        return int((self.predictions == self.targets).sum())

    @property
    def accuracy(self) -> float:
        """Top-1."""
        return self.correct_count / len(self.targets)

    @property
    def predictions(self) -> Tensor:
        """int64 [images]."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """float32 [images, classes]."""
        return self.logits.softmax(1)

    def top_k_accuracy(self, count: int) -> float:
        """Share of images whose label is among the `count` highest logits."""
        highest = self.logits.topk(min(count, self.logits.shape[1])).indices
        return float((highest == self.targets[:, None]).any(1).float().mean())

    @property
    def calibration_error(self) -> float:
        """See `edgetl.core.statistics.calibration_error`."""
        confidences, predicted = self.probabilities.max(1)
        return calibration_error(confidences.tolist(), (predicted == self.targets).tolist())

    def confusion_matrix(self) -> list[list[int]]:
        """Counts [true][predicted]."""
        classes = self.logits.shape[1]
        counts = torch.bincount(
            self.targets * classes + self.predictions, minlength=classes * classes
        )
        rows: list[list[int]] = counts.view(classes, classes).tolist()
        return rows


@torch.inference_mode()
def evaluate(
    forward: Callable[..., Tensor],
    batches: Iterable[tuple[Sequence[Tensor], Tensor]],
    ranks: DistributedGroup = SINGLE_PROCESS,
) -> Evaluation:
    """Logits of batches of ((float32 values, ...), int64 labels); the caller sets the network to evaluation mode.

    Where several processes evaluate, each is given batches of the images that `Group.own` names, and gets the logits of all.
    """
    logits, targets = [], []
    for values, labels in batches:
        logits.append(forward(*values).float().cpu())
        targets.append(labels.cpu())
    if not ranks.is_distributed:
        return Evaluation(torch.cat(logits), torch.cat(targets))
    parts = ranks.all_gather((torch.cat(logits), torch.cat(targets)) if logits else None)
    found = [part for part in parts if part is not None]
    count, classes = sum(len(labels) for _, labels in found), found[0][0].shape[1]
    whole = Evaluation(torch.empty(count, classes), torch.empty(count, dtype=torch.int64))
    for rank, (own, labels) in enumerate(found):  # those without an image are the last
        whole.logits[rank :: ranks.world_size], whole.targets[rank :: ranks.world_size] = (
            own,
            labels,
        )
    return whole
