"""The metadata of an exported file, which a program needs to prepare images and to name classes."""

from __future__ import annotations

from typing import Any

from timm.data import resolve_data_config
from torch import nn

from acmix_zoo.weights.class_names import class_names


def file_metadata(model: nn.Module) -> dict[str, Any]:
    """Return the metadata of an exported network as plain values.

    They are the `name` and `license` of the weights, the `class_names` (in words, in the order of the logits), and how
    to prepare an image: scale its shorter side to `input_size[1] / crop_pct` pixels with the filter `interpolation`,
    crop the centre, divide the values by 255, subtract `mean` and divide by `std`.
    """
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    data = resolve_data_config(pretrained_cfg=cfg)
    preparation = {key: data[key] for key in ("interpolation", "crop_pct", "crop_mode")}
    return {
        "name": ".".join(filter(None, (cfg.get("architecture"), cfg.get("tag")))),
        "class_names": list(class_names(model).descriptions),
        **{key: list(data[key]) for key in ("input_size", "mean", "std")},
        **preparation,
        "license": cfg.get("license"),
    }
