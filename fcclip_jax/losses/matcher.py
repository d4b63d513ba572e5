"""Which query answers for which segment (Mask2Former's Hungarian matcher on sampled points)."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fcclip_jax.ops.point_sampling import sample_maps_shared, sample_segments_shared


def matching_cost(
    logits: Float[Array, "Q K1"],
    masks: Float[Array, "Q h w"],
    ids: Int[Array, "H W"],
    labels: Int[Array, " N"],
    points: Float[Array, "P 2"],
    weights: tuple[float, float, float] = (2.0, 5.0, 5.0),
) -> Float[Array, "Q N"]:
    """`c (-p[class]) + m BCE + d dice` with `weights` (c, m, d), those of the loss, on P points that all masks of the
    image share; float32.

    Args:
        ids: ground truth, the row of `labels` at each pixel, -1 where there is none.
    """
    logits, masks = logits.astype(jnp.float32), masks.astype(jnp.float32)
    probability = jax.nn.softmax(logits, axis=-1)[:, labels]
    predicted = sample_maps_shared(masks, points)
    truth = sample_segments_shared(ids, labels.shape[0], points)
    # BCE against 1 is softplus(-x), against 0 softplus(x) = softplus(-x) + x: two products for all pairs.
    positive, negative = jax.nn.softplus(-predicted), jax.nn.softplus(predicted)
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    bce = (product(positive, truth.T) + product(negative, (1 - truth).T)) / points.shape[0]
    share = jax.nn.sigmoid(predicted)
    total = share.sum(axis=1)[:, None] + truth.sum(axis=1)[None]
    dice = 1 - (2 * product(share, truth.T) + 1) / (total + 1)
    class_weight, mask_weight, dice_weight = weights
    return class_weight * -probability + mask_weight * bce + dice_weight * dice
