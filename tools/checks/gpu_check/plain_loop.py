"""The yardstick of process times: a fine-tuning loop as most people write it, in bf16 and channels last.

    python -m tools.checks.gpu_check.plain_loop SETTINGS EPOCHS FINETUNE_EPOCHS METRICS

The same files, weights and number of epochs as the `edgetl finetune` beside it: first the head on the frozen
backbone, then the last blocks too; torchvision's transforms in worker processes, Adam, accuracy on the validation
images after every epoch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from edgetl.device.hardware.cpu import available_cores
from edgetl.train.model.factory import AdaptedModel, build_adapted_model
from edgetl.train.model.weights import read_weights
from tools.checks.gpu_check.settings import Settings

Row = tuple[Path, int]
"""A file and the number of its label."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Photos(Dataset[tuple[Tensor, int]]):
    """Files to augmented or centered float32 [3, side, side]."""

    def __init__(self, rows: list[Row], side: int, augmented: bool) -> None:
        self._rows = rows
        views = [v2.RandomResizedCrop(side, (0.5, 1.0)), v2.RandomHorizontalFlip()]
        center = [v2.Resize(round(side * 256 / 224)), v2.CenterCrop(side)]
        normalize = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self._transform = v2.Compose([*(views if augmented else center), *normalize])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._rows[index]
        return self._transform(decode_image(str(path), ImageReadMode.RGB)), label


def split(settings: Settings) -> tuple[list[Row], list[Row]]:
    """Training and validation files with their labels: every fifth file of a class is held back, as edgetl holds back a fifth."""
    folders = sorted(path for path in settings.data.iterdir() if path.is_dir())
    rows = [
        (path, number, at)
        for number, folder in enumerate(folders)
        for at, path in enumerate(sorted(folder.iterdir()))
    ]
    train = [(path, label) for path, label, at in rows if at % 5]
    return train, [(path, label) for path, label, at in rows if at % 5 == 0]


def loaders(settings: Settings) -> tuple[DataLoader[tuple[Tensor, int]], ...]:
    """Training and validation batches."""
    workers = max(1, min(available_cores() - 1, 16))
    made = []
    for rows, trained in zip(split(settings), (True, False), strict=True):
        photos = Photos(rows, settings.image_size, trained)
        pinned = settings.device == "cuda"
        made.append(
            DataLoader(
                photos, 16, trained, num_workers=workers, pin_memory=pinned, persistent_workers=True
            )
        )
    return tuple(made)


def train(settings: Settings, epochs: tuple[int, int]) -> float:
    """Train both phases; returns the best validation accuracy."""
    torch.manual_seed(settings.seed)
    training, validation = loaders(settings)
    weights = read_weights(settings.weights, settings.model)
    classes = len({label for _, label in split(settings)[0]})
    adapted = build_adapted_model(settings.model, settings.image_size, classes, 0, 0.2, weights)
    network = adapted.model.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    best = 0.0
    for phase, count in enumerate(epochs):
        trained = trained_parameters(adapted, all_blocks=phase == 1)
        optimizer = torch.optim.Adam(trained, (2e-3, 4e-4)[phase], fused=True)
        for _ in range(count):
            network.train(phase == 1)
            for pixels, labels in training:
                _step(network, optimizer, pixels, labels, settings.device)
            best = max(best, accuracy(network, validation, settings.device))
    return best


def trained_parameters(adapted: AdaptedModel, all_blocks: bool) -> list[nn.Parameter]:
    """The head's parameters, or those of the last half of the blocks too; the others are frozen."""
    late = [
        path for block in adapted.blocks[len(adapted.blocks) // 2 :] for path in block.module_paths
    ]
    prefixes = tuple(
        f"{path}." for path in (*(late if all_blocks else ()), adapted.classifier_layer.path)
    )
    trained = []
    for name, parameter in adapted.model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
        if parameter.requires_grad:
            trained.append(parameter)
    return trained


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    labels: Tensor,
    device: str,
) -> None:
    values, targets = _moved(pixels, device), labels.to(device, non_blocking=True)
    with torch.autocast(device, torch.bfloat16):
        loss = F.cross_entropy(network(values).float(), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.inference_mode()
def accuracy(network: nn.Module, validation: DataLoader[tuple[Tensor, int]], device: str) -> float:
    """Share of right answers."""
    network.eval()
    right = images = 0
    for pixels, labels in validation:
        with torch.autocast(device, torch.bfloat16):
            answers = network(_moved(pixels, device)).argmax(1).cpu()
        right += int((answers == labels).sum())
        images += len(labels)
    return right / images


def _moved(pixels: Tensor, device: str) -> Tensor:
    return pixels.to(device, non_blocking=True, memory_format=torch.channels_last)


def main() -> None:
    settings = Settings.read(Path(sys.argv[1]))
    torch.backends.cudnn.benchmark = True
    best = train(settings, (int(sys.argv[2]), int(sys.argv[3])))
    metrics = Path(sys.argv[4])
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({"val": {"accuracy": best}}), encoding="utf-8")


if __name__ == "__main__":
    main()
