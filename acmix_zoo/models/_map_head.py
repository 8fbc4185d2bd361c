"""The classifier of networks whose features are a map (B, C, H, W): pooling and a linear layer, as timm wants it."""

from __future__ import annotations

from timm.layers import create_classifier
from torch import Tensor, nn
from torch.nn.functional import dropout


class MapHead(nn.Module):
    """What ACmixResNet and SAN share. A network calls `make_head` when it knows its `num_features`."""

    num_features: int

    def make_head(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        self.num_classes, self.drop_rate, self.head_hidden_size = num_classes, drop_rate, self.num_features
        self.grad_checkpointing = False
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)

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

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)
