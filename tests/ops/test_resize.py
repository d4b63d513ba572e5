import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.ops.resize import interpolation_matrices, interpolation_matrix, resize_bilinear, shrink


def slow_resize(x: np.ndarray, size: int) -> np.ndarray:
    """The definition, one output at a time, in float64: half-pixel centres, clamped edges."""
    out = np.empty(size)
    for i in range(size):
        position = max((i + 0.5) * len(x) / size - 0.5, 0)
        low = int(position)
        high = min(low + 1, len(x) - 1)
        out[i] = x[low] * (1 - (position - low)) + x[high] * (position - low)
    return out


def test_doubling_by_hand():
    x = jnp.array([[0.0, 4.0]])
    # Outputs sit at -0.25 (clamped to 0), 0.25, 0.75 and 1.25 (clamped to 1) of the input.
    np.testing.assert_array_equal(resize_bilinear(x, 1, 4), [[0.0, 1.0, 3.0, 4.0]])


def test_halving_averages_pairs_without_antialiasing():
    x = jnp.arange(8.0)[None]
    np.testing.assert_array_equal(resize_bilinear(x, 1, 4), [[0.5, 2.5, 4.5, 6.5]])
    # A quarter of the size still reads only the two middle pixels of each four.
    np.testing.assert_array_equal(resize_bilinear(jnp.array([[9.0, 1.0, 3.0, 9.0]]), 1, 1), [[2.0]])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.randoms(use_true_random=False))
def test_equals_the_definition(size_in, size_out, random):
    x = np.array([random.uniform(-5, 5) for _ in range(size_in)])
    got = interpolation_matrix(size_in, size_out).astype(np.float64) @ x
    # float32 weights: 2^-24 each of two, times values up to 5.
    np.testing.assert_allclose(got, slow_resize(x, size_out), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300))
def test_rows_are_averages(size_in, size_out):
    matrix = interpolation_matrix(size_in, size_out)
    assert matrix.shape == (size_out, size_in)
    assert (matrix >= 0).all()
    assert ((matrix > 0).sum(axis=1) <= 2).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)  # two float32 weights


def test_axes_and_dtype():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    last = resize_bilinear(x.transpose(0, 3, 1, 2), 10, 9)
    middle = resize_bilinear(x, 10, 9, axes=(1, 2))
    assert middle.shape == (2, 10, 9, 3)
    np.testing.assert_allclose(last.transpose(0, 2, 3, 1), middle, atol=1e-6)  # order of sums
    assert resize_bilinear(x.astype(jnp.bfloat16), 10, 9, axes=(1, 2)).dtype == jnp.bfloat16


def test_gradient_is_the_transpose():
    x = jax.random.normal(jax.random.key(1), (6, 4))
    cotangent = jax.random.normal(jax.random.key(2), (3, 9))
    _, pull = jax.vjp(lambda x: resize_bilinear(x, 3, 9), x)
    expected = interpolation_matrix(6, 3).T @ np.asarray(cotangent) @ interpolation_matrix(4, 9)
    np.testing.assert_allclose(pull(cotangent)[0], expected, atol=1e-6)  # order of sums


def test_no_size_zero():
    with pytest.raises(ValueError, match="at least 1"):
        interpolation_matrix(0, 4)


@pytest.mark.parametrize("size_in", [1, 3, 7])
def test_sizes_known_at_run_time(size_in):
    sizes = np.array([1, 2, 3, 5, 7, 12], np.int32)
    found = jax.jit(interpolation_matrices, static_argnums=(0, 2))(size_in, sizes, 12)
    assert found.shape == (6, 12, size_in)
    for matrix, size in zip(found, sizes, strict=True):
        # Places of up to 6 are rounded to 5e-7.
        np.testing.assert_allclose(matrix[:size], interpolation_matrix(size_in, int(size)), atol=1e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shrinking_is_resizing(factor):
    x = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    expected = resize_bilinear(x, 16 // factor, 24 // factor, axes=(1, 2))
    np.testing.assert_allclose(shrink(x, factor), expected, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_shrunk_is_refused():
    for factor, shape in ((3, (1, 9, 9, 1)), (4, (1, 8, 6, 1))):
        with pytest.raises(ValueError, match=f"{shape[1]} x {shape[2]} cannot be shrunk by {factor}"):
            shrink(jnp.zeros(shape), factor)
