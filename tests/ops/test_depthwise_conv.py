import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fcclip_jax.ops.depthwise_conv import depthwise_conv, depthwise_conv_grouped, depthwise_conv_shifts


def slow_conv(x, kernel):
    size = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    out = np.zeros_like(x, dtype=np.float64)
    for b, i, j in np.ndindex(*x.shape[:3]):
        out[b, i, j] = (padded[b, i : i + size, j : j + size] * kernel).sum(axis=(0, 1))
    return out


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 9, 3), (1, 12, 3, 4)])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_both_formulations_equal_the_definition(shape, size):
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (size, size, shape[-1]))
    expected = slow_conv(np.asarray(x), np.asarray(kernel))
    for formulation in (depthwise_conv, depthwise_conv_shifts, depthwise_conv_grouped):
        # 49 float32 products of order 1.
        np.testing.assert_allclose(formulation(x, kernel), expected, atol=1e-5)


def test_gradients():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (1, 4, 5, 2), jnp.float64)
        kernel = jax.random.normal(jax.random.key(1), (3, 3, 2), jnp.float64)
        for formulation in (depthwise_conv_shifts, depthwise_conv_grouped):
            check_grads(lambda *a, f=formulation: f(*map(jnp.asarray, a)), (x, kernel), order=1, modes=["rev"])
