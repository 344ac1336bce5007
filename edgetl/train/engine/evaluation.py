"""Evaluation of a model on labeled images."""

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
        """Number of images whose highest logit is their label's."""
        return int((self.predictions == self.targets).sum())

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy."""
        return self.correct_count / len(self.targets)

    @property
    def predictions(self) -> Tensor:
        """Predicted class of each image, int64 [images]."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, float32 [images, classes]."""
        return self.logits.softmax(1)

    def top_k_accuracy(self, count: int) -> float:
        """Return the share of images whose label is among the `count` highest logits."""
        highest = self.logits.topk(min(count, self.logits.shape[1])).indices
        return float((highest == self.targets[:, None]).any(1).float().mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error; see `edgetl.core.statistics.calibration_error`."""
        confidences, predicted = self.probabilities.max(1)
        return calibration_error(confidences.tolist(), (predicted == self.targets).tolist())

    def confusion_matrix(self) -> list[list[int]]:
        """Return the number of images [true class][predicted class]."""
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
    processes: DistributedGroup = SINGLE_PROCESS,
) -> Evaluation:
    """Compute the logits of all batches; the caller sets the model to evaluation mode.

    Args:
        forward: (float32 values, ...) to logits [batch, classes].
        batches: ((float32 values, ...), int64 labels) of this process.
        processes: the processes that share the images as `DistributedGroup.shard` splits them.

    Returns:
        The logits of all processes, in the order of the images.
    """
    logits, targets = [], []
    for values, labels in batches:
        logits.append(forward(*values).float().cpu())
        targets.append(labels.cpu())
    if not processes.is_distributed:
        return Evaluation(torch.cat(logits), torch.cat(targets))
    gathered = processes.all_gather((torch.cat(logits), torch.cat(targets)) if logits else None)
    # Only the last processes can be without an image, so the index is still the rank.
    shards = [shard for shard in gathered if shard is not None]
    count, classes = sum(len(labels) for _, labels in shards), shards[0][0].shape[1]
    merged = Evaluation(torch.empty(count, classes), torch.empty(count, dtype=torch.int64))
    for rank, (rank_logits, rank_targets) in enumerate(shards):
        merged.logits[rank :: processes.world_size] = rank_logits
        merged.targets[rank :: processes.world_size] = rank_targets
    return merged
