"""Grad-CAM, the standard picture of where a network looks, as a baseline for the contributions.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from acmix_zoo.explain.logits import class_logits, evaluation
from acmix_zoo.layers import ACmix2d, ReducedACmix
from acmix_zoo.layers.cost import forward_inputs


def grad_cam(model: nn.Module, image: Tensor, target: int) -> Tensor | None:
    """Return the Grad-CAM of a class, from 0 to 1, at the last feature map of a network.

    The last feature map is the last entry of the network's `feature_info`, which timm's networks have, or else the
    output of the last `ACmix2d`. For PVT it is the input of the last ACmix layer, because the output tokens have no
    gradient if the classifier only reads the class token.

    Args:
        model: a network that returns logits (B, classes). It runs in eval mode and is not changed.
        image: (1, C, H, W), preprocessed.
        target: the class.

    Returns:
        (h, w), the resolution of the feature map. None if the last feature map is unknown or is not (1, C, h, w).
    """
    model = getattr(model, "_orig_mod", model)  # the network in torch.compile(network) names its feature maps
    with evaluation(model):
        class_logits(model, image, target)
        with torch.enable_grad():
            features = _LastFeatures(model)
            score = features.run(image.detach().clone().requires_grad_())[0, target]
        if features.value is None:
            return None
        (gradient,) = torch.autograd.grad(score, features.value, materialize_grads=True)
    maps, gradient = (features.as_map(t.detach()) for t in (features.value, gradient))  # 2 × (C, h, w)
    cam = (gradient.mean((1, 2), keepdim=True) * maps).sum(0).clamp(min=0)  # (h, w)
    return cam / cam.max().clamp(min=torch.finfo(cam.dtype).tiny)


class _LastFeatures:
    """Runs a network, keeps its last feature map, and converts it to (C, h, w)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.value: Tensor | None = None
        self.size: tuple[int, int] | None = None  # of tokens
        self.is_nhwc = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def run(self, image: Tensor) -> Tensor:
        """Return the logits for an image (1, C, H, W), and keep the feature map in `value`."""
        layers = [module for module in self.model.modules() if isinstance(module, ReducedACmix)]
        if layers:
            handle = layers[-1].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        else:
            name = self._module_name()
            if name is None:
                return self.model(image)  # type: ignore[no-any-return]
            handle = self.model.get_submodule(name).register_forward_hook(self._keep_output)
        try:
            return self.model(image)  # type: ignore[no-any-return]
        finally:
            handle.remove()

    def as_map(self, features: Tensor) -> Tensor:
        """Return features, or their gradient, as (C, h, w)."""
        if self.size is not None:
            h, w = self.size
            return features[0, features.shape[1] - h * w :].T.unflatten(1, (h, w))  # type: ignore[no-any-return]
        return features[0].permute(2, 0, 1) if self.is_nhwc else features[0]

    def _module_name(self) -> str | None:
        """Return the name of the module that computes the last feature map, or None."""
        info: Any = getattr(self.model, "feature_info", None)
        info = getattr(info, "info", info)  # timm has its own class for lists of feature maps
        name = info[-1].get("module") if info else None
        if name in dict(self.model.named_modules()):
            return str(name)
        swapped = [name for name, layer in self.model.named_modules() if isinstance(layer, ACmix2d)]
        return swapped[-1] if swapped else None

    def _keep_input(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.value, self.size = forward_inputs(layer, args, kwargs)
        return (self.value.clone(), self.size), {}

    def _keep_output(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.dim() != 4:
            return None
        self.value = output
        return output.clone()  # an activation behind it may work in place
