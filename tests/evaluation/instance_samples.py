"""Random Cityscapes scenes."""

import numpy as np


def random_cityscapes(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, float, np.ndarray]]]:
    """Instance ids as in `*_gtFine_instanceIds.png`, and `(label id, score, mask)` near them and elsewhere."""
    height, width = 48, 64
    ids = np.full((height, width), rng.choice([0, 7, 11]), np.uint16)
    boxes = []
    for number in range(rng.integers(0, 9)):
        label = int(rng.choice([24, 24, 26, 33, 29, 4]))
        h, w = rng.integers(4, 30, 2)
        y, x = rng.integers(0, height - 2), rng.integers(0, width - 2)
        grouped = label == 4 or rng.random() < 0.2
        ids[y : y + h, x : x + w] = label if grouped else label * 1000 + number
        boxes.append((label, y, x, h, w))
    found = []
    for _ in range(rng.integers(0, 14)):
        if boxes and rng.random() < 0.8:
            label, y, x, h, w = boxes[rng.integers(len(boxes))]
            y, x = y + rng.integers(-1, 2), x + rng.integers(-1, 2)
        else:
            label, (y, x), (h, w) = 24, rng.integers(0, 40, 2), rng.integers(1, 30, 2)
        mask = np.zeros((height, width), bool)
        mask[max(y, 0) : y + h, max(x, 0) : x + w] = True
        # few scores, so that some are equal
        found.append((24 if label == 4 else int(label), float(rng.integers(1, 8)) / 8, mask))
    return ids, found
