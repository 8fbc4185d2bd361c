"""Print hashes of results that a change of structure must not alter.

    python -m tools.same_bits > before.txt      (on the old revision)
    python -m tools.same_bits | diff before.txt -

A short training of one network per family through the command line, the logits of every shipped weight on fixed images,
and the forward and backward of the layers: equal hashes mean equal bits. Compare on one machine with the same thread
count, since other kernels round differently.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import acmix_zoo
from acmix_zoo import ACmix2d, create_model
from acmix_zoo.weights.shipped import shipped_classifiers
from tools import make_parser

ROOT = Path(acmix_zoo.__file__).resolve().parent.parent
SHORT_RUN = (  # noqa: SIM905 - reads better as the words of a command
    "--trainer.max_epochs 2 --trainer.limit_train_batches 12 --trainer.limit_val_batches 2 --run.test false "
    "--trainer.accelerator cpu --data.batch_size 32 --data.num_workers 0 --seed_everything 3"
).split()


def digest(tensors: dict[str, Tensor]) -> str:
    """Return a hash of names, shapes and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def lines() -> Iterator[str]:
    """Yield one line per result: what was computed, and the hash of its tensors."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    for name in shipped_classifiers():
        model: Any = create_model(name, pretrained=True).eval()
        with torch.inference_mode():
            yield f"logits {name} {digest({'logits': model(images[:, : model.pretrained_cfg['input_size'][0]])})}"
    for size, stride in ((14, 1), (9, 2)):
        torch.manual_seed(1)
        layer = ACmix2d(16, 32, stride=stride)
        x = torch.randn(2, 16, size, size, requires_grad=True)
        layer(x).square().sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        assert x.grad is not None
        yield f"layer {size} stride {stride} {digest({**gradients, 'x': x.grad})}"

    for name in ("acmix_pvt_pico", "acmix_resnet_pico", "acmix_san_pico", "acmix_swin_pico"):
        recipe = ROOT / "recipes/fashion_mnist" / f"{name}.yaml"
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "acmix_zoo.cli", "fit", "--config", str(recipe), "--run.folder", folder]
            subprocess.run([*command, *SHORT_RUN], check=True, capture_output=True)
            (weights,) = Path(folder).glob("weights/model.safetensors")
            yield f"run {recipe.stem} {digest(load_file(weights))}"


if __name__ == "__main__":
    make_parser("same_bits", __doc__).parse_args()
    for line in lines():
        print(line, flush=True)
