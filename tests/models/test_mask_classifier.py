"""Names for masks: worked out by hand, and against the published formula in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.models.fcclip import VARIANTS
from fcclip_jax.models.mask_classifier import class_logits, geometric_ensemble, normalize

VOID = jnp.array([[0.0, -2.0]])


def logits(embeddings, rows, classes, count, scale=1.0):
    out = class_logits(
        jnp.asarray(embeddings, jnp.float32)[None],
        jnp.asarray(rows, jnp.float32),
        VOID,
        jnp.float32(math.log(scale)),
        jnp.asarray(classes, jnp.int32),
        count,
    )
    return np.asarray(out)[0]


def test_normalize():
    np.testing.assert_allclose(normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_a_logit_is_the_scaled_cosine_and_void_is_last():
    # Query (3, 4) has the cosines 0.6 and 0.8 with the axes, and -0.8 with void, whose length does not matter.
    out = logits([[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]], [0, 1], 2, scale=10.0)
    np.testing.assert_allclose(out, [[6.0, 8.0, -8.0]], rtol=1e-6)


def test_a_class_takes_its_best_synonym():
    rows = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]]
    out = logits([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], rows, [0, 1, 1, 1], 2)
    np.testing.assert_allclose(out, [[1.0, 0.6, 0.0], [0.0, 1.0, -1.0], [-1.0, 1.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("scale, used", [(50.0, 50.0), (100.0, 100.0), (1e4, 100.0)])
def test_the_scale_ends_at_100(scale, used):
    # float32 carries exp(log(scale)) to about 4e-7 of it.
    np.testing.assert_allclose(logits([[1.0, 0.0]], [[1.0, 0.0]], [0], 1, scale), [[used, 0.0]], rtol=2e-6)


def test_an_empty_mask_has_no_cosine():
    np.testing.assert_array_equal(logits([[0.0, 0.0]], [[1.0, 0.0]], [0], 1, 100.0), [[0.0, 0.0]])


ensemble_ = jax.jit(geometric_ensemble, static_argnames=("alpha", "beta"))


def ensemble(*arguments, **options):
    return np.asarray(ensemble_(*arguments, **options))


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def published(inside, outside, seen, alpha, beta, valid=None):
    """SPEC 5 word by word, on probabilities in float64."""
    inside, outside = (np.asarray(x, np.float64) for x in (inside, outside))
    p_in, p_out = softmax(inside[..., :-1]), softmax(outside[..., :-1])
    out = np.empty(inside.shape)
    for b, q in np.ndindex(inside.shape[:2]):
        a, c = (alpha, beta) if valid is None or valid[b, q] else (0.0, 0.0)
        mixed = np.where(seen, p_in[b, q] ** (1 - a) * p_out[b, q] ** a, p_in[b, q] ** (1 - c) * p_out[b, q] ** c)
        void = softmax(inside[b, q])[-1]
        out[b, q] = np.log(np.append(mixed / mixed.sum() * (1 - void), void) + 1e-8)
    return out


def test_the_ensemble_by_hand():
    # Logits are logarithms of probabilities: in (1/2, 1/4 | void 1/4), out (1/5, 4/5). Without void, in is (2/3, 1/3).
    inside = jnp.log(jnp.array([[[0.5, 0.25, 0.25]]]))
    outside = jnp.log(jnp.array([[[0.2, 0.8, 0.5]]]))
    found = np.exp(ensemble(inside, outside, jnp.array([True, False]), alpha=0.5, beta=1.0))[0, 0]
    first, second = math.sqrt(2 / 3 * 0.2), 0.8
    expected = [0.75 * first / (first + second), 0.75 * second / (first + second), 0.25]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("alpha, beta", [(0.4, 0.8), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("with_valid", [False, True])
def test_the_ensemble_against_the_published_formula(alpha, beta, with_valid):
    rng = np.random.default_rng(0)
    inside, outside = (rng.normal(0, 4, (2, 5, 7)).astype(np.float32) for _ in range(2))
    seen, valid = rng.random(6) < 0.5, rng.random((2, 5)) < 0.5
    assert seen.any() and not seen.all() and valid.any() and not valid.all()
    valid = valid if with_valid else None
    found = ensemble(inside, outside, seen, alpha=alpha, beta=beta, valid=valid)
    # float32 against float64; logarithms down to -18.
    np.testing.assert_allclose(found, published(inside, outside, seen, alpha, beta, valid), atol=2e-5)


def test_the_extremes_are_the_single_classifiers():
    rng = np.random.default_rng(1)
    inside, outside = (rng.normal(0, 3, (1, 4, 6)).astype(np.float32) for _ in range(2))
    for seen in (True, False):
        flags = np.full(5, seen)
        only_in = np.exp(ensemble(inside, outside, flags, alpha=0.0, beta=0.0))
        np.testing.assert_allclose(only_in, softmax(inside), atol=1e-6)
        only_out = np.exp(ensemble(inside, outside, flags, alpha=1.0, beta=1.0))
        np.testing.assert_allclose(only_out[..., -1], softmax(inside)[..., -1], atol=1e-6)
        share = only_out[..., :-1] / only_out[..., :-1].sum(-1, keepdims=True)
        np.testing.assert_allclose(share, softmax(outside[..., :-1]), atol=1e-6)


def test_masks_that_cover_no_cell_lean_on_the_decoder_alone():
    rng = np.random.default_rng(2)
    inside, outside = (rng.normal(0, 3, (1, 2, 4)).astype(np.float32) for _ in range(2))
    seen, valid = np.array([True, False, True]), np.array([[True, False]])
    found = np.exp(ensemble(inside, outside, seen, valid=valid))
    np.testing.assert_allclose(found[0, 1], softmax(inside[0, 1]), atol=1e-6)
    assert np.abs(found[0, 0] - softmax(inside[0, 0])).max() > 0.01


@pytest.mark.parametrize("alpha, beta", [(0.4, 0.8), (0.0, 1.0)])
def test_probabilities_that_underflow_give_numbers(alpha, beta):
    # Differences of 200, as the scale of 100 allows; exp(-200) is 0 in float32. Also in the gradient.
    inside = jnp.array([[[100.0, -100.0, -100.0, 100.0], [-100.0, 100.0, -100.0, -100.0]]])
    outside = -inside
    seen = jnp.array([True, False, True])

    def total(x):
        return geometric_ensemble(x, outside, seen, alpha=alpha, beta=beta).sum()

    found = ensemble(inside, outside, seen, alpha=alpha, beta=beta)
    assert np.isfinite(found).all() and np.isfinite(jax.grad(total)(inside)).all()
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, atol=1e-6)
    assert (found >= np.float32(math.log(1e-8)) - 1e-5).all()


def test_the_published_shares_are_the_default():
    assert {(c.alpha, c.beta) for c in VARIANTS.values()} == {(0.4, 0.8)}
