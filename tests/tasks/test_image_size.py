"""The check that a network can process the images of a data module."""

import pytest
from torch import nn

from acmix_zoo.tasks.image_size import check_image_size


class TestCheckImageSize:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))

    def test_a_possible_size_is_accepted(self) -> None:
        check_image_size(self.network, (3, 4, 4), "net")
        assert self.network.training and self.network[1].num_batches_tracked == 0

    def test_an_impossible_size_names_the_option(self) -> None:
        with pytest.raises(ValueError, match=r"net cannot process images of 2 × 2 pixels .* Set --data.image_size"):
            check_image_size(self.network, (3, 2, 2), "net")
        with pytest.raises(ValueError, match=r"Remove 2 from --data.train_sizes"):
            check_image_size(self.network, (3, 2, 2), "net", is_train_size=True)
