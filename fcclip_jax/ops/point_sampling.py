"""Bilinear samples at points: of mask logits, and of ground truth that stays one id map (PointRend)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fcclip_jax.ops.bilinear import corners


def sample_maps(maps: Float[Array, "*N h w"], points: Float[Array, "*N P 2"]) -> Float[Array, "*N P"]:
    """Each map at its own points `(x, y)` in [0, 1], with zeros outside."""
    height, width = maps.shape[-2:]
    index, weight = corners(points, height, width)
    flat = maps.reshape(*maps.shape[:-2], height * width)
    taps = jnp.take_along_axis(flat, index.reshape(*flat.shape[:-1], -1), axis=-1, mode="promise_in_bounds")
    return jnp.sum(taps.reshape(index.shape) * weight, axis=-1)


def sample_maps_shared(maps: Float[Array, "Q h w"], points: Float[Array, "P 2"]) -> Float[Array, "Q P"]:
    """All maps at the same points: the four corners are gathered as columns, once for all maps."""
    height, width = maps.shape[-2:]
    index, weight = corners(points, height, width)
    rows = maps.reshape(maps.shape[0], -1).T.at[index].get(mode="promise_in_bounds")
    return jnp.einsum("pcq,pc->qp", rows, weight, precision=lax.Precision.HIGHEST)


def sample_segments(
    ids: Int[Array, "H W"], segments: Int[Array, "*N"], points: Float[Array, "*N P 2"]
) -> Float[Array, "*N P"]:
    """The binary mask `ids == segments[n]` at the points of n, without ever making the mask.

    A bilinear sample of a 0/1 mask is the sum of the weights of the corners that lie inside it.
    """
    index, weight = corners(points, *ids.shape)
    return jnp.sum((ids.reshape(-1)[index] == segments[..., None, None]) * weight, axis=-1)


def sample_segments_shared(ids: Int[Array, "H W"], count: int, points: Float[Array, "P 2"]) -> Float[Array, "N P"]:
    """The masks of segments 0 to `count` - 1 at the same points."""
    index, weight = corners(points, *ids.shape)
    inside = ids.reshape(-1)[index] == jnp.arange(count)[:, None, None]
    return jnp.einsum("npc,pc->np", inside, weight, precision=lax.Precision.HIGHEST)
