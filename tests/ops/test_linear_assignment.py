import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.ops.linear_assignment import linear_assignment

SOLVERS = ("host", "device")
SHAPES = ((5, 3), (3, 5), (1, 1), (4, 4))


@functools.lru_cache
def solver(name):
    return jax.jit(functools.partial(linear_assignment, solver=name))


def test_by_hand():
    """The greedy choice, query 0 for segment 0, is not the best one."""
    cost = jnp.array([[1.0, 2.0], [1.5, 9.0], [8.0, 8.0]])
    for name in SOLVERS:
        assert solver(name)(cost, jnp.array([True, True])).tolist() == [1, 0]
        assert solver(name)(cost, jnp.array([True, False])).tolist() == [0, -1]
        assert solver(name)(cost, jnp.array([False, False])).tolist() == [-1, -1]


@pytest.mark.parametrize("name", SOLVERS)
@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SHAPES), st.integers(0, 2**31), st.sampled_from((1e-3, 1.0, 1e4)))
def test_least_cost_of_all_assignments(name, shape, seed, scale):
    rng = np.random.default_rng(seed)
    cost = (rng.normal(size=shape) * scale).astype(np.float32)
    valid = rng.random(shape[1]) < 0.7
    found = np.asarray(solver(name)(cost, valid))
    assert (found[~valid] == -1).all()
    pairs = [(q, n) for n, q in enumerate(found) if q >= 0]
    columns = np.flatnonzero(valid)
    assert len(pairs) == len({q for q, _ in pairs}) == min(shape[0], len(columns))
    best = least(cost[:, columns].astype(np.float64))
    # The device adds in float32, up to five numbers.
    assert sum(float(cost[q, n]) for q, n in pairs) <= best + 1e-5 * scale


def least(cost: np.ndarray) -> float:
    cost = cost if cost.shape[0] <= cost.shape[1] else cost.T
    ways = itertools.permutations(range(cost.shape[1]), cost.shape[0])
    return min(sum(cost[row, column] for row, column in enumerate(way)) for way in ways)


def test_many_problems_in_one_call():
    rng = np.random.default_rng(0)
    cost, valid = rng.normal(size=(2, 3, 6, 4)).astype(np.float32), rng.random((2, 3, 4)) < 0.6
    host, device = (np.asarray(solver(name)(cost, valid)) for name in SOLVERS)
    np.testing.assert_array_equal(host, device)  # without ties there is one answer
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(host[place], solver("host")(cost[place], valid[place]))


def test_costs_that_are_not_finite_do_not_raise():
    """Their loss is not finite either, and that is what the step reports."""
    cost = jnp.array([[jnp.nan, 1.0], [2.0, jnp.inf]])
    assert solver("host")(cost, jnp.array([True, True])).shape == (2,)
