"""Modules with random numbers in all of their parameters, without compiling their initialisers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def filled(make, scale=0.5, seed=0):
    """What `make(rngs)` makes, every parameter drawn from a normal distribution of standard deviation `scale`; a
    variance is one more than the magnitude of that."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        drawn = scale * rng.standard_normal(x.shape)
        is_variance = any(getattr(key, "key", None) == "var" for key in path)
        return jnp.asarray(1 + np.abs(drawn) if is_variance else drawn, x.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, shapes))
