"""What several boxes share, against slow and obvious references."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fcclip_jax.models.layers import (
    MLP,
    MultiHeadAttention,
    PatchConv,
    gelu,
    group_norm,
    layer_norm,
    quick_gelu,
    sine_positions,
)
from fcclip_jax.models.transformer_decoder import DecoderLayer, TransformerDecoderConfig
from tests.models.modules import filled

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


# ------------------------------------------------------------------------------------------- sine positions


def test_sine_positions_by_hand():
    # One row, two columns, two channels an axis: y is the last row, an angle of 2 pi; x is pi, then 2 pi. The 1e-6 in
    # the scale moves the angles by at most 6.3e-6.
    out = np.asarray(sine_positions(1, 2, 4))
    assert out.shape == (1, 2, 4)
    np.testing.assert_allclose(out[0, 0], [0, 1, 0, -1], atol=1e-5)
    np.testing.assert_allclose(out[0, 1], [0, 1, 0, 1], atol=1e-5)


def test_the_period_grows_with_the_channel():
    # Four channels an axis: periods 1, 1, 100, 100 (10000^(2/4)); sine and cosine by turns.
    out = np.asarray(sine_positions(3, 5, 8))
    for row in range(3):
        for column in range(5):
            y, x = 2 * math.pi * (row + 1) / 3, 2 * math.pi * (column + 1) / 5
            expected = [f(angle / period) for angle in (y, x) for period in (1, 100) for f in (math.sin, math.cos)]
            np.testing.assert_allclose(out[row, column], expected, atol=1e-5)


# --------------------------------------------------------------------------------------------------- attention


def slow_attention(module, query, key, value, blocked=None):
    """One query, one head at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))

    def project(x, linear):
        return x @ np.asarray(linear.kernel[...], np.float64) + np.asarray(linear.bias[...])

    q, k, v = project(query, module.query), project(key, module.key), project(value, module.value)
    width = q.shape[-1] // module.heads
    mixed = np.zeros(q.shape)
    for b, i in np.ndindex(q.shape[:2]):
        open_ = np.ones(k.shape[1], bool) if blocked is None else ~blocked[b, i]
        for head in range(module.heads):
            part = slice(head * width, (head + 1) * width)
            scores = k[b, open_][:, part] @ q[b, i, part] / math.sqrt(width)
            weights = np.exp(scores - scores.max())
            mixed[b, i, part] = weights @ v[b, open_][:, part] / weights.sum()
    return project(mixed, module.out)


@pytest.fixture(scope="module")
def attention():
    return filled(lambda rngs: MultiHeadAttention(12, 3, rngs=rngs))


def test_attention(attention):
    query, key, value = normal(2, 4, 12), normal(2, 7, 12), normal(2, 7, 12)
    blocked = RNG.random((2, 4, 7)) < 0.6
    blocked[..., 3] = False
    assert blocked.any()
    for mask in (None, blocked):
        # float32 against float64, sums of a dozen terms of order 1.
        np.testing.assert_allclose(
            attention(query, key, value, blocked=None if mask is None else jnp.asarray(mask)),
            slow_attention(attention, query, key, value, mask),
            atol=1e-5,
        )


def test_a_mask_without_a_batch_holds_for_all(attention):
    x = normal(2, 5, 12)
    later = jnp.triu(jnp.ones((5, 5), bool), k=1)
    both = jnp.broadcast_to(later, (2, 5, 5))
    np.testing.assert_array_equal(attention(x, x, x, blocked=later), attention(x, x, x, blocked=both))
    np.testing.assert_allclose(
        attention(x, x, x, blocked=later), slow_attention(attention, x, x, x, np.asarray(both)), atol=1e-5
    )


def test_blocked_keys_have_no_say(attention):
    query, key, value = normal(1, 3, 12), normal(1, 6, 12), normal(1, 6, 12)
    blocked = jnp.zeros((1, 3, 6), bool).at[..., 4:].set(True)
    out = attention(query, key, value, blocked=blocked)
    key, value = key.at[:, 4:].set(1e3), value.at[:, 4:].set(-1e3)
    np.testing.assert_array_equal(attention(query, key, value, blocked=blocked), out)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="12 does not divide into 5 heads"):
        MultiHeadAttention(12, 5, rngs=nnx.Rngs(0))


