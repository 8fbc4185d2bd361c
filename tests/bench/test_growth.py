"""Growth of time and memory: which candidates are measured, and what is reported about them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.benchmarks import ROW

from acmix_zoo.bench.candidates import Candidate, build
from acmix_zoo.bench.growth import BATCHES, describe_growth, fit_exponent, grow


def test_fitted_exponent() -> None:
    assert fit_exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    assert fit_exponent([1, 10, 100], [5, 5, 5]) == pytest.approx(0)


def test_description() -> None:
    sizes = [
        replace(ROW, input=f"3×{n}×{n}", batch=b, ms=b * n**2, peak_mib=b * n) for n, b in ((64, 9), (224, 4), (448, 1))
    ]
    first, time, memory = describe_growth(sizes, "size")
    assert "time grows as pixels^1.00, peak memory as pixels^0.50" in first
    assert time.endswith("1.00× at 64², 1.00× at 224², 1.00× at 448²")
    assert memory.endswith("3.50× at 64², 1.00× at 224², 0.50× at 448²")


def test_memory_that_was_not_measured() -> None:
    rows = [replace(ROW, input=f"3×{n}×{n}", batch=1, ms=n**2, peak_mib=float("nan")) for n in (64, 224)]
    growth, *per_pixel = describe_growth(rows, "size")
    assert growth.endswith("time grows as pixels^1.00") and len(per_pixel) == 1


def test_larger_batches() -> None:
    assert [candidate.batch for candidate in grow(Candidate("resnet18"), "batch")] == list(BATCHES)


def test_larger_images_have_smaller_batches() -> None:
    assert grow(Candidate("acmix2d:8x18s2"), "size")[-1].name == "acmix2d:8x1024s2"
    sizes = grow(Candidate("resnet18", 8), "size")
    assert [(c.size, c.batch) for c in sizes] == [(64, 98), (128, 24), (224, 8), (448, 2), (1024, 1)]


@pytest.mark.parametrize(
    ("name", "blocks", "stages"),
    [("acmix_resnet26", 1, 4), ("acmix_swin_t", 2, 4), ("acmix_resnet_pico", 2, 3), ("acmix_swin_pico", 2, 2),
     ("acmix_san_pico", 2, 3)],
)  # fmt: skip
def test_deeper_networks(name: str, blocks: int, stages: int) -> None:
    deep = grow(Candidate(name), "depth")
    found = [list(candidate.model_kwargs.values()) for candidate in deep]
    assert found == [[[blocks * factor, *[1] * (stages - 1)]] for factor in (1, 2, 3, 4)]
    first, second = (sum(p.numel() for p in build(c).module.parameters()) for c in deep[:2])
    assert second > first


def test_layers_cannot_grow_in_depth() -> None:
    with pytest.raises(ValueError, match=r"acmix2d:8x18 has no stages of blocks.*acmix_resnet50"):
        grow(Candidate("acmix2d:8x18"), "depth")
