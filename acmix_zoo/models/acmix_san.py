"""SAN, the self-attention network whose weights are vectors, in its pairwise and its patchwise form.

Source: "Exploring Self-attention for Image Recognition", CVPR 2020, table 1, and its released code, which runs on CUDA
alone. Parameters have that code's names, so its checkpoints load as they are.
"""

from __future__ import annotations

from typing import Any, Literal

from timm.layers import create_classifier
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn.functional import dropout

from acmix_zoo.layers.san import PairwiseSAM, PatchwiseSAM

__all__ = ["SAN"]

Form = Literal["pairwise", "patchwise"]


class Bottleneck(nn.Module):
    """Batch norm → self-attention to a quarter of the channels → batch norm → 1×1 back, around an identity."""

    def __init__(self, channels: int, kernel: int, form: Form) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.sam = (PairwiseSAM if form == "pairwise" else PatchwiseSAM)(channels, kernel)
        self.bn2 = nn.BatchNorm2d(channels // 4)
        self.conv = nn.Conv2d(channels // 4, channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn2(self.sam(self.relu(self.bn1(x)))))
        return x + self.conv(out)  # type: ignore[no-any-return]


class SAN(nn.Module):
    """Self-attention network, with timm's model interface.

    Args:
        layers: blocks of each of the five stages.
        form: "pairwise" or "patchwise".
        kernels: sides of the neighbourhoods, for each stage.
        widths: channels of the stages.
        in_chans, num_classes, global_pool, drop_rate: as in timm.

    Shape: (B, in_chans, H, W) → (B, num_classes); height and width of at least 32.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = (2, 1, 2, 4, 1),
        form: Form = "patchwise",
        *,
        kernels: tuple[int, ...] = (3, 7, 7, 7, 7),
        widths: tuple[int, ...] = (64, 256, 512, 1024, 2048),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.grad_checkpointing = False
        inputs = widths[0]
        self.conv_in = nn.Conv2d(in_chans, inputs, 1, bias=False)
        self.bn_in = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2, 2)
        self.feature_info: list[dict[str, Any]] = []
        for i, (depth, kernel, width) in enumerate(zip(layers, kernels, widths, strict=True)):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, width, 1, bias=False))
            self.add_module(f"layer{i}", nn.Sequential(*(Bottleneck(width, kernel, form) for _ in range(depth))))
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
            self.feature_info.append({"num_chs": width, "reduction": 2 ** (i + 1), "module": f"bn{i}"})
            inputs = width
        self.num_features = self.head_hidden_size = inputs
        self.global_pool, self.fc = create_classifier(inputs, num_classes, pool_type=global_pool)

    def no_weight_decay(self) -> set[str]:
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^(?:conv|layer|bn)(\d+)" if coarse else [(r"^layer(\d+)\.(\d+)", None), (r"^(?:conv|bn)(\d+)", (0,))]
        return {"stem": r"^conv_in|^bn_in", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.fc  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        parameter = next(self.parameters())
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool_type, device=parameter.device, dtype=parameter.dtype
        )

    def _stage(self, i: int, x: Tensor) -> Tensor:
        """Pooling, a wider 1×1, the blocks, batch norm and ReLU: (B, C, H, W) → (B, width, H/2, W/2)."""
        x = self.get_submodule(f"conv{i}")(self.pool(x))
        blocks: nn.Sequential = self.get_submodule(f"layer{i}")  # type: ignore[assignment]
        x = checkpoint_seq(blocks, x) if self.grad_checkpointing else blocks(x)
        return self.relu(self.get_submodule(f"bn{i}")(x))  # type: ignore[no-any-return]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the stages, (B, C, H/reduction, W/reduction), as timm's networks give them."""
        if output_fmt != "NCHW":
            raise ValueError(f'SAN: output_fmt must be "NCHW", got {output_fmt!r}')
        take, last = feature_take_indices(len(self.feature_info), indices)
        x, maps = self.relu(self.bn_in(self.conv_in(x))), []
        for i in range(last + 1 if stop_early else len(self.feature_info)):
            x = self._stage(i, x)
            if i in take:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn_in(self.conv_in(x)))
        for i in range(len(self.feature_info)):
            x = self._stage(i, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
