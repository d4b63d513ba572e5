"""A window of a resized picture, without resizing the rest: equal to Pillow's whole resize, then crop, to the bit.

Pillow's own `resize(box=...)` is not that function: it rounds the box to float32, which moves the sampling points and
so now and then a pixel. Training enlarges most photos and keeps a window. Pillow resizes columns first, then rows; the
columns are left to it, for the rows that the window needs; rows are enlarged here, in Pillow's own arithmetic.
"""

import numpy as np
from jaxtyping import Int, Int16, UInt8, UInt32
from PIL import Image

# Pillow's resampling of 8-bit pictures works in fixed point with 22 bits behind the point. Here weights have two bits
# more, so that a sum fills 32 bits and the pixel is its highest byte.
_PILLOW_BITS = 22
_SHIFT = 24
_BLOCK = 16  # source rows at a time: their products stay in the second-level cache


def bilinear_window(
    image: Image.Image, size: tuple[int, int], corner: tuple[int, int], out: UInt8[np.ndarray, "H W 3"]
) -> None:
    """Fills `out` with the `[H,W]` window at `corner` (top, left) of `image` resized to `size` (height, width).

    `image` is RGB; bilinear, antialiased where it shrinks. The pixels of a row of `out` must lie side by side.
    Raises ValueError for a window that reaches outside.
    """
    (height, width), (top, left) = size, corner
    rows, columns = out.shape[:2]
    if min(top, left) < 0 or top + rows > height or left + columns > width:
        raise ValueError(f"the window [{rows},{columns}] at {corner} is not inside {size}")
    if height < image.height:
        whole = image.resize((width, height), Image.Resampling.BILINEAR)
        out[...] = np.asarray(_crop(whole, (left, top, left + columns, top + rows)))
        return
    row, weight = _taps(image.height, height, top, rows)
    low, high = int(row[0]), min(int(row[-1]) + 2, image.height)
    band = _crop(image, (0, low, image.width, high)).resize((width, high - low), Image.Resampling.BILINEAR)
    band = np.asarray(_crop(band, (left, 0, left + columns, high - low)))
    _blend_rows(band.reshape(high - low, -1), row - low, weight, _flat_rows(out))


def nearest_window(
    ids: Int16[np.ndarray, "h w"], size: tuple[int, int], corner: tuple[int, int], out: Int16[np.ndarray, "H W"]
) -> None:
    """`bilinear_window` for maps of ids: Pillow's nearest neighbour, to the bit. `size` and `corner` as there."""
    (height, width), (top, left) = size, corner
    rows = _nearest(ids.shape[0], height)[top : top + out.shape[0]]
    columns = _nearest(ids.shape[1], width)[left : left + out.shape[1]]
    band = ids[rows[0] : rows[-1] + 1].take(columns, axis=1)
    out[...] = band[rows - rows[0]]


def _nearest(old: int, new: int) -> Int[np.ndarray, " new"]:
    """The index that Pillow takes each of `new` pixels from. Asked of Pillow itself: it adds its step up from pixel to
    pixel, and the sum is not everywhere what a formula would give."""
    index = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return np.asarray(index.resize((new, 1), Image.Resampling.NEAREST))[0]


def _crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    return image if box == (0, 0, *image.size) else image.crop(box)


def _flat_rows(out: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W3"]:
    """The same memory with a row's pixels in one axis (reshape would copy where rows do not touch)."""
    rows, columns, _ = out.shape
    if out.strides[1:] != (3, 1):
        raise ValueError("the pixels of a row must lie side by side in memory")
    return np.lib.stride_tricks.as_strided(out, (rows, columns * 3), (out.strides[0], 1))


def _taps(old: int, new: int, start: int, count: int) -> tuple[Int[np.ndarray, " n"], UInt32[np.ndarray, " n"]]:
    """For `count` of `new >= old` rows from `start` on: the first of the two neighbours that it is blended from, and
    the second one's weight. At the borders, where Pillow's triangle reaches over, the one neighbour has it all."""
    centre = (start + np.arange(count) + 0.5) * (old / new)
    first = np.floor(centre - 0.5).astype(np.int64)
    second_weight = centre - first - 0.5
    first_weight = 1.0 - second_weight
    weight = np.floor(0.5 + second_weight / (first_weight + second_weight) * (1 << _PILLOW_BITS)).astype(np.uint32)
    weight[(first < 0) | (first >= old - 1)] = 0
    return np.maximum(first, 0), weight << np.uint32(_SHIFT - _PILLOW_BITS)


def _blend_rows(
    source: UInt8[np.ndarray, "n L"],
    first: Int[np.ndarray, " m"],
    weight: UInt32[np.ndarray, " m"],
    out: UInt8[np.ndarray, "m L"],
) -> None:
    """`out[i] = source[j] + weight[i] * (source[j + 1] - source[j])` with `j = first[i]`, rounded to nearest.

    uint32 throughout, modulo 2^32: the difference may be negative, the sum never is. `first` rises or stays.
    """
    count = int(first[-1]) + 1
    starts = np.searchsorted(first, np.arange(count + 1)).tolist()
    weight = weight[:, None]
    for low in range(0, count, _BLOCK):
        high = min(low + _BLOCK, count)
        base = source[low : high + 1].astype(np.uint32)
        if len(base) == high - low:  # the last row has no neighbour, and no weight on one
            base = np.concatenate([base, base[-1:]])
        step = base[1:] - base[:-1]
        base <<= _SHIFT
        base += 1 << (_SHIFT - 1)
        begin, end = starts[low], starts[high]
        blended = np.empty((end - begin, source.shape[1]), np.uint32)
        for i in range(high - low):
            rows = slice(starts[low + i], starts[low + i + 1])
            part = blended[rows.start - begin : rows.stop - begin]
            np.multiply(step[i], weight[rows], out=part)
            np.add(part, base[i], out=part)
        np.right_shift(blended, _SHIFT, out=blended)
        np.copyto(out[begin:end], blended, casting="unsafe")
