"""timm's model interface, implemented once for networks that consist of consecutive stages.

`Backbone` has feature maps, pruning, gradient checkpointing and weight decay groups. `MapBackbone` adds the classifier
of networks whose features have the shape (B, C, H, W).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from timm.layers import create_classifier
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.nn.functional import dropout

from acmix_zoo.layers.fx_leaf import reject_script
from acmix_zoo.models.registry import feature_take_indices, record_arguments


def per_stage(network: str, **values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return the arguments of each stage.

    Args:
        network: the name of the network, for the error.
        values: one value per stage for each argument, by its name.

    Raises:
        ValueError: the arguments do not have the same number of values.
    """
    if len({len(value) for value in values.values()}) > 1:
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ValueError(f"{network}: expected one value per stage in each of these arguments, got {given}")
    return list(zip(*values.values(), strict=True))


class Backbone(nn.Module):
    """A network of consecutive stages, one for each entry of `feature_info`.

    A subclass implements `run_stage`, `drop_stage`, `forward_head` and `reset_classifier`. If its features do not have
    the shape (B, C, H, W), or if a norm follows the last stage, it also overrides `to_map` and `normalise`.

    Attributes:
        feature_info: num_chs, reduction and module of each feature map, as in timm.
        num_features: channels of the last feature map.
        head_hidden_size: size of the vector that the classifier reads.
        norm: the norm behind the last stage. Only some networks have one.
        grad_checkpointing: whether the blocks of a stage are recomputed in the backward pass.
    """

    NO_WEIGHT_DECAY: ClassVar[str] = r"(alpha|beta)$"
    """Regular expression for the names of parameters without weight decay."""

    feature_info: list[dict[str, Any]]
    num_features: int
    head_hidden_size: int
    norm: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

    def run_stage(self, i: int, x: Any) -> Any:
        """Compute features `i` from features `i - 1`, or from images (B, in_chans, H, W) if `i` is 0."""
        raise NotImplementedError

    def drop_stage(self, i: int) -> None:
        """Delete the modules and parameters that only stage `i` uses."""
        raise NotImplementedError

    def normalise(self, x: Any) -> Any:
        """Apply the norm behind the last stage, if there is one."""
        return x

    def to_map(self, x: Any, output_fmt: str) -> Tensor:
        """Return features as a feature map (B, C, H, W), or (B, H, W, C) if `output_fmt` is "NHWC"."""
        return x.permute(0, 2, 3, 1) if output_fmt == "NHWC" else x  # type: ignore[no-any-return]

    def to_output(self, x: Any) -> Tensor:
        """Return features in the layout of `forward_features`."""
        return x  # type: ignore[no-any-return]

    def run_blocks(self, blocks: nn.Module, x: Tensor) -> Tensor:
        """Run the nn.Sequential of a stage's blocks, with gradient checkpointing if it is switched on."""
        return checkpoint_seq(blocks, x) if self.grad_checkpointing else blocks(x)  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> Tensor:
        for i in range(len(self.feature_info)):
            x = self.run_stage(i, x)
        return self.to_output(self.normalise(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the feature maps (B, C, H/reduction, W/reduction), as in timm's networks.

        With `output_fmt="NHWC"`, the feature maps are (B, H/reduction, W/reduction, C). This does not affect the final
        features, which have the layout of `forward_features`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(
                f"{type(self).__name__}.forward_intermediates: unknown output_fmt={str(output_fmt)!r}; "
                'expected "NCHW" or "NHWC"'
            )
        end = len(self.feature_info) - 1
        take, last = feature_take_indices(len(self.feature_info), indices)
        maps = []
        for i in range(last + 1 if stop_early else end + 1):
            x = self.run_stage(i, x)
            if i in take:
                maps.append(self.to_map(self.normalise(x) if norm and i == end else x, output_fmt))
        if intermediates_only:
            return maps
        return self.to_output(self.normalise(x) if i == end else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of the feature maps `indices`, their norm, and the classifier."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        dropped = range(last + 1, len(self.feature_info))
        for i in dropped:
            self.drop_stage(i)
        del self.feature_info[last + 1 :]
        if dropped:
            self.num_features = self.head_hidden_size = int(self.feature_info[last]["num_chs"])
        if hasattr(self, "norm") and (prune_norm or dropped):
            self.norm = nn.Identity()
        if prune_head or dropped:
            self.reset_classifier(0, "")
        return take

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    __prepare_scriptable__ = reject_script  # the stages are submodules that are found by name

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if re.search(self.NO_WEIGHT_DECAY, name)}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        raise NotImplementedError


class MapBackbone(Backbone):
    """A backbone whose features have the shape (B, C, H, W), with pooling and a linear classifier `fc`.

    A subclass calls `make_head` as soon as it knows its `num_features`.
    """

    def make_head(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        self.drop_rate = drop_rate
        self._set_classifier(num_classes, global_pool)

    def _set_classifier(self, num_classes: int, global_pool: str, **factory: Any) -> None:
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool, **factory)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()  # "catavgmax" pools twice

    def get_classifier(self) -> nn.Module:
        return self.fc  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        parameter = next(self.parameters())
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self._set_classifier(num_classes, pool_type, device=parameter.device, dtype=parameter.dtype)
        self.global_pool.train(self.training)
        self.fc.train(self.training)
        if global_pool is not None:
            record_arguments(self, global_pool=global_pool)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)
