import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.ops import row_parts
from fcclip_jax.ops.row_parts import in_row_parts


def mix(rows, parameters):
    x, y = rows
    return x + jnp.tanh(y @ parameters["first"]) @ parameters["second"]


def inputs(count, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    rows = (jax.random.normal(keys[0], (count, 3)), jax.random.normal(keys[1], (count, 4)))
    return rows, {"first": jax.random.normal(keys[2], (4, 9)), "second": jax.random.normal(keys[3], (9, 3))}


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 40), part=st.integers(1, 12))
def test_parts_make_the_whole(count, part):
    rows, parameters = inputs(count, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_parts, "_ROWS", part)
        got = row_parts._in_parts(mix, rows, parameters)
    # The order of sums may differ with the number of rows in a product.
    np.testing.assert_allclose(got, mix(rows, parameters), rtol=1e-5, atol=1e-6)


def test_what_is_wide_is_never_whole_on_a_cpu():
    rows, parameters = inputs(5000)
    text = jax.jit(lambda *args: in_row_parts(mix, *args)).lower(rows, parameters).as_text()
    assert "1000x9" in text and "5000x9" not in text


def test_gradients_are_those_of_the_function():
    rows, parameters = inputs(2500)
    loss = lambda call: lambda *args: jnp.sum(call(*args) ** 2)  # noqa: E731
    got = jax.grad(loss(lambda *args: in_row_parts(mix, *args)), argnums=(0, 1))(rows, parameters)
    expected = jax.grad(loss(mix), argnums=(0, 1))(rows, parameters)
    # The loss's own value comes from the parts, and with it the gradient's rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), got, expected)
