"""Measure what initialising an ACmix-ResNet from a plain ResNet (`from_resnet`) is worth, on real images.

    python -m tools.warm_start_study benchmarks/warm_start.csv          # about ten minutes on two cores

This trains a small plain ResNet on a third of Fashion-MNIST, converts it to an ACmix-ResNet, and evaluates: right after
the conversion, with batch norm statistics computed again, and after one epoch. For comparison it trains one epoch
without the fitted kernels, and one epoch from scratch.
"""

from __future__ import annotations

import csv
from pathlib import Path

import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from acmix_zoo.data import ImageDataModule
from acmix_zoo.data.splits import Split
from acmix_zoo.layers import ACmix2d
from acmix_zoo.weights import from_resnet
from tools import make_parser

IMAGES, SIDE, EPOCHS, LR = 20_000, 64, 4, 0.1


def main(target: Path) -> None:
    """Measure, print and write the rows."""
    torch.manual_seed(0)
    data = ImageDataModule("fashion_mnist", image_size=SIDE, batch_size=64)
    images, train = data.splits["train"]
    data.splits["train"] = Split(images, train[:: len(train) // IMAGES][:IMAGES])
    plain = ResNet(Bottleneck, (1, 1, 1, 1), num_classes=10, channels=(32, 64, 128, 256))  # type: ignore[arg-type]
    fit(plain, data, EPOCHS, LR)
    rows = [(f"plain ResNet, {EPOCHS} epochs", accuracy(plain, data))]

    converted, report = from_resnet(plain)
    print(report, flush=True)
    rows.append(("converted, no training", accuracy(converted, data)))
    recompute_batch_norms(converted, data)
    rows.append(("converted, batch norms recomputed", accuracy(converted, data)))
    fit(converted, data, 1, LR / 4)
    rows.append(("converted, one epoch", accuracy(converted, data)))

    without_kernels, _ = from_resnet(plain)
    for layer in without_kernels.modules():
        if isinstance(layer, ACmix2d):
            layer.reset_parameters()
    fit(without_kernels, data, 1, LR / 4)
    rows.append(("converted except the 3×3 kernels, one epoch", accuracy(without_kernels, data)))

    scratch = timm.create_model("acmix_resnet50", layers=(1, 1, 1, 1), planes=(32, 64, 128, 256), num_classes=10)
    fit(scratch, data, 1, LR)
    rows.append(("from scratch, one epoch", accuracy(scratch, data)))

    energy = min(report.kept.values()), max(report.kept.values())
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["network", "validation top-1"])
        writer.writerows([[name, f"{value:.4f}"] for name, value in rows])
        writer.writerow(
            [
                "fraction of the squared norm of a 3×3 kernel that is kept, lowest and highest layer",
                " ".join(f"{value:.3f}" for value in energy),
            ]
        )
    print(target.read_text(encoding="utf-8"))


def fit(model: nn.Module, data: ImageDataModule, epochs: int, lr: float) -> None:
    """Train with SGD and a one-cycle schedule."""
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4, nesterov=True)
    steps = epochs * len(data.train_dataloader())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.2)
    for _ in range(epochs):
        for x, y in data.train_dataloader():
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def recompute_batch_norms(model: nn.Module, data: ImageDataModule, batches: int = 40) -> None:
    """Compute the statistics of the batch norms again from some training images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # use the mean over all batches
    model.train()
    for i, (x, _) in enumerate(data.train_dataloader()):
        if i == batches:
            break
        model(x)


@torch.inference_mode()
def accuracy(model: nn.Module, data: ImageDataModule) -> float:
    """Return the top-1 accuracy on the validation split, from 0 to 1."""
    model.eval()
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    value = correct / data.splits["val"].size
    print(f"{value:.4f}", flush=True)
    return value


if __name__ == "__main__":
    parser = make_parser("warm_start_study", __doc__)
    parser.add_argument("file", type=Path, help="where to write the results")
    main(parser.parse_args().file)
