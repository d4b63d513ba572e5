"""The mean of a feature map over the pixels of each mask (FC-CLIP section 3.2; reference `MaskPooling`)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


def mask_pooling(
    features: Float[Array, "B h w C"], masks: Float[Array, "B Q h w"], within: Bool[Array, "B h w"] | None = None
) -> tuple[Float[Array, "B Q C"], Bool[Array, "B Q"]]:
    """Pools `features` where the mask logit is positive, and `within` too where that is given.

    No gradient flows through the masks: the comparison has none. The sum is divided afterwards, so the weights
    stay 0 and 1; 1e-8 keeps an empty mask at the zero vector.

    Returns:
        the means `[B,Q,C]`, and whether each mask has a positive pixel `[B,Q]`.
    """
    positive = masks > 0 if within is None else (masks > 0) & within[:, None]
    inside = positive.astype(features.dtype)
    total = jnp.einsum(
        "bqhw,bhwc->bqc", inside, features, preferred_element_type=jnp.float32, precision=lax.Precision.HIGHEST
    )
    area = lax.stop_gradient(jnp.sum(inside, axis=(-2, -1), dtype=jnp.float32))
    return total / (area + 1e-8)[..., None], area > 0
