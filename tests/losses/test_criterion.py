import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fcclip_jax.losses.criterion import Normalizer, Targets, class_loss, loss_points, random_draw
from tests.losses import slow_criterion as slow
from tests.losses.scenes import CONFIG, LAYERS, SHAPES, WEIGHTS, drawn, gradients, losses, make, matched, quick
from tests.losses.test_matcher import scenes

IMPORTANT = int(CONFIG.important * CONFIG.points)
CANDIDATES = int(CONFIG.oversample * CONFIG.points)


def numbers(scene):
    return jnp.arange(scene.targets.labels.shape[0])


def matching(scene):
    found = matched(scene.logits, scene.masks, scene.targets, scene.key, numbers(scene))
    return [np.asarray(queries) for queries in found]


def slow_points(scene, layer, queries):
    """`[B][N]` of the points on which a segment's mask is judged. Where two candidates are equally uncertain as far as
    float32 can tell, the example is given up."""
    candidates = drawn(scene, layer, "candidates", CANDIDATES)
    uniform = drawn(scene, layer, "uniform", CONFIG.points - IMPORTANT)
    points = []
    for b, row in enumerate(queries):
        points.append([])
        for n, q in enumerate(row):
            chosen, gap = slow.most_uncertain(scene.masks[layer][b][max(q, 0)], candidates[b, n], IMPORTANT)
            assume(gap > 1e-5)
            points[-1].append(np.concatenate([chosen, uniform[b, n]]))
    return points


