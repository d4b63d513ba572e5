"""The training loss: class, mask and dice terms of every prediction of the decoder (Mask2Former, section 3.3)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.losses.matcher import matching_cost
from fcclip_jax.ops.point_sampling import sample_maps, sample_segments

Draw = Callable[[int, Literal["matcher", "candidates", "uniform"], tuple[int, ...]], Array]
Assign = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class CriterionConfig:
    """Weights of the terms, and the points that stand for masks. Points are drawn `oversample` times as often as
    needed; the `important` share is the most uncertain of these, the rest is drawn uniformly."""

    points: int = 12544
    oversample: float = 3.0
    important: float = 0.75
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, static in shape.

    `ids` int32 `[B,H,W]`: the row of `labels` that a pixel belongs to, -1 for none; `labels` int32 `[B,N]`; `valid`
    bool `[B,N]`: which rows are segments. A segment that the crop emptied stays valid.
    """

    ids: jax.Array
    labels: jax.Array
    valid: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normalizer:
    """What the sums are divided by, of a whole batch: `segments`, their number (at least 1), and `class_weight`, the
    sum of the class term's weights. Known before any matching, so a batch may be worked off in parts."""

    segments: jax.Array
    class_weight: jax.Array

    @classmethod
    def of(cls, valid: Bool[Array, "B N"], queries: int, config: CriterionConfig) -> "Normalizer":
        """Of a batch with these segments, when each of `queries` answers for at most one."""
        count = valid.sum(axis=-1).astype(jnp.float32)
        matched = jnp.minimum(count, queries)
        weight = jnp.sum(matched + config.no_object_weight * (queries - matched))
        # Without a segment and with no weight on void, the weighted mean is of nothing: zero, as its sum is.
        return cls(jnp.maximum(count.sum(), 1.0), jnp.where(weight > 0, weight, 1.0))


def random_draw(key: Array, images: Int[Array, " B"]) -> Draw:
    """Uniform numbers in [0, 1), anew for every layer, purpose and image. `images` are the images' numbers in the whole
    batch, so what an image draws does not depend on how the batch is split."""
    purposes = ("matcher", "candidates", "uniform")

    def draw(layer: int, purpose: str, shape: tuple[int, ...]) -> Array:
        here = jax.random.fold_in(key, layer * len(purposes) + purposes.index(purpose))
        keys = jax.vmap(lambda i: jax.random.fold_in(here, i))(images)
        return jax.vmap(lambda k: jax.random.uniform(k, shape[1:]))(keys)

    return draw


def match(
    logits: Sequence[Float[Array, "B Q K1"]],
    masks: Sequence[Float[Array, "B Q h w"]],
    targets: Targets,
    draw: Draw,
    assign: Assign,
    config: CriterionConfig,
) -> list[Int[Array, "B N"]]:
    """For each prediction the query of each segment, -1 for none. No gradient."""
    costs = []
    for layer, (class_logits, mask_logits) in enumerate(zip(logits, masks, strict=True)):
        points = draw(layer, "matcher", (targets.labels.shape[0], config.points, 2))
        weights = (config.class_weight, config.mask_weight, config.dice_weight)
        of_image = functools.partial(matching_cost, weights=weights)
        cost = jax.vmap(of_image)(class_logits, mask_logits, targets.ids, targets.labels, points)
        costs.append(lax.stop_gradient(cost))
    # All images and layers in one call of the solver.
    cost = jnp.stack(costs, axis=1)
    valid = jnp.broadcast_to(targets.valid[:, None], (*cost.shape[:2], cost.shape[-1]))
    assigned = assign(cost, valid)
    return [assigned[:, layer] for layer in range(len(costs))]


