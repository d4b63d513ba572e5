"""Mask embeddings times mask features: the logit of every query at every cell (Mask2Former)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fcclip_jax.ops.platform import by_platform


def mask_logits(embed: Float[Array, "B Q D"], features: Float[Array, "B h w D"]) -> Float[Array, "B Q h w"]:
    """In float32. On CPU image by image: a product of two matrices takes less than half the time of one with a leading
    axis (144 against 56 ms at 100 queries and 200 x 304 cells)."""
    return by_platform(embed, features, cpu=_by_image, other=_at_once)


def _at_once(embed: Array, features: Array) -> Array:
    return jnp.einsum("bqd,bhwd->bqhw", embed, features, preferred_element_type=jnp.float32)


def _by_image(embed: Array, features: Array) -> Array:
    def of_image(image: tuple[Array, Array]) -> Array:
        queries, cells = image[0], image[1].reshape(-1, image[1].shape[-1])
        logits = jnp.dot(queries, cells.T, preferred_element_type=jnp.float32)
        return logits.reshape(-1, *features.shape[1:3])

    return lax.map(of_image, (embed, features))
