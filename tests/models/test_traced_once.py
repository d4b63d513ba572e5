"""Blocks of one shape share one trace: seconds of every start at ConvNeXt-L."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcclip_jax.models.layers import shared_trace
from fcclip_jax.ops import deformable_attention as deformable
from fcclip_jax.ops import depthwise_conv as depthwise
from fcclip_jax.ops.platform import by_platform, every_platform


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


class Layer(nnx.Module):
    """Says how often it is traced, and holds two formulations."""

    traced: ClassVar[list[int]] = []

    def __init__(self, factor):
        self.factor = nnx.Param(jnp.float32(factor))

    def __call__(self, x, *, power):
        self.traced.append(power)
        scaled = self.factor[...] * x**power
        return by_platform(scaled, cpu=lambda x: x + 1, other=lambda x: 1 + x)


def test_modules_of_one_structure_share_a_trace():
    layers = [Layer(factor) for factor in (2, 3, 5)]
    x = jnp.arange(4.0)
    Layer.traced.clear()

    def tower(x):
        for layer in layers:
            x = shared_trace(layer, x, power=1)
        return shared_trace(layers[0], x, power=2)

    np.testing.assert_array_equal(jax.jit(tower)(x), 2 * ((x * 2 + 1) * 3 * 5 + 5 + 1) ** 2 + 1)
    assert Layer.traced == [1, 2]
    # What holds one formulation alone is not taken where both are asked for.
    with every_platform():
        both = str(jax.make_jaxpr(lambda x: shared_trace(layers[0], x, power=1))(x))
    one = str(jax.make_jaxpr(lambda x: shared_trace(layers[0], x, power=1))(x))
    assert Layer.traced == [1, 2, 1] and "platform_index" in both and "platform_index" not in one


def test_each_module_has_its_own_gradient():
    layers = [Layer(factor) for factor in (2, 3)]
    graphdef, _ = nnx.split(layers[0])
    states = [nnx.split(layer)[1] for layer in layers]

    def loss(states, x):
        for state in states:
            x = shared_trace(nnx.merge(graphdef, state), x, power=1)
        return x.sum()

    gradients = jax.grad(loss)(states, jnp.ones(4))
    # (f0 x + 1) f1 + 1 at x = 1, four times: f1 to the first, f0 + 1 to the second.
    assert [float(jax.tree.leaves(gradient)[0]) for gradient in gradients] == [12, 12]
