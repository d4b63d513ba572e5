"""Where each pixel of the photo lies in the stride-4 masks.

The reference resizes the masks to the padded network input, cuts off the padding, and resizes again to the
photo. Both steps are linear and separable, so together they are one small stencil per pixel.
"""

import copy
import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from fcclip_jax.ops.resize import interpolation_matrix

STRIDE = 4
"""Pixels of the padded network input per mask cell."""

TAPS = 3
"""Mask cells per axis that a pixel can depend on: it mixes two neighbouring network pixels, a quarter of a
cell apart, each of which mixes two neighbouring cells."""


def axis_stencil(
    cells: int, network: int, pixels: int
) -> tuple[Int[np.ndarray, " pixels"], Float[np.ndarray, "pixels taps"]]:
    """The two resizes and the cut, along one axis.

    Args:
        cells: mask cells, that is the padded network input divided by STRIDE.
        network: size of the network input without padding.
        pixels: size of the photo.

    Returns:
        the first of the `taps = min(TAPS, cells)` consecutive cells that each pixel mixes, and their weights,
        which add up to 1.

    Raises:
        ValueError: a size below 1, or a network size outside the padded one.
    """
    if not 1 <= network <= STRIDE * cells:
        raise ValueError(f"a network input of {network} pixels does not fit {cells} mask cells of {STRIDE} pixels")
    to_network = interpolation_matrix(cells, STRIDE * cells)[:network].astype(np.float64)
    matrix = interpolation_matrix(network, pixels) @ to_network
    taps = min(TAPS, cells)
    start = np.minimum(np.argmax(matrix != 0, axis=1), cells - taps)
    weights = np.take_along_axis(matrix, start[:, None] + np.arange(taps), axis=1)
    return start.astype(np.int32), weights.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class PixelRun:
    """Consecutive pixels of the photo in column-major order, the order of COCO's run lengths.

    `first`: place of its first pixel; `count`: its pixels, at most P: a short last run is filled up with
    pixel 0. `cell`: the first mask cell (row-major) of each pixel's stencil, whose cell (i, j) has the weight
    `weights_y[:, i] * weights_x[:, j]`.
    """

    first: int
    count: int
    cell: Int[np.ndarray, " P"]
    weights_y: Float[np.ndarray, "P ty"]
    weights_x: Float[np.ndarray, "P tx"]

    @property
    def places(self) -> slice:
        """Where the run lies in the flat photo."""
        return slice(self.first, self.first + self.count)


class Upsampling:
    """From masks `[h,w]` to the photo `[H,W]`, a run of pixels at a time.

    Args:
        mask_size: (h, w), at STRIDE of the padded network input.
        network_size: (height, width) of the network input without padding.
        output_size: (H, W) of the photo.
        row_length: of the masks as they are stored, where that is more than w.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        mask_size: tuple[int, int],
        network_size: tuple[int, int],
        output_size: tuple[int, int],
        row_length: int | None = None,
    ):
        self.output_size = output_size
        self.pixels = output_size[0] * output_size[1]
        self._start_y, self._weights_y = axis_stencil(mask_size[0], network_size[0], output_size[0])
        self._start_x, self._weights_x = axis_stencil(mask_size[1], network_size[1], output_size[1])
        self._row = mask_size[1] if row_length is None else row_length
        rows, columns = np.arange(self._weights_y.shape[1]), np.arange(self._weights_x.shape[1])
        self.offsets = (rows[:, None] * self._row + columns).astype(np.int32)
        """`[ty,tx]`: the stencil's cells, counted from its first."""

    def mirrored(self) -> "Upsampling":
        """The same for masks of the photo's mirror image, left and right exchanged: pixels stay those of the photo."""
        other = copy.copy(self)
        other._start_x, other._weights_x = self._start_x[::-1], self._weights_x[::-1]
        return other

    def runs(self, length: int) -> Iterator[PixelRun]:
        """Every pixel once, in runs of `length`."""
        for first in range(0, self.pixels, length):
            count = min(length, self.pixels - first)
            places = np.zeros(length, np.int64)
            places[:count] = np.arange(first, first + count)
            x, y = np.divmod(places, self.output_size[0])
            cell = self._start_y[y] * self._row + self._start_x[x]
            yield PixelRun(first, count, cell, self._weights_y[y], self._weights_x[x])


def to_image(flat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Column-major pixels `[H*W]` -> image `[H,W]`, C-contiguous."""
    return np.ascontiguousarray(flat.reshape(size[1], size[0]).T)
