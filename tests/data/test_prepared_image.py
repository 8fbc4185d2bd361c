"""A prepared image: what the network receives, and what that looks like."""

import numpy as np
import torch
from PIL import Image

from acmix_zoo import create_model
from acmix_zoo.data.prepared_image import prepare_image


def test_the_picture_is_the_tensor_before_it_was_normalised() -> None:
    model = create_model("acmix_resnet_pico.fashion_mnist", pretrained=True)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    prepared = prepare_image(Image.fromarray(pixels), model)
    assert prepared.tensor.shape == (1, 3, 32, 32) and prepared.picture.shape == (32, 32, 3)
    assert np.array_equal(prepared.picture, pixels)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))  # type: ignore[index]
    assert prepared.tensor[0].allclose((torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std, atol=1e-5)


def test_large_images_are_resized_and_cropped() -> None:
    prepared = prepare_image(Image.new("RGB", (300, 200), "red"), create_model("acmix_resnet26"))
    assert prepared.tensor.shape == (1, 3, 224, 224) and (prepared.picture == (255, 0, 0)).all()
