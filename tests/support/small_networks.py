"""One shallow network of each family, for tests that only need its feature maps."""

FAMILIES = {
    "acmix_resnet26": {"layers": (1, 1, 1, 1)},
    "acmix_swin_t": {"depths": (1, 1, 1, 1)},
    "acmix_san10": {"layers": (1, 1, 1, 1, 1)},
    "acmix_pvt_t": {"depths": (1, 1, 1, 1)},
}