def slow_losses(scene, layer, queries, points, logits=None, masks=None):
    return slow.losses(
        scene.logits[layer] if logits is None else logits,
        scene.masks[layer] if masks is None else masks,
        np.asarray(scene.targets.ids),
        np.asarray(scene.targets.labels),
        queries,
        points,
        segments=max(int(scene.targets.valid.sum()), 1),
        void_weight=CONFIG.no_object_weight,
        weights=WEIGHTS,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_terms_equal_the_definition(name):
    @settings(deadline=None, max_examples=8)
    @given(scenes(SHAPES[name]))
    def check(scene):
        (total, terms), _ = gradients(scene.logits, scene.masks, scene.targets, scene.key, numbers(scene))
        expected = {}
        for layer, queries in enumerate(matching(scene)):
            suffix = "" if layer == LAYERS - 1 else f"_{layer}"
            found = slow_losses(scene, layer, queries, slow_points(scene, layer, queries))
            expected |= {f"loss_{term}{suffix}": value for term, value in found.items()}
        assert terms.keys() == expected.keys()
        for term, value in expected.items():
            # Float32 against float64, sums of a few hundred numbers.
            assert abs(float(terms[term]) - value) <= 1e-5 * max(value, 1), term
        assert abs(float(total) - sum(expected.values())) <= 1e-5 * max(sum(expected.values()), 1)

    check()


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_equal_finite_differences(name):
    """Of the definition in float64, along random directions, with matches and points held, as no gradient goes through
    them."""

    @settings(deadline=None, max_examples=4)
    @given(scenes(SHAPES[name]))
    def check(scene):
        _, (of_logits, of_masks) = gradients(scene.logits, scene.masks, scene.targets, scene.key, numbers(scene))
        rng = np.random.default_rng(0)
        for layer, queries in enumerate(matching(scene)):
            points = slow_points(scene, layer, queries)
            for kind, gradient in (("logits", of_logits[layer]), ("masks", of_masks[layer])):
                here = getattr(scene, kind)[layer].astype(np.float64)
                direction = rng.normal(size=here.shape)
                step = 1e-5
                ahead, behind = (
                    sum(slow_losses(scene, layer, queries, points, **{kind: here + s * direction}).values())
                    for s in (step, -step)
                )
                slope = float(np.sum(np.asarray(gradient, np.float64) * direction))
                # Central differences are exact to step^2; the gradient is float32, sums of up to 300 numbers.
                assert abs(slope - (ahead - behind) / (2 * step)) <= 1e-5 * max(abs(slope), 1), (layer, kind)

    check()


def test_no_segment_anywhere():
    """Nothing to find: only "no object" is learned, no term or gradient is NaN, and masks get no gradient."""
    scene = make(SHAPES["usual"], 0, [0, 0, 0])
    found = gradients(scene.logits, scene.masks, scene.targets, scene.key, numbers(scene))
    (total, terms), (of_logits, of_masks) = found
    assert {float(terms[f"loss_{term}"]) for term in ("mask", "dice", "mask_0", "dice_0")} == {0.0}
    assert float(total) == float(terms["loss_ce"] + terms["loss_ce_0"]) > 0
    assert all(np.isfinite(g).all() and g.any() for g in of_logits)
    assert all(not g.any() for g in of_masks)
    # And with no weight on void there is nothing at all.
    config = dataclasses.replace(CONFIG, no_object_weight=0.0)
    assert float(losses(scene.logits, scene.masks, scene.targets, scene.key, numbers(scene), config=config)[0]) == 0


def test_void_has_a_tenth_of_the_weight():
    logits = jnp.zeros((1, 4, 3))  # two classes and void, all as likely: every query's cross-entropy is log 3
    queries = jnp.array([[2, -1]], jnp.int32)
    labels = jnp.array([[1, 0]], jnp.int32)
    found, gradient = quick(jax.value_and_grad(lambda x: class_loss(x, labels, queries, 0.1)))(logits)
    assert float(found) == pytest.approx((1 + 3 * 0.1) * math.log(3))
    # Only the matched query's class counts in full: its logit moves the loss ten times as much as another's.
    gradient, third = gradient[0], 1 / 3
    np.testing.assert_allclose(gradient[2], [third, third - 1, third], rtol=1e-6)
    for query in (0, 1, 3):
        np.testing.assert_allclose(gradient[query], 0.1 * np.array([third, third, third - 1]), rtol=1e-6)


def test_what_sums_are_divided_by():
    valid = jnp.array([[True, True, True], [True, False, False], [False, False, False]])
    found = Normalizer.of(valid, 2, CONFIG)
    assert float(found.segments) == 4  # all of them, also the one that two queries cannot answer for
    assert float(found.class_weight) == pytest.approx(2 + (1 + 0.1) + 2 * 0.1)
    assert float(Normalizer.of(jnp.zeros((2, 3), bool), 2, CONFIG).segments) == 1


def test_three_quarters_of_the_points_are_the_most_uncertain():
    rng = np.random.default_rng(0)
    masks = rng.normal(size=(1, 2, 6, 5)).astype(np.float32)
    candidates, uniform = rng.random((1, 2, 60, 2), np.float32), rng.random((1, 2, 5, 2), np.float32)
    found = np.asarray(loss_points(jnp.asarray(masks), jnp.asarray(candidates), jnp.asarray(uniform), 15))
    assert found.shape == (1, 2, 20, 2)
    np.testing.assert_array_equal(found[:, :, 15:], uniform)
    for n in range(2):
        expected, gap = slow.most_uncertain(masks[0, n], candidates[0, n], 15)
        assert gap > 1e-6 and {tuple(p) for p in found[0, n, :15]} == {tuple(p) for p in expected}


def test_how_many_points_are_drawn(monkeypatch):
    """With the paper's numbers: 12544 for the matcher; 37632 candidates, of which 9408 stay, and 3136 more."""
    from fcclip_jax.losses import criterion as module

    config, asked, kept = module.CriterionConfig(), {}, []
    draw = lambda layer, purpose, shape: asked.update({purpose: shape}) or jnp.zeros(shape)  # noqa: E731
    choose = module.loss_points
    monkeypatch.setattr(module, "loss_points", lambda *a: kept.append(a[3]) or choose(*a))

    def call():
        targets = Targets(jnp.zeros((1, 4, 4), jnp.int32), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
        assign = lambda cost, valid: jnp.zeros(valid.shape, jnp.int32)  # noqa: E731
        logits, masks = [jnp.zeros((1, 3, 4))], [jnp.zeros((1, 3, 4, 4))]
        return module.criterion(logits, masks, targets, draw, assign, config)

    jax.eval_shape(call)
    assert asked == {"matcher": (1, 12544, 2), "candidates": (1, 2, 37632, 2), "uniform": (1, 2, 3136, 2)}
    assert kept == [9408]


def test_parts_of_a_batch_add_up_to_the_whole():
    """As accumulation and devices part it: the images' own points, and the whole batch's counts."""
    scene = make(SHAPES["usual"], 3, [4, 0, 1])
    whole = Normalizer.of(scene.targets.valid, SHAPES["usual"].queries, CONFIG)
    (total, terms), _ = gradients(scene.logits, scene.masks, scene.targets, scene.key, numbers(scene))
    parts = []
    for b in range(3):
        one = [jax.tree.map(lambda x: x[b : b + 1], part) for part in (scene.logits, scene.masks, scene.targets)]  # noqa: B023
        parts.append(losses(*one, scene.key, jnp.array([b]), whole))
    assert sum(float(part[0]) for part in parts) == pytest.approx(float(total), rel=1e-6)
    for term, value in terms.items():
        assert sum(float(part[1][term]) for part in parts) == pytest.approx(float(value), rel=1e-6), term


@quick
def _all_draws(key, images):
    draw = random_draw(key, images)
    purposes = ("matcher", "candidates", "uniform")
    return jnp.stack([draw(layer, purpose, (images.shape[0], 2, 3, 2)) for layer in (0, 1) for purpose in purposes])


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 1000), min_size=4, max_size=4, unique=True))
def test_what_an_image_draws_is_its_own(seed, images):
    key = jax.random.key(seed)
    found = np.asarray(_all_draws(key, jnp.array(images)))
    np.testing.assert_array_equal(found[:, 2:3], _all_draws(key, jnp.array(images[2:3])))
    # No two images, layers or purposes share points; of 288 numbers of 23 bits two may be equal.
    assert len(np.unique(found)) > 0.98 * found.size
