"""Bilinear resizing with half-pixel centres and no antialiasing (the reference's `align_corners=False`)."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int


def interpolation_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "size_out size_in"]:
    """The matrix that resizes one axis: two non-zeros a row, each row sums to 1.

    Resizing is linear and separable, so chains of resizes and crops are products of these matrices.

    Raises:
        ValueError: a size below 1.
    """
    if size_in < 1 or size_out < 1:
        raise ValueError(f"cannot resize an axis of {size_in} to {size_out}: both must be at least 1")
    source = np.maximum((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5, 0.0)
    low = np.minimum(np.floor(source).astype(np.int64), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    fraction = source - low
    matrix = np.zeros((size_out, size_in))
    rows = np.arange(size_out)
    np.add.at(matrix, (rows, low), 1.0 - fraction)
    np.add.at(matrix, (rows, high), fraction)
    return matrix.astype(np.float32)


def interpolation_matrices(size_in: int, sizes: Int[Array, " B"], rows: int) -> Float[Array, "B rows size_in"]:
    """The matrices of `interpolation_matrix` to several sizes that are known only at run time, each in the first of
    `rows` rows. What stands behind them does not matter."""
    source = (jnp.arange(rows) + 0.5) * (size_in / sizes[:, None]) - 0.5
    source = jnp.clip(source, 0, size_in - 1)
    # Bilinear weights are a hat around the place that is looked up.
    return jnp.maximum(1 - jnp.abs(source[..., None] - jnp.arange(size_in)), 0)


def _resize_axis(x: Array, axis: int, size_out: int) -> Array:
    if x.shape[axis] == size_out:
        return x
    matrix = jnp.asarray(interpolation_matrix(x.shape[axis], size_out), x.dtype)
    moved = jnp.tensordot(matrix, x, axes=(1, axis), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(moved, 0, axis)


def shrink(x: Float[Array, "B H W C"], factor: int) -> Float[Array, "B h w C"]:
    """`resize_bilinear` of the two middle axes to an even fraction, without reading what it does not need: the mean of
    the middle four of every `factor` x `factor` cells.

    Raises:
        ValueError: `factor` is odd, or does not divide a side.
    """
    if factor % 2 or x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"a map of {x.shape[1]} x {x.shape[2]} cannot be shrunk by {factor}")
    low, high = factor // 2 - 1, factor // 2
    x = (x[:, low::factor] + x[:, high::factor]) / 2
    return (x[:, :, low::factor] + x[:, :, high::factor]) / 2


def resize_bilinear(
    x: Float[Array, "..."], height: int, width: int, *, axes: tuple[int, int] = (-2, -1)
) -> Float[Array, "..."]:
    """Resizes the axes (y, x) = `axes` to `height` x `width`; all other axes stay."""
    return _resize_axis(_resize_axis(x, axes[0], height), axes[1], width)
