"""The few shapes that images of all sizes are stored in, so that a program is compiled a few times and not for each
size. What is stored beyond an image does not change its result (ops/extent.py)."""

import itertools

import numpy as np
from jaxtyping import Float32

MULTIPLE = 32
# Long edge over short edge: 4:3 and 3:2 are what cameras take, and what most photos of COCO and ADE20K have.
_RATIOS = (1, 4 / 3, 3 / 2)


def round_up(size: int | float) -> int:
    """The next multiple of 32, at least 32, of a size in pixels."""
    return max(MULTIPLE, -(-int(size + 0.5) // MULTIPLE) * MULTIPLE)


def long_edges(min_size: int, max_size: int) -> list[int]:
    """The lengths that the longer edge of a bucket may have, rising, for images whose shorter edge is resized to
    `min_size` and whose longer edge has at most `max_size`: 800, 1088, 1216, 1344 for 800 and 1333."""
    shortest, longest = round_up(min(min_size, max_size)), round_up(max_size)
    doubled = itertools.takewhile(
        lambda ratio: ratio * shortest < longest, (2 ** (n / 2) * 2 for n in itertools.count())
    )
    edges = {round_up(ratio * min(min_size, max_size)) for ratio in (*_RATIOS, *doubled)}
    return sorted({edge for edge in edges if edge < longest} | {longest})


def bucket(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """The shape, `(height, width)`, for a resized image (`transforms.target_size` with the same sizes): the shorter
    edge is that of all, the longer the least of `long_edges` that holds it."""
    shortest = round_up(min(min_size, max_size))
    longest = next(edge for edge in long_edges(min_size, max_size) if edge >= max(height, width))
    return (shortest, longest) if height <= width else (longest, shortest)


def extent(height: int, width: int) -> tuple[int, int]:
    """What an image takes of its bucket, `(height, width)` in pixels: itself, padded to multiples of 32 as the
    reference pads it."""
    return round_up(height), round_up(width)


def fill(image: Float32[np.ndarray, "H W 3"], shape: tuple[int, int]) -> Float32[np.ndarray, "h w 3"]:
    """The image in the top left corner of `shape`, zeros beyond it."""
    stored = np.zeros((*shape, image.shape[2]), image.dtype)
    stored[: image.shape[0], : image.shape[1]] = image
    return stored
