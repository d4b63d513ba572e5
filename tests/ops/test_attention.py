import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.ops import attention as attention_module
from fcclip_jax.ops.attention import _at_once, _by_head, attention
from fcclip_jax.ops.mask_logits import _at_once as mask_logits_at_once
from fcclip_jax.ops.mask_logits import _by_image, mask_logits


def inputs(blocked, batch=2, heads=3, queries=5, keys=11, width=4):
    keys_ = jax.random.split(jax.random.key(0), 4)
    shapes = ((batch, heads, n, width) for n in (queries, keys, keys))
    arrays = tuple(jax.random.normal(key, shape) for key, shape in zip(keys_, shapes, strict=False))
    shape = {"none": None, "one for all": (queries, keys), "each its own": (batch, queries, keys)}[blocked]
    if shape is None:
        return arrays
    return *arrays, jax.random.bernoulli(keys_[3], 0.6, shape).at[..., 0].set(False)


def slow(query, key, value, blocked=None):
    """The definition in float64, one pair of query and head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros((query.shape[0], query.shape[2], query.shape[1], value.shape[3]))
    for b, m, q in np.ndindex(query.shape[:3]):
        weights = np.exp(key[b, m] @ query[b, m, q])
        if blocked is not None:
            weights = weights * ~np.asarray(blocked)[(b, q) if blocked.ndim == 3 else q]
        out[b, q, m] = weights @ value[b, m] / weights.sum()
    return out


@pytest.mark.parametrize("formulation", [_at_once, _by_head])
@pytest.mark.parametrize("blocked", ["none", "one for all", "each its own"])
def test_equals_the_definition(formulation, blocked):
    arrays = inputs(blocked)
    np.testing.assert_allclose(formulation(*arrays), slow(*arrays), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocked", ["none", "each its own"])
def test_both_formulations_have_one_gradient(blocked):
    *arrays, last = inputs(blocked)
    moving, rest = (arrays, (last,)) if blocked != "none" else ([*arrays, last], ())

    def gradient(formulation):
        return jax.grad(lambda moving: jnp.sum(formulation(*moving, *rest) ** 2))(tuple(moving))

    for got, expected in zip(gradient(_by_head), gradient(_at_once), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_large_ones_go_head_by_head_on_a_cpu(monkeypatch):
    arrays = inputs("each its own")
    count = lambda: jax.jit(attention).lower(*arrays).as_text().count("stablehlo.while")  # noqa: E731
    assert count() == 0
    monkeypatch.setattr(attention_module, "_MANY", 1)
    jax.clear_caches()
    assert count() == 2  # over images, over heads


def test_mask_logits():
    embed, features = (
        jax.random.normal(jax.random.key(0), (2, 3, 4)),
        jax.random.normal(jax.random.key(1), (2, 5, 6, 4)),
    )
    expected = np.einsum("bqd,bhwd->bqhw", np.asarray(embed, np.float64), np.asarray(features, np.float64))
    for formulation in (mask_logits, mask_logits_at_once, _by_image):
        np.testing.assert_allclose(formulation(embed, features), expected, rtol=1e-5, atol=1e-5)
