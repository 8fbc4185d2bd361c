"""docs/neighbours.md: its networks exist, and the numbers in its text are right."""

import pytest
import torch
from support.documents import Document
from support.networks import NEIGHBOURS

from acmix_zoo.layers.complexity import complexity
from acmix_zoo.models import AAResNet, Container

PAGE = Document("docs/neighbours.md")


def test_every_neighbour_has_a_row() -> None:
    for name in NEIGHBOURS:
        assert f"| `{name}` | " in PAGE.text.partition("<!-- neighbours -->")[0], name


def test_only_three_augmented_stages_round_to_the_published_parameters() -> None:
    with torch.device("meta"):
        counts = {first: sum(p.numel() for p in AAResNet(first_stage=first).parameters()) for first in (1, 2, 3, 4)}
    assert [first for first, count in counts.items() if f"{count / 1e6:.1f}" == "25.8"] == [2]
    assert "round to the published 25.8M" in PAGE.text


@pytest.mark.parametrize(
    ("arguments", "params", "gmacs"),
    [({"depths": (2, 3, 8, 3)}, "20.3M", "3.38"), ({"mlp_ratios": (4, 4, 4, 4)}, "20.0M", "3.13")],
)
def test_other_sizes_of_container_light(arguments: dict[str, tuple[int, ...]], params: str, gmacs: str) -> None:
    with torch.device("meta"):
        found = complexity(Container(**arguments), (3, 224, 224))  # type: ignore[arg-type]
    assert (f"{found.params / 1e6:.1f}M", f"{found.macs / 1e9:.2f}") == (params, gmacs)
    assert params in PAGE.text and f"{gmacs} GMACs" in PAGE.text
