"""Names for masks: in-vocabulary and out-vocabulary logits, and their geometric ensemble (FC-CLIP section 3.3)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Classification:
    """Logits with void last, `[B,Q,K+1]`, of both classifiers, and `class_log_probs` `[B,Q,K+1]`: the logarithm of
    the ensemble's probabilities (+ 1e-8), which is what the results are made from."""

    in_vocabulary: jax.Array
    out_vocabulary: jax.Array
    class_log_probs: jax.Array


def normalize(x: Float[Array, "*A E"]) -> Float[Array, "*A E"]:
    """Unit length along the last axis; a zero vector stays zero."""
    # Not through the norm: its gradient at a zero vector is NaN.
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def class_logits(
    embeddings: Float[Array, "B Q E"],
    rows: Float[Array, "S E"],
    void: Float[Array, "1 E"],
    logit_scale: Float[Array, ""],
    synonym_to_class: Int[Array, " S"],
    num_classes: int,
) -> Float[Array, "B Q K1"]:
    """Cosine with each synonym's row times `min(exp(logit_scale), 100)`; a class takes its best synonym.

    Args:
        rows: unit text embeddings, one a synonym, the synonyms of a class side by side.
        void: the learned embedding of "no object", normalised here, last in the result.
        synonym_to_class: class of each row, ascending, every class present.
    """
    scale = jnp.minimum(jnp.exp(logit_scale), 100.0)
    texts = jnp.concatenate([rows, normalize(void)])
    logits = scale * jnp.einsum("bqe,se->sbq", normalize(embeddings), texts, precision=lax.Precision.HIGHEST)
    best = jax.ops.segment_max(logits[:-1], synonym_to_class, num_segments=num_classes, indices_are_sorted=True)
    return jnp.concatenate([best, logits[-1:]]).transpose(1, 2, 0)


def geometric_ensemble(
    in_vocabulary: Float[Array, "B Q K1"],
    out_vocabulary: Float[Array, "B Q K1"],
    seen: Bool[Array, " K"],
    *,
    alpha: float = 0.4,
    beta: float = 0.8,
    valid: Bool[Array, "B Q"] | None = None,
) -> Float[Array, "B Q K1"]:
    """`p_in^(1-a) p_out^a`, a = `alpha` for classes seen in training and `beta` for others, renormalised.

    The void probability is the in-vocabulary one. Computed on logarithms, which is the same function without the
    reference's `log(0)` where a probability underflows. With `valid` the out-vocabulary part counts only for
    masks that cover a cell of the dense map (the reference's ENSEMBLE_ON_VALID_MASK, used with ResNets).

    Returns:
        `log([p * (1 - p_void), p_void] + 1e-8)`.
    """
    log_in = jax.nn.log_softmax(in_vocabulary[..., :-1], axis=-1)
    log_out = jax.nn.log_softmax(out_vocabulary[..., :-1], axis=-1)
    share = jnp.where(seen, alpha, beta)
    if valid is not None:
        share = share * valid[..., None]
    mixed = jax.nn.softmax((1 - share) * log_in + share * log_out, axis=-1)
    void = jax.nn.softmax(in_vocabulary, axis=-1)[..., -1:]
    return jnp.log(jnp.concatenate([mixed * (1 - void), void], axis=-1) + 1e-8)
