"""The groups of candidates that `make bench-gpu` measures, most important first.

python -m tools.gpu_groups [PART...]          lists them
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from acmix_zoo.bench.candidates import is_network, parse_name
from tools import make_parser
from tools.suite import STRIDE_1, STRIDE_2

PRECISIONS = ("bfloat16", "float32", "tf32")
# ACmix networks and their plain baselines.
NETWORKS = (
    ("resnet50", "acmix_resnet50"),
    ("swin_tiny_patch4_window7_224", "acmix_swin_t"),
    ("san10_patchwise", "acmix_san10"),
    ("pvt_tiny", "acmix_pvt_t"),
)


class Kind(NamedTuple):
    """What determines how long a group takes.

    Attributes:
        level: "layer" or "network".
        is_compiled: whether the candidates are compiled.
    """

    level: str
    is_compiled: bool


@dataclass(frozen=True)
class Group:
    """Candidates that are measured side by side.

    Attributes:
        candidates: their names. Ratios are relative to the first one, the baseline.
        precision: one of `PRECISIONS`.
        train: whether a pass is forward and backward.
    """

    candidates: tuple[str, ...]
    precision: str
    train: bool

    @property
    def mode(self) -> str:
        return "training" if self.train else "inference"

    @property
    def kind(self) -> Kind:
        name = self.candidates[0]
        return Kind("network" if is_network(name) else "layer", parse_name(name).is_compiled)

    def __str__(self) -> str:
        return f"{' against '.join(self.candidates[::-1])}, {self.precision}, {self.mode}"


def layer_groups() -> Iterator[Group]:
    """Yield groups that compare the layer with the 3×3 convolution that it replaces."""
    for shape, precision, train in product(STRIDE_1 + STRIDE_2, PRECISIONS, (False, True)):
        yield Group((f"conv3x3:{shape}", f"acmix2d:{shape}"), precision, train)


def network_groups() -> Iterator[Group]:
    """Yield groups that compare networks with their plain counterparts."""
    for precision, names, train in product(PRECISIONS, NETWORKS, (False, True)):
        yield Group(names, precision, train)


def tile_groups() -> Iterator[Group]:
    """Yield groups that compare the backends of the attention, and tile sizes.

    Their results decide on `TILES` and on the limit for `global` in `acmix_zoo.ops.dispatch`.
    """
    for shape, precision, train in product(("64x56", "128x28", "256x14"), ("bfloat16", "float32"), (False, True)):
        backends = ["tile4x7", "tile8x8", "tile8x16", *["global"] * (shape != "64x56"), "triton"]
        yield Group(tuple(f"acmix2d:{shape}@{backend}" for backend in backends), precision, train)


def compiled_groups() -> Iterator[Group]:
    """Yield groups with two shapes of the layer and all networks under torch.compile."""
    layers = [(f"conv3x3:{shape}", f"acmix2d:{shape}") for shape in ("64x56", "256x14")]
    pairs = (layers[0], *NETWORKS[:2], layers[1], *NETWORKS[2:])
    for precision, (plain, acmix), train in product(("bfloat16", "float32"), pairs, (True, False)):
        yield Group((f"{plain}+compile", f"{acmix}+compile"), precision, train)


PARTS = {"layers": layer_groups, "networks": network_groups, "tiles": tile_groups, "compiled": compiled_groups}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the groups of some parts, or of all of them."""
    parser = make_parser("gpu_groups", __doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)} (default: all)")
    for part in parser.parse_args(arguments).parts or PARTS:
        print(f"{part}:", *PARTS[part](), sep="\n  ")


if __name__ == "__main__":
    main()
