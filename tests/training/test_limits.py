"""What limits a training run: FLOPs of a step, peak FLOP/s of a device, and throughput of the loader alone."""

import copy
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from acmix_zoo.training import limits
from acmix_zoo.training.limits import copy_to_meta, device_peak, measure_loader, training_flops


def test_training_flops_follow_the_trained_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 64, 5))
    before = copy.deepcopy(model.state_dict())
    macs = 3 * 4 * 9 * 64 + 4 * 64 * 5
    twin = copy_to_meta(model)
    assert twin is not None and {p.device.type for p in twin.parameters()} == {"meta"}
    assert training_flops(twin, (3, 8, 8)) == 6 * macs
    model[0].requires_grad_(False)
    twin = copy_to_meta(model)
    assert twin is not None and training_flops(twin, (3, 8, 8)) == 2 * macs
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and training_flops(nn.Identity(), (3, 8, 8)) is None


def test_the_peak_is_measured_on_a_cpu_and_looked_up_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    peak = device_peak(torch.device("cpu"), "32-true")
    assert peak is not None and 1e8 < peak < 1e14
    assert torch.equal(state, torch.get_rng_state())
    requested = []
    monkeypatch.setattr(limits, "get_available_flops", lambda device, dtype: requested.append(dtype))
    for precision in ("32-true", "bf16-mixed", "16-mixed", "64-true"):
        assert device_peak(torch.device("cuda"), precision) is None
    assert requested == [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def random_states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


class Noise(Dataset[tuple[Tensor, int]]):
    """Draw from every random number generator, and warn about every image."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        warnings.warn("skipped", stacklevel=2)
        return torch.rand(3, 4, 4) * random.random() * float(np.random.rand()), index


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_measuring_a_loader_leaves_no_trace(workers: int, recwarn: pytest.WarningsRecorder) -> None:
    before = random_states()
    loader = DataLoader(Noise(), batch_size=4, shuffle=True, num_workers=workers)
    rate = measure_loader(loader, 0.2, workers)
    assert rate is not None and 10 < rate < 1e7
    assert random_states() == before
    # on a machine with one core, PyTorch warns about two workers
    assert not [str(each.message) for each in recwarn if "DataLoader will create" not in str(each.message)]


def test_too_few_batches_give_no_loader_speed() -> None:
    assert measure_loader(DataLoader(Noise(), batch_size=64), 1) is None
    assert measure_loader(DataLoader(Noise(), batch_size=32, num_workers=2), 1, workers=2) is None
