"""Baseline of the process times: a common fine-tuning loop in bf16 and channels last.

    python -m tools.checks.gpu_check.plain_loop SETTINGS EPOCHS FINETUNE_EPOCHS METRICS

It uses the same files, weights and number of epochs as `edgetl finetune`: first the head on the
frozen backbone, then the last blocks too; torchvision transforms in worker processes, Adam, and the
accuracy on the validation images after every epoch.
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
"""An image file and its class index."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PhotoDataset(Dataset[tuple[Tensor, int]]):
    """Dataset of image files, read as augmented or center-cropped float32 [3, side, side]."""

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
    """Return the training and the validation files with their labels.

    Every fifth file of a class goes to validation, since edgetl also holds out a fifth.
    """
    folders = sorted(path for path in settings.data.iterdir() if path.is_dir())
    rows = [
        (path, label, index)
        for label, folder in enumerate(folders)
        for index, path in enumerate(sorted(folder.iterdir()))
    ]
    train = [(path, label) for path, label, index in rows if index % 5]
    val = [(path, label) for path, label, index in rows if index % 5 == 0]
    return train, val


def make_loaders(settings: Settings) -> tuple[DataLoader[tuple[Tensor, int]], ...]:
    """Return the training and the validation loader."""
    workers = max(1, min(available_cores() - 1, 16))
    data_loaders = []
    for rows, is_train in zip(split(settings), (True, False), strict=True):
        dataset = PhotoDataset(rows, settings.image_size, is_train)
        loader = DataLoader(
            dataset,
            16,
            is_train,
            num_workers=workers,
            pin_memory=settings.device == "cuda",
            persistent_workers=True,
        )
        data_loaders.append(loader)
    return tuple(data_loaders)


def train(settings: Settings, epochs: tuple[int, int]) -> float:
    """Train both phases and return the best validation accuracy."""
    torch.manual_seed(settings.seed)
    train_loader, val_loader = make_loaders(settings)
    weights = read_weights(settings.weights, settings.model)
    num_classes = len({label for _, label in split(settings)[0]})
    adapted = build_adapted_model(settings.model, settings.image_size, num_classes, 0, 0.2, weights)
    model = adapted.model.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    best = 0.0
    for phase, count in enumerate(epochs):
        parameters = unfreeze(adapted, last_blocks=phase == 1)
        optimizer = torch.optim.Adam(parameters, (2e-3, 4e-4)[phase], fused=True)
        for _ in range(count):
            model.train(phase == 1)
            for pixels, labels in train_loader:
                _step(model, optimizer, pixels, labels, settings.device)
            best = max(best, accuracy(model, val_loader, settings.device))
    return best


def unfreeze(adapted: AdaptedModel, last_blocks: bool) -> list[nn.Parameter]:
    """Freeze all but the head, or but the head and the last half of the blocks.

    Returns:
        The trainable parameters.
    """
    paths = [adapted.classifier_layer.path]
    if last_blocks:
        for block in adapted.blocks[len(adapted.blocks) // 2 :]:
            paths += block.module_paths
    prefixes = tuple(f"{path}." for path in paths)
    trainable = []
    for name, parameter in adapted.model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
        if parameter.requires_grad:
            trainable.append(parameter)
    return trainable


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    labels: Tensor,
    device: str,
) -> None:
    inputs = _to_device(pixels, device)
    targets = labels.to(device, non_blocking=True)
    with torch.autocast(device, torch.bfloat16):
        loss = F.cross_entropy(model(inputs).float(), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.inference_mode()
def accuracy(model: nn.Module, loader: DataLoader[tuple[Tensor, int]], device: str) -> float:
    """Return the top-1 accuracy, in [0, 1]."""
    model.eval()
    correct = images = 0
    for pixels, labels in loader:
        with torch.autocast(device, torch.bfloat16):
            predictions = model(_to_device(pixels, device)).argmax(1).cpu()
        correct += int((predictions == labels).sum())
        images += len(labels)
    return correct / images


def _to_device(pixels: Tensor, device: str) -> Tensor:
    return pixels.to(device, non_blocking=True, memory_format=torch.channels_last)


def main() -> None:
    """Train as the command line says and write the best accuracy to METRICS."""
    settings = Settings.read(Path(sys.argv[1]))
    torch.backends.cudnn.benchmark = True
    best = train(settings, (int(sys.argv[2]), int(sys.argv[3])))
    metrics = Path(sys.argv[4])
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({"val": {"accuracy": best}}), encoding="utf-8")


if __name__ == "__main__":
    main()
