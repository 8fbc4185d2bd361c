"""What the warm start of a ResNet is worth, measured on real images.

    python -m tools.warm_start_study benchmarks/warm_start.csv

trains a small plain ResNet on a third of Fashion-MNIST, makes an ACmix-ResNet of it (`from_resnet`), and compares: as
it comes, with batch norms that have seen the images again, after one epoch, and against the same network from scratch
and from a start that lacks the fitted kernels. Some ten minutes on two cores.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from acmix_zoo.data import ImageDataModule
from acmix_zoo.layers import ACmix2d
from acmix_zoo.weights import from_resnet

IMAGES, SIDE, EPOCHS, LR = 20_000, 64, 4, 0.1


def main(target: Path) -> None:
    """Measure, print and write the rows."""
    torch.manual_seed(0)
    data = ImageDataModule("fashion_mnist", image_size=SIDE, batch_size=64)
    images, train = data.parts()["train"]
    data.parts()["train"] = (images, train[:: len(train) // IMAGES][:IMAGES])
    plain = ResNet(Bottleneck, (1, 1, 1, 1), num_classes=10, channels=(32, 64, 128, 256))  # type: ignore[arg-type]
    fit(plain, data, EPOCHS, LR)
    rows = [(f"plain ResNet, {EPOCHS} epochs", accuracy(plain, data))]
    warm, report = from_resnet(plain)
    print(report, flush=True)
    rows.append(("fitted, as it comes", accuracy(warm, data)))
    settle(warm, data)
    rows.append(("fitted, batch norms settled", accuracy(warm, data)))
    fit(warm, data, 1, LR / 4)
    rows.append(("fitted, one epoch", accuracy(warm, data)))
    partial, _ = from_resnet(plain)
    for layer in partial.modules():
        if isinstance(layer, ACmix2d):
            layer.reset_parameters()
    fit(partial, data, 1, LR / 4)
    rows.append(("all but the 3×3 copied, one epoch", accuracy(partial, data)))
    scratch = timm.create_model("acmix_resnet50", layers=(1, 1, 1, 1), planes=(32, 64, 128, 256), num_classes=10)
    fit(scratch, data, 1, LR)
    rows.append(("from scratch, one epoch", accuracy(scratch, data)))
    kept = min(report.kept.values()), max(report.kept.values())
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["network", "validation top-1"])
        writer.writerows([[name, f"{value:.4f}"] for name, value in rows])
        writer.writerow(["kernel energy kept, least and most", " ".join(f"{share:.3f}" for share in kept)])
    print(target.read_text(encoding="utf-8"))


def fit(model: nn.Module, data: ImageDataModule, epochs: int, lr: float) -> None:
    """SGD under one cycle."""
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
def settle(model: nn.Module, data: ImageDataModule, batches: int = 40) -> None:
    """Let the batch norms see some images of what now comes before them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean
    model.train()
    for i, (x, _) in enumerate(data.train_dataloader()):
        if i == batches:
            break
        model(x)


@torch.inference_mode()
def accuracy(model: nn.Module, data: ImageDataModule) -> float:
    """Validation top-1, 0..1."""
    model.eval()
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    share = right / len(data.parts()["val"][1])
    print(f"{share:.4f}", flush=True)
    return share


if __name__ == "__main__":
    main(Path(sys.argv[1]))
