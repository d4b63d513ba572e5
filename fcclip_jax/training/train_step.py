"""One optimisation step: a plain `jax.jit` with shardings, over trainable parameters alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from fcclip_jax.data.transforms import MEAN, STD
from fcclip_jax.losses.criterion import CriterionConfig, Draw, Normalizer, Targets, criterion, random_draw
from fcclip_jax.ops.linear_assignment import Solver, linear_assignment
from fcclip_jax.training.sharding import BATCH, batch_sharding, replicated, shard_like_parameters
from fcclip_jax.training.train_state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# What a step needs of a batch, and what it only counts.
INPUTS = ("image", "ids", "labels", "valid")
COUNTS = ("dropped_segments", "skipped_images")


def normalize_images(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """The same function as data.transforms.normalize, on the device: a quarter of the bytes travel."""
    return (images.astype(jnp.float32) - MEAN) / STD


def make_loss(
    graphdef: nnx.GraphDef,
    config: CriterionConfig,
    mesh: Mesh,
    *,
    solver: Solver | None = None,
) -> Callable[..., tuple[jax.Array, Metrics]]:
    """`loss(params, frozen, batch, text, draw, normalizer) -> (total, terms)`.

    `batch` holds `image` uint8 `[B,H,W,3]`, `ids` `[B,H,W]`, `labels` `[B,N]` and `valid` `[B,N]`; `text` holds `rows`
    `[S,E]` and `synonym_to_class` `[S]`, and its `num_classes` is static, the length of `text["classes"]`.
    """

    def assign(cost: Array, valid: Array) -> Array:
        # Every device solves its own images.
        solve = jax.shard_map(
            lambda c, v: linear_assignment(c, v, solver=solver),
            mesh=mesh,
            in_specs=(BATCH, BATCH),
            out_specs=BATCH,
            check_vma=False,
        )
        return solve(cost, valid)

    def loss(
        params: nnx.State,
        frozen: nnx.State,
        batch: Batch,
        text: dict[str, Any],
        draw: Draw,
        normalizer: Normalizer | None = None,
    ) -> tuple[jax.Array, Metrics]:
        model = nnx.merge(graphdef, params, frozen)
        decoder = model(normalize_images(batch["image"])).decoder
        rows, classes = text["rows"], text["synonym_to_class"]
        count = text["classes"].shape[0]
        logits = [model.in_vocabulary_logits(x, rows, classes, count) for x in decoder.class_embeds]
        targets = Targets(batch["ids"].astype(jnp.int32), batch["labels"], batch["valid"])
        return criterion(logits, decoder.masks, targets, draw, assign, config, normalizer)

    return loss


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
    frozen: nnx.State,
    config: CriterionConfig,
    *,
    accumulate: int = 1,
    average_decay: float = 0.0,
    solver: Solver | None = None,
) -> Callable[[TrainState, nnx.State, Batch, dict[str, Any], int], tuple[TrainState, Metrics]]:
    """The compiled step, `step(state, frozen, batch, text, number)`, where `number` counts the steps before it. The old
    state's buffers are reused for the new one.

    The batch is worked off in `accumulate` parts whose gradients add up to the whole batch's, exactly: the sums are
    divided by the whole batch's counts, and an image draws the same points in any part.

    A step whose loss or gradient is not finite leaves the state as it was, its number too, and says so in the metric
    `finite`. Steps that were sent off after it do nothing either, because the state is not at their number: the
    caller may look at `finite` late and still finds the last good state.

    Args:
        state: a state to take shapes and shardings from, as `frozen` is.
        average_decay: of the moving average of the parameters, 0 for none.
    """
    loss = make_loss(graphdef, config, mesh, solver=solver)

    def gradients(params: nnx.State, frozen: nnx.State, batch: Batch, text: dict[str, Any], key: Array):
        queries = params["transformer_decoder"]["query_feat"][...].shape[0]
        normalizer = Normalizer.of(batch["valid"], queries, config)

        def of_part(number: int | Array, images: Batch):
            draw = random_draw(key, number, accumulate)
            return jax.value_and_grad(loss, has_aux=True)(params, frozen, images, text, draw, normalizer)

        if accumulate == 1:
            return of_part(0, batch)
        # Image i goes to part i % accumulate, so that every device keeps its own images in every part.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        parts = lax.with_sharding_constraint(parts, NamedSharding(mesh, PartitionSpec(None, *BATCH)))
        numbered = (jnp.arange(accumulate), parts)
        shapes = jax.eval_shape(of_part, *jax.tree.map(lambda x: x[0], numbered))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, of_part(*part)), None), zero, numbered)[0]

    def step(state: TrainState, frozen: nnx.State, batch: Batch, text: dict[str, Any], number: Array):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        images = {k: batch[k] for k in INPUTS}
        (total, terms), grads = gradients(state.params, frozen, images, text, key)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = optax.incremental_update(params, average, 1 - average_decay)
        proposed = (state.step + 1, params, opt_state, average)
        current = (state.step, state.params, state.opt_state, state.average)
        good = finite & (state.step == number)
        new = jax.tree.map(lambda new, old: jnp.where(good, new, old), proposed, current)
        metrics = {"loss": total, **terms, "grad_norm": norm, "finite": finite, "segments": batch["valid"].sum()}
        metrics["images_without_segments"] = (~batch["valid"].any(axis=-1)).sum()
        metrics |= {name: batch[name].sum() for name in COUNTS if name in batch}
        return TrainState(*new, state.key), metrics

    whole, split = replicated(mesh), batch_sharding(mesh)
    state_shardings = shard_like_parameters(mesh, state)
    return jax.jit(
        step,
        in_shardings=(state_shardings, shard_like_parameters(mesh, frozen), split, whole, whole),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )
