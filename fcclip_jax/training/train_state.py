"""What a training run carries from step to step, and how it is born: sharded, never whole on one device."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from fcclip_jax.models.fcclip import FCCLIP, FCCLIPConfig
from fcclip_jax.models.weights import OneKey
from fcclip_jax.training.optimizer import split_frozen
from fcclip_jax.training.sharding import place, shard_like_parameters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` int32; `params` the trainable part; `opt_state`; `average` an exponential moving average of `params`, or
    None; `key` the run's random key, the same at all steps (a step folds its number in)."""

    step: jax.Array
    params: nnx.State
    opt_state: Any
    average: nnx.State | None
    key: jax.Array


def newborn(key: jax.Array, params: nnx.State, optimizer: optax.GradientTransformation, *, average: bool) -> TrainState:
    """The state before the first step, of given parameters; `average` of them is kept where asked for."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params) if average else None,
        key=jax.random.key_data(jax.random.fold_in(key, 1)),
    )


def advanced(
    state: TrainState,
    gradients: nnx.State,
    optimizer: optax.GradientTransformation,
    average_decay: float,
    good: Bool[Array, ""],
) -> TrainState:
    """The state after a step of the optimizer where the step is `good`, else the same, its number too. `average_decay`:
    of the moving average, where the state has one."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        average = optax.incremental_update(params, average, 1 - average_decay)
    proposed = (state.step + 1, params, opt_state, average)
    current = (state.step, state.params, state.opt_state, state.average)
    return TrainState(*jax.tree.map(lambda new, old: jnp.where(good, new, old), proposed, current), state.key)


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """How the model computes: `dtype` of towers and transformer decoder; `remat` recomputes decoder layers. With
    `fine_tune` the image tower is trainable too."""

    dtype: Any = jnp.float32
    remat: bool = False
    fine_tune: bool = False


def abstract_model(config: FCCLIPConfig, options: ModelOptions) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """(graphdef, trainable shapes, frozen shapes) of the model without its text tower."""
    model = nnx.eval_shape(lambda: _build(config, options, OneKey(0)))
    graphdef, state = nnx.split(model)
    return graphdef, *split_frozen(state, fine_tune=options.fine_tune)


def _build(config: FCCLIPConfig, options: ModelOptions, rngs: nnx.Rngs) -> FCCLIP:
    return FCCLIP(config, with_text=False, remat=options.remat, dtype=options.dtype, rngs=rngs)


def init_state(
    config: FCCLIPConfig,
    options: ModelOptions,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int = 0,
    average: bool = False,
    params: nnx.State | None = None,
) -> TrainState:
    """A fresh state, each array created where it belongs.

    Args:
        params: start from these trainable parameters instead of random ones; what is not among them stays random.
    """

    def make(key, given) -> TrainState:
        params, _ = split_frozen(nnx.state(_build(config, options, nnx.Rngs(key))), fine_tune=options.fine_tune)
        if given is not None:
            params = nnx.merge_state(params, given)
        return newborn(key, params, optimizer, average=average)

    key = jax.random.key(seed)
    shapes = jax.eval_shape(make, key, params)
    return jax.jit(make, out_shardings=shard_like_parameters(mesh, shapes))(key, params)


def abstract_state(params: nnx.State, optimizer: optax.GradientTransformation, *, average: bool = False) -> TrainState:
    """The shapes of a state, from those of the trainable parameters."""
    make = lambda params: newborn(jax.random.key(0), params, optimizer, average=average)  # noqa: E731
    return jax.eval_shape(make, params)


def place_frozen(frozen: nnx.State, mesh: Mesh, dtype: Any | None = None) -> nnx.State:
    """Puts the frozen towers on the mesh, by the same rules as parameters, optionally in another dtype."""
    if dtype is not None:
        frozen = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), frozen)
    return place(frozen, shard_like_parameters(mesh, frozen))
