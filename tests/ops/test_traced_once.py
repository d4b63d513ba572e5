"""Blocks of one shape share one trace: seconds of every start at ConvNeXt-L."""

import jax
import jax.numpy as jnp
import pytest

from fcclip_jax.ops import deformable_attention as deformable
from fcclip_jax.ops import depthwise_conv as depthwise


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the shifts are what CPUs compute")
def test_blocks_of_one_shape_trace_the_shifts_once():
    kernels = [jnp.full((7, 7, 5), float(n)) for n in range(4)]

    def tower(x):
        for kernel in kernels:
            x = depthwise.depthwise_conv(x, kernel)
        return x

    jaxpr = jax.make_jaxpr(tower)(jnp.ones((1, 11, 13, 5)))
    inner = [eqn.params["jaxpr"] for eqn in jaxpr.eqns if eqn.primitive.name in ("pjit", "jit")]
    assert len(inner) == len(kernels) and all(each is inner[0] for each in inner)


def test_layers_of_one_shape_trace_the_attention_once():
    shapes = ((2, 3), (4, 6))
    value = jnp.ones((1, 30, 2, 4))
    locations, weights = jnp.full((1, 7, 2, 2, 3, 2), 0.4), jnp.full((1, 7, 2, 2, 3), 1 / 6)

    def layers(value):
        for _ in range(3):
            value = value * deformable.deformable_attention(value, locations, weights, shapes).mean()
        return value

    jaxpr = jax.make_jaxpr(layers)(value)
    inner = [e.params["jaxpr"] for e in jaxpr.eqns if e.params.get("name") == "_attend"]
    assert len(inner) == 3 and all(each is inner[0] for each in inner)
