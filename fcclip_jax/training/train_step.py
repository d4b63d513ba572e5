"""One optimisation step: a plain `jax.jit` with shardings, over trainable parameters alone."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from fcclip_jax.data.transforms import MEAN, STD
from fcclip_jax.losses.criterion import CriterionConfig, Draw, Normalizer, Targets, criterion, random_draw
from fcclip_jax.ops.linear_assignment import Solver, linear_assignment
from fcclip_jax.training.sharding import (
    AXES,
    BATCH,
    REPLICATED,
    batch_sharding,
    gather_split,
    parameter_specs,
    replicated,
    shard_like_parameters,
    sum_gradients,
)
from fcclip_jax.training.train_state import TrainState, advanced

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# What a step needs of a batch, and what it only counts.
INPUTS = ("image", "ids", "labels", "valid")
COUNTS = ("dropped_segments", "skipped_images")


def normalize_images(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """The same function as data.transforms.normalize, on the device: a quarter of the bytes travel."""
    return (images.astype(jnp.float32) - MEAN) / STD


def make_loss(
    graphdef: nnx.GraphDef, config: CriterionConfig, *, solver: Solver | None = None
) -> Callable[..., tuple[jax.Array, Metrics]]:
    """`loss(params, frozen, batch, text, draw, normalizer) -> (total, terms)`.

    `batch` holds `image` uint8 `[B,H,W,3]`, `ids` `[B,H,W]`, `labels` `[B,N]` and `valid` `[B,N]`; `text` holds `rows`
    `[S,E]` and `synonym_to_class` `[S]`, and its `num_classes` is static, the length of `text["classes"]`.
    """

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
        assign = functools.partial(linear_assignment, solver=solver)
        return criterion(logits, decoder.masks, targets, draw, assign, config, normalizer)

    return loss


def make_gradients(
    loss: Callable[..., tuple[jax.Array, Metrics]],
    mesh: Mesh,
    params: nnx.State,
    frozen: nnx.State,
    config: CriterionConfig,
    accumulate: int = 1,
) -> Callable[..., tuple[tuple[jax.Array, Metrics], nnx.State]]:
    """`gradients(params, frozen, batch, text, key) -> ((total, terms), gradients)`, of the whole batch.

    Every device works on its own images with whole parameters, and what it found is added up at the end: parameters
    and gradients travel, activations never do. (Left to itself, the partitioner gathers the whole batch for top-k, and
    splits activations along the parameters' axes.)

    The batch is worked off in `accumulate` parts whose gradients add up to the whole batch's, exactly: the sums are
    divided by the whole batch's counts, and an image draws the same points in any part.

    Args:
        params, frozen: arrays or shapes, for the shardings.
    """
    split = parameter_specs(mesh, params), parameter_specs(mesh, frozen)

    def of_own_images(params, frozen, images, numbers, text, key, normalizer):
        params, frozen = gather_split(params, split[0]), gather_split(frozen, split[1])

        def of_part(images: Batch, numbers: Array):
            draw = random_draw(jax.random.wrap_key_data(key), numbers)
            return jax.value_and_grad(loss, has_aux=True)(params, frozen, images, text, draw, normalizer)

        if accumulate == 1:
            found = of_part(images, numbers)
        else:
            parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), (images, numbers))
            shapes = jax.eval_shape(of_part, *jax.tree.map(lambda x: x[0], parts))
            zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            add = lambda total, part: (jax.tree.map(jnp.add, total, of_part(*part)), None)  # noqa: E731
            found, _ = lax.scan(add, zero, parts)
        return lax.psum(found[0], AXES), sum_gradients(found[1], split[0])

    everywhere = jax.shard_map(
        of_own_images,
        mesh=mesh,
        in_specs=(*split, BATCH, BATCH, REPLICATED, REPLICATED, REPLICATED),
        out_specs=(REPLICATED, split[0]),
        check_vma=False,  # sums are written out
    )

    def gradients(params: nnx.State, frozen: nnx.State, batch: Batch, text: dict[str, Any], key: Array):
        queries = params["transformer_decoder"]["query_feat"][...].shape[0]
        normalizer = Normalizer.of(batch["valid"], queries, config)
        numbers = jnp.arange(batch["valid"].shape[0])
        return everywhere(params, frozen, batch, numbers, text, jax.random.key_data(key), normalizer)

    return gradients


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

    A step whose loss or gradient is not finite leaves the state as it was, its number too, and says so in the metric
    `finite`. Steps that were sent off after it do nothing either, because the state is not at their number: the
    caller may look at `finite` late and still finds the last good state.

    Args:
        state: a state to take shapes and shardings from, as `frozen` is.
        accumulate: parts that a batch is worked off in.
        average_decay: of the moving average of the parameters, 0 for none.
    """
    loss = make_loss(graphdef, config, solver=solver)
    gradients = make_gradients(loss, mesh, state.params, frozen, config, accumulate)

    def step(state: TrainState, frozen: nnx.State, batch: Batch, text: dict[str, Any], number: Array):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        images = {k: batch[k] for k in INPUTS}
        (total, terms), grads = gradients(state.params, frozen, images, text, key)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        new = advanced(state, grads, optimizer, average_decay, finite & (state.step == number))
        metrics = {"loss": total, **terms, "grad_norm": norm, "finite": finite, "segments": batch["valid"].sum()}
        metrics["images_without_segments"] = (~batch["valid"].any(axis=-1)).sum()
        metrics |= {name: batch[name].sum() for name in COUNTS if name in batch}
        return new, metrics

    whole, split = replicated(mesh), batch_sharding(mesh)
    state_shardings = shard_like_parameters(mesh, state)
    return jax.jit(
        step,
        in_shardings=(state_shardings, shard_like_parameters(mesh, frozen), split, whole, whole),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )
