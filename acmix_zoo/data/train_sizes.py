"""`TrainSizes`: train on smaller images in the first epochs, where most of the time can be saved."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import interpolate


class TrainSizes:
    """The side length of the training images in each epoch (progressive resizing).

    Images are augmented at their full size and shrunk afterwards, as whole batches and on the training device. The
    loaders, their workers and the augmentation of an image therefore do not depend on the epoch's size.

    Args:
        sizes: {first epoch: side length in pixels}, such as {0: 32, 10: 48}; epochs count from 0, and each size
            applies until the next entry. Epochs before the first entry use the full size.
        full_size: side length of the images, `image_size`.

    Raises:
        ValueError: an epoch is negative, or a size is not between 1 and `full_size`.
    """

    def __init__(self, sizes: Mapping[int, int] | None, full_size: int) -> None:
        self.sizes, self.full_size = dict(sorted((sizes or {}).items())), full_size
        for epoch, size in self.sizes.items():
            if epoch < 0 or not 1 <= size <= full_size:
                raise ValueError(
                    f"train_sizes has the entry {epoch}: {size}. Expected an epoch of 0 or more and a size from 1 to "
                    f"image_size, which is {full_size}. For larger training images, raise image_size"
                )

    def size_in_epoch(self, epoch: int) -> int:
        """Return the side length of the training images in an epoch."""
        started = [size for first, size in self.sizes.items() if first <= epoch]
        return started[-1] if started else self.full_size

    def shrink(self, images: Tensor, epoch: int) -> Tensor:
        """Shrink normalised training images to the size of an epoch: (B, 3, S, S) → (B, 3, s, s).

        Uses antialiased bilinear interpolation, as PIL does.
        """
        size = self.size_in_epoch(epoch)
        if size == self.full_size:
            return images
        return interpolate(images, (size, size), mode="bilinear", antialias=True)
