"""What happens to an image before the model sees it (the reference's preprocessing at test time)."""

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image

# CLIP's mean and standard deviation times 255, with the reference's digits. RGB.
MEAN = np.array([122.7709383, 116.7460125, 104.09373615], np.float32)
STD = np.array([68.5005327, 66.6321579, 70.32316305], np.float32)


def target_size(height: int, width: int, min_size: int = 800, max_size: int = 1333) -> tuple[int, int]:
    """`(height, width)` with the shorter edge at `min_size`, less where the longer would pass `max_size`.

    The reference's `ResizeShortestEdge` to the bit (float64, halves rounded up), but for edges that it rounds
    to 0 and then fails on: where the longer edge is over `2 * max_size` times the shorter (1 x 5000). Here
    they are 1.

    Raises:
        ValueError: a size below 1.
    """
    if min(height, width, min_size, max_size) < 1:
        sizes = f"height {height}, width {width}, min_size {min_size}, max_size {max_size}"
        raise ValueError(f"image sizes are at least 1, these are: {sizes}")
    scale = min_size / min(height, width)
    # The shorter edge is set, not multiplied: 3 * (800 / 3) need not be 800.
    new_height, new_width = (min_size, scale * width) if height < width else (scale * height, min_size)
    longest = max(new_height, new_width)
    if longest > max_size:
        shrink = max_size / longest
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_shortest_edge(
    image: UInt8[np.ndarray, "H W 3"], min_size: int = 800, max_size: int = 1333
) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes to `target_size` by Pillow's bilinear filter, in uint8, antialiased when it shrinks.

    Raises:
        ValueError: not a uint8 `[H,W,3]` array with at least one pixel, or a size below 1.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is uint8 [H,W,3], this is {image.dtype} {list(image.shape)}")
    height, width = target_size(*image.shape[:2], min_size, max_size)
    if (height, width) == image.shape[:2]:
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def normalize(image: UInt8[np.ndarray, "*A 3"]) -> Float32[np.ndarray, "*A 3"]:
    """`(image - MEAN) / STD`, float32: equal to the reference's to the bit."""
    normalized = np.empty(image.shape, np.float32)
    _normalize_rows(np.atleast_2d(image), np.atleast_2d(normalized))
    return normalized


def normalize_and_pad(image: UInt8[np.ndarray, "h w 3"], multiple: int = 32) -> Float32[np.ndarray, "H W 3"]:
    """`pad_to_multiple(normalize(image), multiple)` without the copy between."""
    height, width = image.shape[:2]
    return normalize_into(image, (height + -height % multiple, width + -width % multiple))


def normalize_into(image: UInt8[np.ndarray, "h w 3"], shape: tuple[int, int]) -> Float32[np.ndarray, "H W 3"]:
    """`buckets.fill(normalize(image), shape)` without the copy between."""
    filled = np.zeros((*shape, 3), np.float32)
    _normalize_rows(image, filled[: image.shape[0], : image.shape[1]])
    return filled


def _normalize_rows(image: UInt8[np.ndarray, "*A w 3"], out: Float32[np.ndarray, "*A w 3"]) -> None:
    # Whole rows at a time: numpy's inner loop over three colours takes eleven times as long.
    width = image.shape[-2]
    flat = (*image.shape[:-2], 3 * width)
    rows = out.reshape(flat)  # of the same memory: a row lies in one piece
    np.subtract(image.reshape(flat), np.tile(MEAN, width), out=rows)
    np.divide(rows, np.tile(STD, width), out=rows)


def pad_to_multiple(x: Shaped[np.ndarray, "H W *A"], multiple: int = 32) -> Shaped[np.ndarray, "h w *A"]:
    """Zeros at the bottom and the right, up to the next multiple. After `normalize`, 0 is the mean colour.

    Raises:
        ValueError: `multiple` below 1.
    """
    if multiple < 1:
        raise ValueError(f"cannot pad to a multiple of {multiple}: it must be at least 1")
    bottom, right = -x.shape[0] % multiple, -x.shape[1] % multiple
    return np.pad(x, [(0, bottom), (0, right)] + [(0, 0)] * (x.ndim - 2))
