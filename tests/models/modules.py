"""Modules with random numbers in all of their parameters, without compiling their initialisers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def filled(make, scale=0.5, seed=0):
    """What `make(rngs)` makes, every parameter drawn from a normal distribution of standard deviation `scale`."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    return nnx.merge(
        graphdef, jax.tree.map(lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype), shapes)
    )
