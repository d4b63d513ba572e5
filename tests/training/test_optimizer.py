"""Which parameters are trained, how each is decayed, and what the optimizer keeps, for every variant."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fcclip_jax.models.fcclip import VARIANTS
from fcclip_jax.training import train_state
from fcclip_jax.training.optimizer import (
    DECAY,
    FROZEN,
    GROUPS,
    NO_DECAY,
    OptimizerConfig,
    group_of,
    learning_rate_schedule,
    make_optimizer,
)


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def shapes(request):
    """(trainable, frozen) shapes of a variant."""
    return train_state.abstract_model(VARIANTS[request.param], train_state.ModelOptions())[1:]


def names(state: nnx.State) -> list[str]:
    return [".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)]


def test_each_parameter_is_in_exactly_one_group(shapes):
    """optax's own masks, as it applies them: each trained array is updated by one group alone."""
    trainable, frozen = shapes
    for name in names(trainable):
        assert group_of(name) in (DECAY, NO_DECAY)
    assert all(group_of(name) == FROZEN for name in names(frozen)) and names(frozen)
    state = jax.eval_shape(make_optimizer(OptimizerConfig()).init, trainable)
    (partition,) = [part for part in jax.tree.leaves(state, is_leaf=_is_partition) if _is_partition(part)]
    moments = {
        group: [
            ".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path if getattr(k, "name", "") != "value")
            for path, _ in jax.tree_util.tree_leaves_with_path(_mu(inner))
        ]
        for group, inner in partition.inner_states.items()
    }
    assert moments[FROZEN] == []
    assert len(moments[DECAY]) + len(moments[NO_DECAY]) == len(names(trainable))
    assert not set(moments[DECAY]) & set(moments[NO_DECAY])


def _is_partition(node) -> bool:
    return isinstance(node, optax.transforms.PartitionState)


def _mu(state):
    found = [x.mu for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")]
    return found[0] if found else []


def test_the_optimizer_keeps_two_numbers_for_each_trained_one(shapes):
    trainable, _ = shapes
    state = jax.eval_shape(make_optimizer(OptimizerConfig()).init, trainable)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    counts = 4 * 4  # bytes of the numbers of steps: Adam's and the schedule's, in two groups
    assert size(state) - counts == 2 * size(trainable)


def test_the_towers_have_no_moments_even_where_they_are_given(shapes):
    state = jax.eval_shape(make_optimizer(OptimizerConfig()).init, nnx.merge_state(*shapes))
    trained = sum(x.size for x in jax.tree.leaves(shapes[0]))
    assert sum(x.size for x in jax.tree.leaves(state)) - 4 == 2 * trained


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("clip.visual.stages.0.blocks.0.norm.scale", FROZEN),
        ("clip.logit_scale", FROZEN),
        ("pixel_decoder.layers.0.norm1.scale", NO_DECAY),
        ("transformer_decoder.query_feat", NO_DECAY),
        ("transformer_decoder.level_embed", NO_DECAY),
        ("void_embedding", NO_DECAY),
        ("pixel_decoder.level_embed", DECAY),
        ("transformer_decoder.logit_scale", DECAY),
        ("pixel_decoder.layers.0.linear1.bias", DECAY),
    ],
)
def test_groups_by_hand(name, group):
    assert group_of(name) == group


def test_the_last_rule_takes_all():
    assert GROUPS[-1] == (r".*", DECAY)


def test_schedule_by_hand():
    """The paper's: constant, a tenth from step 327778 on, a hundredth from 355092; warm-up at factor 1 changes
    nothing."""
    schedule = learning_rate_schedule(OptimizerConfig())
    for step, rate in ((0, 1e-4), (5, 1e-4), (327_777, 1e-4), (327_778, 1e-5), (355_091, 1e-5), (355_092, 1e-6)):
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-6), step
    warm = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=4, warmup_factor=0.2))
    assert [round(float(warm(step)), 6) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


def test_large_gradients_are_clipped_to_the_norm_and_small_ones_left():
    """With b1 = b2 = 0 and a large eps the update is -rate * g / eps."""
    config = OptimizerConfig(learning_rate=1.0, b1=0.0, b2=0.0, eps=1e6, clip_norm=5.0, weight_decay=0.0)
    optimizer = make_optimizer(config)
    params = {"kernel": jnp.zeros(2), "void_embedding": jnp.zeros(1)}
    gradient = {"kernel": jnp.array([6.0, 0.0]), "void_embedding": jnp.array([8.0])}  # norm 10
    for scale, expected in ((1.0, 0.5), (0.25, 0.25)):
        given = jax.tree.map(lambda g: g * scale, gradient)  # noqa: B023
        updates, _ = optimizer.update(given, optimizer.init(params), params)
        np.testing.assert_allclose(updates["kernel"], [-6e-6 * expected, 0], rtol=1e-4)
        np.testing.assert_allclose(updates["void_embedding"], [-8e-6 * expected], rtol=1e-4)


def test_a_tower_that_is_fine_tuned_is_the_image_tower_alone():
    config = VARIANTS["convnext_tiny_test"]
    _, trainable, frozen = train_state.abstract_model(config, train_state.ModelOptions(fine_tune=True))
    assert names(frozen) == ["clip.logit_scale"]  # a training has no text tower
    _, without, _ = train_state.abstract_model(config, train_state.ModelOptions())
    more = set(names(trainable)) - set(names(without))
    assert more and all(name.startswith("clip.visual.") for name in more)
    assert {group_of(name, fine_tune=True) for name in more} == {"tower_decay", "tower_no_decay"}
    assert {group_of(name) for name in more} == {FROZEN}


def test_a_fine_tuned_tower_learns_at_its_share_of_the_rate_and_a_frozen_one_not_at_all():
    """With b1 = b2 = 0 and a large eps the update is -rate * g / eps."""
    config = {"learning_rate": 1.0, "b1": 0.0, "b2": 0.0, "eps": 1e6, "clip_norm": 1e9, "weight_decay": 0.0}
    params = {"clip": {"visual": {"kernel": jnp.ones(1), "gamma": jnp.ones(1)}, "logit_scale": jnp.ones(1)}}
    params |= {"kernel": jnp.ones(1)}
    for factor, expected in ((0.0, 0.0), (0.1, -1e-7)):
        optimizer = make_optimizer(OptimizerConfig(**config, tower_factor=factor))
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
        np.testing.assert_allclose(updates["kernel"], [-1e-6], rtol=1e-4)
        np.testing.assert_allclose(updates["clip"]["visual"]["kernel"], [expected], rtol=1e-4)
        np.testing.assert_allclose(updates["clip"]["visual"]["gamma"], [expected], rtol=1e-4)
        assert updates["clip"]["logit_scale"] == 0
