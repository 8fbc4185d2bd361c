"""The classifier of networks whose features are a map (B, C, H, W): pooling and a linear layer, as timm wants it."""

from __future__ import annotations

from typing import Any

from timm.layers import create_classifier
from torch import Tensor, nn
from torch.nn.functional import dropout

from acmix_zoo.models.registry import record_arguments


class MapHead(nn.Module):
    """What ACmixResNet and SAN share. A network calls `make_head` when it knows its `num_features`."""

    num_features: int

    def make_head(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        self.drop_rate, self.grad_checkpointing = drop_rate, False
        self._set_classifier(num_classes, global_pool)

    def _set_classifier(self, num_classes: int, global_pool: str, **factory: Any) -> None:
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool, **factory)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()  # "catavgmax" pools twice

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

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
