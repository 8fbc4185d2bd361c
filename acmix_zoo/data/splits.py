"""A validation split where the data have none."""

import numpy as np


def stratified(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (train, val): of each class `fraction`, rounded, validates; at least one image where there are two
    or more, and never the last one.

    Raises:
        ValueError: no class has two.
    """
    generator = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    for label in np.unique(targets):
        members = generator.permutation(np.flatnonzero(targets == label))
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held.append(members[:count])
    val = np.sort(np.concatenate(held))
    if not len(val):
        raise ValueError(
            "no class has two images, so none is left for validation; add images or a val/ folder, or set val_fraction "
            "to 0"
        )
    return np.setdiff1d(np.arange(len(targets)), val), val
