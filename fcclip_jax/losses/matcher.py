"""Which query answers for which segment (Mask2Former's Hungarian matcher on sampled points)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fcclip_jax.ops.point_sampling import sample_maps_shared, sample_segments_shared

CLASS_COST, MASK_COST, DICE_COST = 2.0, 5.0, 5.0


def matching_cost(
    logits: Float[Array, "Q K1"],
    masks: Float[Array, "Q h w"],
    ids: Int[Array, "H W"],
    labels: Int[Array, "N"],
    points: Float[Array, "P 2"],
) -> Float[Array, "Q N"]:
    """`2 (-p[class]) + 5 BCE + 5 dice`, on P points that all masks of the image share; float32.

    Args:
        ids: ground truth, the row of `labels` at each pixel, -1 where there is none.
    """
    logits, masks = logits.astype(jnp.float32), masks.astype(jnp.float32)
    probability = jax.nn.softmax(logits, axis=-1)[:, labels]
    predicted = sample_maps_shared(masks, points)
    truth = sample_segments_shared(ids, labels.shape[0], points)
    # BCE against 1 is softplus(-x), against 0 softplus(x) = softplus(-x) + x: two products for all pairs.
    positive, negative = jax.nn.softplus(-predicted), jax.nn.softplus(predicted)
    bce = (positive @ truth.T + negative @ (1 - truth).T) / points.shape[0]
    share = jax.nn.sigmoid(predicted)
    total = share.sum(axis=1)[:, None] + truth.sum(axis=1)[None]
    dice = 1 - (2 * share @ truth.T + 1) / (total + 1)
    return CLASS_COST * -probability + MASK_COST * bce + DICE_COST * dice