def test_a_query_that_is_blocked_everywhere_looks_everywhere():
    config = TransformerDecoderConfig(width=8, queries=3, layers=1, heads=2, feedforward=16)
    layer = filled(lambda rngs: DecoderLayer(config, rngs=rngs))
    queries, places, memory, positions = normal(1, 3, 8), normal(3, 8), normal(1, 5, 8), normal(5, 8)
    nowhere, some = np.zeros((1, 3, 5), bool), np.zeros((1, 3, 5), bool)
    some[0, 1, :2] = True
    everywhere = some.copy()
    everywhere[0, 0] = True
    call = jax.jit(lambda blocked: layer(queries, places, memory, positions, blocked))
    nowhere, some, everywhere = map(jnp.asarray, (nowhere, some, everywhere))
    # Query 0 blocked everywhere is query 0 free; query 1 keeps its own mask.
    np.testing.assert_array_equal(call(everywhere), call(some))
    assert np.abs(np.asarray(call(some) - call(nowhere))).max() > 1e-3
    assert np.isfinite(call(jnp.ones((1, 3, 5), bool))).all()


# ---------------------------------------------------------------------------------- convolution, MLP, norms


@pytest.mark.parametrize("size", [2, 4])
def test_a_patch_convolution_is_a_strided_convolution(size):
    module = filled(lambda rngs: PatchConv(3, 5, size, rngs=rngs))
    x = normal(2, 2 * size, 3 * size, 3)
    expected = lax.conv_general_dilated(
        x, module.kernel[...], (size, size), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert expected.shape == (2, 2, 3, 5)
    np.testing.assert_allclose(module(x), expected + module.bias[...], atol=1e-5)


def test_mlp_has_relu_between_its_layers_only():
    module = filled(lambda rngs: MLP(4, 6, 3, 3, rngs=rngs))
    x = normal(5, 4)
    weights = [(np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])) for layer in module.layers]
    assert [kernel.shape for kernel, _ in weights] == [(4, 6), (6, 6), (6, 3)]
    expected = np.asarray(x)
    for number, (kernel, bias) in enumerate(weights):
        expected = expected @ kernel + bias
        expected = np.maximum(expected, 0) if number < 2 else expected
    assert (expected < 0).any()
    np.testing.assert_allclose(module(x), expected, atol=1e-5)


def test_norms_keep_their_digits_far_from_zero():
    # One-pass variance (E[x^2] - E[x]^2) of numbers near 1000 has lost all digits of a spread of 0.01 in float32.
    far = 1000 + 0.01 * normal(1, 2, 2, 64)
    exact = np.asarray(far, np.float64)
    by_channel = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    # The numbers themselves are stored to 6e-5, of a spread of 0.01.
    np.testing.assert_allclose(layer_norm(64, rngs=nnx.Rngs(0))(far), by_channel, atol=0.02)
    groups = exact.reshape(1, 4, 32, 2)
    by_group = (groups - groups.mean((1, 3), keepdims=True)) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(group_norm(64, rngs=nnx.Rngs(0))(far), by_group.reshape(far.shape), atol=0.02)


def test_gelu_is_the_exact_one():
    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    exact = 0.5 * x.astype(np.float64) * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x]))
    # float32: half a unit of the last place of 8 is 5e-7; erf itself is within one.
    np.testing.assert_allclose(gelu(jnp.asarray(x)), exact, atol=1.5e-6)
    # In bfloat16 only input and result are rounded: 8 bits.
    rounded = jnp.asarray(x, jnp.bfloat16)
    wide = gelu(rounded.astype(jnp.float32))
    np.testing.assert_allclose(gelu(rounded).astype(np.float32), wide, rtol=2**-8, atol=1e-6)


def test_quick_gelu_is_a_sigmoid():
    x = np.linspace(-6, 6, 1001).astype(np.float32)
    expected = x.astype(np.float64) / (1 + np.exp(-1.702 * x.astype(np.float64)))
    np.testing.assert_allclose(quick_gelu(jnp.asarray(x)), expected, rtol=1e-6, atol=1e-6)
    # Far from the other one: 0.02 at its worst.
    assert 0.01 < np.abs(quick_gelu(jnp.asarray(x)) - gelu(jnp.asarray(x))).max() < 0.03
