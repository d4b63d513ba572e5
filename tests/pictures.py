"""Pictures by formula."""

import numpy as np


def photo(height, width, seed=25):
    """Blocks of colour: noise would make masks of single pixels. In the default one the tiny model with formula weights
    finds six segments that overlap."""
    rng = np.random.default_rng(seed)
    small = rng.uniform(0, 255, (6, 8, 3)).astype(np.uint8)
    rows, columns = (np.arange(size) * n // size for size, n in ((height, 6), (width, 8)))
    return small[rows][:, columns]
