"""Counting the work of products: each by hand."""

import jax
import jax.numpy as jnp
from jax import lax

from fcclip_jax.training.flops import product_flops

X = jnp.ones((4, 6))


def flops(function, *args):
    return product_flops(jax.jit(function).trace(*args).jaxpr)


def test_a_product_and_a_convolution():
    assert flops(lambda x: x @ x.T, X) == 2 * 4 * 4 * 6

    def convolved(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert flops(convolved, jnp.ones((2, 5, 7, 3)), jnp.ones((3, 3, 3, 11))) == 2 * (2 * 5 * 7 * 11) * 3 * 3 * 3


def test_loops_and_branches():
    looped = flops(lambda x: lax.map(lambda _: x @ x.T, jnp.arange(5)), X)
    assert looped == 5 * flops(lambda x: x @ x.T, X)
    branched = flops(lambda x: lax.cond(x[0, 0] > 0, lambda: x @ x.T, lambda: jnp.zeros((4, 4))), X)
    assert branched == flops(lambda x: x @ x.T, X)


def test_what_nobody_asked_for_is_not_counted():
    def function(x):
        unused = x @ x.T
        also_unused = unused @ unused
        return {"asked": x.T @ x, "other": also_unused}

    assert flops(lambda x: function(x)["asked"], X) == 2 * 6 * 6 * 4
    assert flops(lambda x: jax.jit(function)(x)["asked"], X) >= 2 * 6 * 6 * 4


def test_a_program_inside_a_program_and_a_gradient():
    inner = jax.jit(lambda x: x @ x.T)
    assert flops(lambda x: inner(x) + inner(2 * x), X) == 2 * flops(inner, X)
    # To both factors: two more products of the same size.
    assert flops(jax.grad(lambda x: (x @ x.T).sum()), X) >= 2 * flops(inner, X)
