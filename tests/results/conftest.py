from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden():
    """Outputs of the original program for a tiny model with 10 queries on a synthetic picture.

    Vocabularies of 150 (ade) and 133 (coco) classes; 128 x 160 pixels, or with `.pad` 110 x 150 pixels in a
    padded input of 128 x 160, asked for at 220 x 300.
    """
    with np.load(Path(__file__).parents[1] / "golden" / "results.npz") as file:
        return dict(file)
