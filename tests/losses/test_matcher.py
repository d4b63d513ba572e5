import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.losses.matcher import matching_cost
from tests.losses import slow_criterion as slow
from tests.losses.scenes import CONFIG, LAYERS, SHAPES, WEIGHTS, drawn, make, matched, quick

# With the weights of the paper: 2 class, 5 mask, 5 dice.
_cost = quick(jax.vmap(lambda *arrays: matching_cost(*arrays, WEIGHTS)))


def test_cost_by_hand():
    """One query that covers the left half, surely; two segments, the left and the right half."""
    masks = jnp.array([[[50.0, -50.0]]])
    ids = jnp.array([[0, 0, 1, 1]], jnp.int32)
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    points = jnp.array([[0.25, 0.5], [0.75, 0.5]])  # pixel centres of the mask
    labels = jnp.array([1, 0], jnp.int32)
    cost = _cost(*(x[None] for x in (logits, masks, ids, labels, points)))[0]
    # Right: no BCE, dice 1 - (2 * 1 + 1) / (1 + 1 + 1) = 0. Wrong: BCE 50 at both points, dice 1 - 1 / 3.
    np.testing.assert_allclose(cost, [[2 * -0.3, 2 * -0.5 + 5 * 50 + 5 * 2 / 3]], rtol=1e-6)


def slow_costs(scene, layer):
    points = drawn(scene, layer, "matcher", CONFIG.points, per_segment=False)
    of_image = zip(
        scene.logits[layer], scene.masks[layer], scene.targets.ids, scene.targets.labels, points, strict=True
    )
    return np.stack([slow.cost(*arrays, WEIGHTS) for arrays in of_image])


@st.composite
def scenes(draw, shape):
    counts = draw(st.lists(st.integers(0, shape.room), min_size=shape.images, max_size=shape.images))
    return make(shape, draw(st.integers(0, 2**31)), counts)


@pytest.mark.parametrize("name", SHAPES)
def test_cost_equals_the_definition(name):
    @settings(deadline=None, max_examples=8)
    @given(scenes(SHAPES[name]))
    def check(scene):
        points = jnp.asarray(drawn(scene, 0, "matcher", CONFIG.points, per_segment=False))
        found = _cost(scene.logits[0], scene.masks[0], scene.targets.ids, scene.targets.labels, points)
        # Float32 against float64, sums of 16 points of values up to 15.
        np.testing.assert_allclose(found, slow_costs(scene, 0), rtol=1e-5, atol=1e-5)

    check()


@pytest.mark.parametrize("name", SHAPES)
def test_matches_are_of_least_cost(name):
    """Against all possible assignments, one after the other."""

    @settings(deadline=None, max_examples=8)
    @given(scenes(SHAPES[name]))
    def check(scene):
        images = jnp.arange(scene.targets.labels.shape[0])
        found = matched(scene.logits, scene.masks, scene.targets, scene.key, images)
        assert len(found) == LAYERS
        for layer, queries in enumerate(found):
            for cost, row, valid in zip(slow_costs(scene, layer), queries, scene.targets.valid, strict=True):
                columns = np.flatnonzero(valid)
                row = np.asarray(row)
                assert (np.delete(row, columns) == -1).all()
                taken = [(q, n) for n, q in enumerate(row) if q >= 0]
                assert len(taken) == len({q for q, _ in taken}) == min(len(cost), len(columns))
                assert sum(cost[q, n] for q, n in taken) <= least(cost[:, columns]) + 1e-4

    check()


def least(cost: np.ndarray) -> float:
    if cost.shape[0] > cost.shape[1]:
        cost = cost.T
    ways = itertools.permutations(range(cost.shape[1]), cost.shape[0])
    return min(sum(cost[row, column] for row, column in enumerate(way)) for way in ways)
