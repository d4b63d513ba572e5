"""OpenCV's resizing, to the bit: ADE20K-847 is prepared with it, and its label maps and figures depend on it."""

import numpy as np
from jaxtyping import Shaped, UInt8

_ONE = 1 << 11  # OpenCV's weights have 11 bits


def resize_linear(image: UInt8[np.ndarray, "H W *C"], height: int, width: int) -> UInt8[np.ndarray, "h w *C"]:
    """`cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)`: two taps an axis, no antialiasing."""
    left, right, across = _taps(image.shape[1], width)
    top, bottom, down = _taps(image.shape[0], height)
    across = across.reshape(-1, *[1] * (image.ndim - 2))
    down = down.reshape(-1, *[1] * (image.ndim - 1))
    wide = image.astype(np.int32)
    rows = wide[:, left] * (_ONE - across) + wide[:, right] * across
    rows >>= 4
    # Each product loses its lower 16 bits before the sum, as in OpenCV's vector instructions.
    mixed = (rows[top] * (_ONE - down) >> 16) + (rows[bottom] * down >> 16)
    return (mixed + 2 >> 2).astype(np.uint8)


def _taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new place the two old ones, and the second one's weight in units of 1 / _ONE."""
    scale = size / new_size
    place = ((np.arange(new_size) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = (place - first.astype(np.float32)).astype(np.float32)
    share[(first < 0) | (first >= size - 1)] = 0
    first = np.clip(first, 0, size - 1)
    return first, np.minimum(first + 1, size - 1), np.rint(share * np.float32(_ONE)).astype(np.int32)


def resize_nearest(labels: Shaped[np.ndarray, "H W"], height: int, width: int) -> Shaped[np.ndarray, "h w"]:
    """`cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)`: the upper left of the nearest."""
    # Not old / new: OpenCV takes the reciprocal of new / old, which may be another number.
    rows, columns = (
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64), old - 1)
        for old, new in zip(labels.shape, (height, width), strict=True)
    )
    return labels[rows[:, None], columns]
