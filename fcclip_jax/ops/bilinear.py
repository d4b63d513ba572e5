"""The four corners of a bilinear sample: shared by deformable attention and point sampling."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def corners(
    locations: Float[Array, "*A 2"],
    height: int | Int[Array, ""],
    width: int | Int[Array, ""],
    row_length: int | None = None,
) -> tuple[Int[Array, "*A 4"], Float[Array, "*A 4"]]:
    """Flat indices (row by row) and weights of the four pixels around points of a map.

    Points are `(x, y)`, 0 and 1 being the map's outer edges, so pixel centres lie at half integers / size. Corners
    outside the map get weight 0 and the index of the nearest pixel (zero padding, `align_corners=False`). The map may
    be stored in the corner of a larger one, whose rows have `row_length` pixels.
    """
    row_length = width if row_length is None else row_length
    x = locations[..., 0] * width - 0.5
    y = locations[..., 1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    right_share, bottom_share = x - left, y - top
    left, top = left.astype(jnp.int32), top.astype(jnp.int32)
    indices, weights = [], []
    for dy, y_share in ((0, 1 - bottom_share), (1, bottom_share)):
        for dx, x_share in ((0, 1 - right_share), (1, right_share)):
            column, row = left + dx, top + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weights.append(jnp.where(inside, x_share * y_share, 0.0))
            indices.append(jnp.clip(row, 0, height - 1) * row_length + jnp.clip(column, 0, width - 1))
    return jnp.stack(indices, -1), jnp.stack(weights, -1)
