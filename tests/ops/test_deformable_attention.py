import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fcclip_jax.ops.deformable_attention import deformable_attention, deformable_attention_by_tap

SHAPES = ((2, 3), (4, 5))


def slow_attention(value, locations, weights, shapes):
    """The definition, one point at a time: bilinear with zeros outside, pixel centres at half integers."""
    batch, _, heads, width = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = np.zeros((batch, queries, heads, width))
    starts = np.cumsum([0] + [h * w for h, w in shapes])
    for b, q, m, level, p in np.ndindex(batch, queries, heads, len(shapes), points):
        h, w = shapes[level]
        x = float(locations[b, q, m, level, p, 0]) * w - 0.5
        y = float(locations[b, q, m, level, p, 1]) * h - 0.5
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < h and 0 <= column < w:
                    share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[b, q, m, level, p]
                    out[b, q, m] += share * value[b, starts[level] + row * w + column, m]
    return out


def random_inputs(seed, batch=2, queries=7, heads=2, points=3, width=4, spread=1.4):
    rng = np.random.default_rng(seed)
    size = sum(h * w for h, w in SHAPES)
    value = rng.standard_normal((batch, size, heads, width), dtype=np.float32)
    shape = (batch, queries, heads, len(SHAPES), points)
    locations = (rng.random((*shape, 2), dtype=np.float32) - 0.5) * spread + 0.5
    weights = rng.random(shape, dtype=np.float32)
    return jnp.asarray(value), jnp.asarray(locations), jnp.asarray(weights)


def test_by_hand():
    value = jnp.array([[1.0, 2.0, 3.0, 4.0]]).reshape(1, 4, 1, 1)
    points = jnp.array([[0.25, 0.25], [0.5, 0.5], [0.0, 0.0], [2.0, 2.0]])  # x, y in units of the map
    locations = points.reshape(1, 4, 1, 1, 1, 2)
    weights = jnp.full((1, 4, 1, 1, 1), 2.0)
    got = deformable_attention(value, locations, weights, ((2, 2),))
    # A pixel centre; the middle of all four; a corner of the map, a quarter of pixel 1; outside.
    np.testing.assert_allclose(got[0, :, 0, 0], [2.0, 5.0, 0.5, 0.0], rtol=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3, 7, 16]))
def test_equals_the_definition(seed, chunks):
    value, locations, weights = random_inputs(seed)
    got = deformable_attention(value, locations, weights, SHAPES, chunks=chunks)
    expected = slow_attention(*map(np.asarray, (value, locations, weights)), SHAPES)
    # float32 sums of 6 points x 4 corners; bilinear weights carry the rounding of x * w - 0.5.
    np.testing.assert_allclose(got, expected, atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from([1, 2]))
def test_tap_by_tap_equals_the_definition(seed, batch):
    value, locations, weights = random_inputs(seed, batch=batch)
    got = deformable_attention_by_tap(value, locations, weights, SHAPES)
    expected = slow_attention(*map(np.asarray, (value, locations, weights)), SHAPES)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("sizes", [None, [[[1, 3], [3, 4]], [[2, 2], [4, 5]]]])
def test_tap_by_tap_is_the_same_function_with_the_same_gradients(sizes):
    inputs = random_inputs(8)
    sizes = None if sizes is None else jnp.array(sizes)
    toward = jnp.asarray(np.random.default_rng(1).standard_normal((2, 7, 2, 4), dtype=np.float32))

    def gathered(*args):
        return jnp.sum(toward * deformable_attention(*args, SHAPES, sizes=sizes))

    def by_tap(*args):
        return jnp.sum(toward * deformable_attention_by_tap(*args, SHAPES, sizes))

    expected = jax.value_and_grad(gathered, (0, 1, 2))(*inputs)
    for found in (
        jax.value_and_grad(by_tap, (0, 1, 2))(*inputs),
        jax.jit(jax.value_and_grad(by_tap, (0, 1, 2)))(*inputs),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)  # order of sums


def test_chunks_do_not_change_values_or_gradients():
    inputs = random_inputs(3)

    def loss(chunks):
        return lambda *args: jnp.sum(jnp.sin(deformable_attention(*args, SHAPES, chunks=chunks)))

    whole = jax.value_and_grad(loss(1), (0, 1, 2))(*inputs)
    parts = jax.value_and_grad(loss(4), (0, 1, 2))(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)  # order of sums


def test_gradients():
    with jax.enable_x64(True):
        value, locations, weights = (jnp.asarray(x, jnp.float64) for x in random_inputs(5, batch=1, queries=3))
        op = lambda *args: deformable_attention(*map(jnp.asarray, args), SHAPES)  # noqa: E731
        check_grads(op, (value, locations, weights), order=1, modes=["rev"])


def test_levels_must_fit():
    value, locations, weights = random_inputs(0)
    with pytest.raises(ValueError, match="do not make up"):
        deformable_attention(value, locations, weights, ((2, 3), (4, 4)))
    with pytest.raises(ValueError, match="do not make up"):
        deformable_attention_by_tap(value, locations, weights, ((2, 3), (4, 4)))
