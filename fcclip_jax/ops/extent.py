"""Images of several sizes in one batch: what of a stored map is an image's own, and what is filling.

A batch has one static shape. Each image lies in its top left corner and has its own `extent` there, `(height, width)`
in pixels, multiples of 32, so that it is a whole number of cells of every map from stride 4 to stride 32. Whatever
looks beyond a cell (convolutions, normalisation over the map, attention, pooling, interpolation) must see the border
of the extent as it would see the border of a map of that size. Then an image's result depends neither on the shape it
is stored in nor on its batch mates.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cells_inside(extent: Int[Array, "B 2"], shape: tuple[int, int], stride: int) -> Bool[Array, "B h w"]:
    """Which cells of a map of `shape`, at `stride` pixels a cell, belong to each image."""
    rows = jnp.arange(shape[0]) < extent[:, :1] // stride
    columns = jnp.arange(shape[1]) < extent[:, 1:] // stride
    return rows[:, :, None] & columns[:, None, :]


def zero_outside(x: Float[Array, "B h w C"], inside: Bool[Array, "B h w"] | None) -> Float[Array, "B h w C"]:
    """Zeros beyond each image, as a convolution pads. `None`: all of the map is the image's own."""
    return x if inside is None else jnp.where(inside[..., None], x, 0)


def repeat_edges(x: Float[Array, "B h w C"], extent: Int[Array, "B 2"] | None, stride: int) -> Float[Array, "B h w C"]:
    """The last row and column of each image repeated beyond it, as bilinear interpolation goes on over a border."""
    if extent is None:
        return x
    cells = extent // stride
    rows = jnp.minimum(jnp.arange(x.shape[1]), cells[:, :1] - 1)
    columns = jnp.minimum(jnp.arange(x.shape[2]), cells[:, 1:] - 1)
    x = jnp.take_along_axis(x, rows[:, :, None, None], axis=1, mode="promise_in_bounds")
    return jnp.take_along_axis(x, columns[:, None, :, None], axis=2, mode="promise_in_bounds")
