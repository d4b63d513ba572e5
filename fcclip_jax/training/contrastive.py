"""Contrastive training of the two towers (CLIP, arXiv 2103.00020), over the global batch: image to caption, caption to
image, and image to all names at once.

Several pictures may lie on one canvas, each a part of it (`world.pairs`). What is alike must not be pushed apart: the
pictures that show the same things are each other's positives, and a picture that shows several things has all of
their names for its target.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fcclip_jax.models.clip_vision import ClipVision
from fcclip_jax.models.fcclip import Clip, FCCLIPConfig
from fcclip_jax.models.mask_classifier import normalize
from fcclip_jax.models.weights import state_from_parameters
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
from fcclip_jax.training.train_state import TrainState, advanced, newborn
from fcclip_jax.training.train_step import Metrics, normalize_images

INPUTS = ("image", "parts", "tokens", "present", "names")

# Pictures count as alike from this cosine of what they show: the same things over any stuff are, another thing is not.
_ALIKE = 0.85


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """Weights of the two losses: `names_weight` of images against all names, `captions_weight` of images against the
    captions of the batch."""

    names_weight: float = 1.0
    captions_weight: float = 0.3


def embed_parts(
    visual: ClipVision, dense: Float[Array, "B h w C"], parts: Int[Array, "B h w"], count: int
) -> Float[Array, "B P E"]:
    """Embeds the means of a map over each of `count` parts of its cells; an empty part gives the projected zero."""
    inside = jax.nn.one_hot(parts, count, dtype=dense.dtype)
    total = jnp.einsum("bhwp,bhwc->bpc", inside, dense, preferred_element_type=jnp.float32)
    return visual.project(total / jnp.maximum(inside.sum((1, 2)), 1.0)[..., None]).astype(jnp.float32)


def contrastive_loss(
    images: Float[Array, "N E"],
    captions: Float[Array, "N E"],
    present: Float[Array, "N K"],
    names: Float[Array, "K E"],
    logit_scale: Float[Array, ""],
    config: ContrastiveConfig,
    axes: tuple[str, ...] = (),
) -> tuple[jax.Array, Metrics]:
    """This device's part of the loss of the whole batch, and of its terms: the sums over devices are the loss.

    Args:
        images, captions: of this device's N pictures, unit vectors.
        present: what each picture shows, adding up to 1; all 0 for a place without a picture, which counts for
            nothing.
        names: one sentence of each class, unit vectors, the same on all devices.
        axes: of the mesh, to gather the whole batch over; none on a single device.
    """
    everyone = (lambda x: lax.all_gather(x, axes, tiled=True)) if axes else lambda x: x
    scale = jnp.minimum(jnp.exp(logit_scale), 100.0)
    real = present.sum(-1) > 0
    all_images, all_captions, all_present = everyone(images), everyone(captions), everyone(present)
    all_real = all_present.sum(-1) > 0
    count = jnp.maximum(all_real.sum(), 1)

    alike = normalize(present) @ normalize(all_present).T > _ALIKE
    target = alike / jnp.maximum(alike.sum(-1, keepdims=True), 1)

    def against(ours: Array, theirs: Array, targets: Array, open_: Array | None = None) -> Array:
        logits = scale * ours @ theirs.T
        if open_ is not None:
            logits = jnp.where(open_, logits, -1e9)
        losses = -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
        return jnp.sum(jnp.where(real, losses, 0.0)) / count

    to_captions = against(images, all_captions, target, all_real)
    to_images = against(captions, all_images, target, all_real)
    to_names = against(images, names, present)
    hit = jnp.take_along_axis(present, jnp.argmax(images @ names.T, axis=-1)[:, None], axis=-1)[:, 0] > 0
    terms = {
        "loss_captions": (to_captions + to_images) / 2,
        "loss_names": to_names,
        "named": jnp.sum(hit & real) / count,
    }
    total = config.captions_weight * terms["loss_captions"] + config.names_weight * to_names
    return total, terms


def make_contrastive_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
    config: ContrastiveConfig,
    *,
    average_decay: float = 0.0,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The compiled step, called as that of `train_step.make_train_step`, with nothing frozen and no text; a step whose
    loss or gradient is not finite leaves the state as it was.

    Args:
        graphdef: of `Clip`.
        state: a state to take shapes and shardings from.
    """
    split = parameter_specs(mesh, state.params)

    def loss(params: nnx.State, batch: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        clip: Clip = nnx.merge(graphdef, params)
        places, tokens = batch["tokens"].shape[1:]
        classes = batch["present"].shape[-1]
        dense = clip.visual(normalize_images(batch["image"])).res5
        images = embed_parts(clip.visual, dense, batch["parts"], places)
        texts = jnp.concatenate([batch["tokens"].reshape(-1, tokens), batch["names"].reshape(-1, tokens)])
        texts = normalize(clip.text(texts).astype(jnp.float32))
        captions, names = jnp.split(texts, [images.shape[0] * places])
        names = lax.all_gather(names, AXES, tiled=True)[:classes]
        images = normalize(images).reshape(captions.shape)
        present = batch["present"].reshape(-1, classes)
        return contrastive_loss(images, captions, present, names, clip.logit_scale[...], config, AXES)

    def of_own_images(params: nnx.State, batch: dict[str, jax.Array]):
        found, gradients = jax.value_and_grad(loss, has_aux=True)(gather_split(params, split), batch)
        return lax.psum(found, AXES), sum_gradients(gradients, split)

    everywhere = jax.shard_map(
        of_own_images,
        mesh=mesh,
        in_specs=(split, BATCH),
        out_specs=(REPLICATED, split),
        check_vma=False,  # sums are written out
    )

    def step(state: TrainState, frozen: Any, batch: dict[str, jax.Array], text: Any, number: Array):
        (total, terms), gradients = everywhere(state.params, {key: batch[key] for key in INPUTS})
        norm = optax.global_norm(gradients)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        new = advanced(state, gradients, optimizer, average_decay, finite & (state.step == number))
        metrics = {"loss": total, **terms, "grad_norm": norm, "finite": finite}
        metrics["pictures"] = (batch["present"].sum(-1) > 0).sum()
        return new, metrics

    whole, ours = replicated(mesh), batch_sharding(mesh)
    shardings = shard_like_parameters(mesh, state)
    return jax.jit(
        step,
        in_shardings=(shardings, whole, ours, whole, whole),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )


def init_clip(
    config: FCCLIPConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    average: bool,
    dtype: Any,
    parameters: Mapping[str, np.ndarray] | None = None,
) -> tuple[nnx.GraphDef, TrainState]:
    """`Clip`'s graph and a fresh state of all its parameters, each array created where it belongs; they are random, or
    `parameters` by name."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: Clip(config, dtype=dtype, rngs=nnx.Rngs(0))))
    given = None if parameters is None else state_from_parameters(shapes, parameters)

    def make(key: Array, params: nnx.State | None) -> TrainState:
        if params is None:
            params = nnx.state(Clip(config, dtype=dtype, rngs=nnx.Rngs(key)))
        return newborn(key, params, optimizer, average=average)

    key = jax.random.key(seed)
    born = jax.eval_shape(make, key, given)
    return graphdef, jax.jit(make, out_shardings=shard_like_parameters(mesh, born))(key, given)