def class_loss(
    logits: Float[Array, "B Q K1"],
    labels: Int[Array, "B N"],
    queries: Int[Array, "B N"],
    no_object_weight: float,
) -> Float[Array, ""]:
    """Cross-entropy, void where no segment was assigned, summed with weight `no_object_weight` for void."""
    void = logits.shape[-1] - 1
    wanted = jnp.full(logits.shape[:2], void, jnp.int32)
    # Unassigned rows (-1) are sent out of bounds, where `drop` ignores them.
    place = jnp.where(queries < 0, logits.shape[1], queries)
    wanted = jax.vmap(lambda w, p, y: w.at[p].set(y, mode="drop"))(wanted, place, labels)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    loss = -jnp.take_along_axis(log_p, wanted[..., None], axis=-1)[..., 0]
    return jnp.sum(loss * jnp.where(wanted == void, no_object_weight, 1.0))


def loss_points(
    masks: Float[Array, "B N h w"],
    candidates: Float[Array, "B N R 2"],
    uniform: Float[Array, "B N U 2"],
    important: int,
) -> Float[Array, "B N P 2"]:
    """The `important` candidates of smallest |logit| for each mask, and the uniform points (PointRend)."""
    uncertainty = -jnp.abs(sample_maps(masks, candidates))
    _, best = lax.top_k(uncertainty, important)
    chosen = jnp.take_along_axis(candidates, best[..., None], axis=-2)
    return lax.stop_gradient(jnp.concatenate([chosen, uniform], axis=-2))


def mask_losses(
    masks: Float[Array, "B Q h w"],
    targets: Targets,
    queries: Int[Array, "B N"],
    candidates: Float[Array, "B N R 2"],
    uniform: Float[Array, "B N U 2"],
    config: CriterionConfig,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """BCE (mean over points) and dice (+1 smoothing) of the matched masks, summed over them."""
    matched = jnp.take_along_axis(masks.astype(jnp.float32), jnp.maximum(queries, 0)[..., None, None], axis=1)
    points = loss_points(matched, candidates, uniform, config.points - uniform.shape[-2])
    rows = jnp.arange(queries.shape[1])
    truth = jax.vmap(lambda ids, p: sample_segments(ids, rows, p))(targets.ids, points)
    x = sample_maps(matched, points)
    counted = (queries >= 0).astype(jnp.float32)
    bce = jnp.mean(jax.nn.softplus(x) - x * truth, axis=-1)
    share = jax.nn.sigmoid(x)
    dice = 1 - (2 * (share * truth).sum(-1) + 1) / (share.sum(-1) + truth.sum(-1) + 1)
    return jnp.sum(bce * counted), jnp.sum(dice * counted)


def criterion(
    logits: Sequence[Float[Array, "B Q K1"]],
    masks: Sequence[Float[Array, "B Q h w"]],
    targets: Targets,
    draw: Draw,
    assign: Assign,
    config: CriterionConfig,
    normalizer: Normalizer | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum over all predictions, and every weighted term by name.

    Terms are `loss_ce_i`, `loss_mask_i`, `loss_dice_i`, i = 0 for the prediction before the first layer; the last
    prediction's carry no number, as in the reference. Mask and dice sums are divided by the number of segments of
    the whole batch (at least 1), matched or not; the class term is a weighted mean. All in float32.

    Args:
        normalizer: of the whole batch, where this is a part of it; the parts' losses then add up to the whole's.
    """
    if normalizer is None:
        normalizer = Normalizer.of(targets.valid, masks[0].shape[1], config)
    matched = match(logits, masks, targets, draw, assign, config)
    batch, segments = targets.labels.shape
    sampled = int(config.points * config.oversample)
    uniform = config.points - int(config.important * config.points)
    terms = {}
    for layer, queries in enumerate(matched):
        suffix = "" if layer == len(matched) - 1 else f"_{layer}"
        bce, dice = mask_losses(
            masks[layer],
            targets,
            queries,
            draw(layer, "candidates", (batch, segments, sampled, 2)),
            draw(layer, "uniform", (batch, segments, uniform, 2)),
            config,
        )
        ce = class_loss(logits[layer], targets.labels, queries, config.no_object_weight)
        terms[f"loss_ce{suffix}"] = config.class_weight * ce / normalizer.class_weight
        terms[f"loss_mask{suffix}"] = config.mask_weight * bce / normalizer.segments
        terms[f"loss_dice{suffix}"] = config.dice_weight * dice / normalizer.segments
    return sum(terms.values()), terms
