import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from fcclip_jax.results.instance import RunLengths, top_pairs
from fcclip_jax.results.pixels import instance_run


def test_run_by_hand():
    """Three pixels of the photo and one beyond its end; a logit of 0 is outside."""
    logits = jnp.asarray([[0, 1], [2, -1], [3, 0], [4, 4]], jnp.float32)
    inside, totals = instance_run(logits, np.int32(3))
    np.testing.assert_array_equal(inside[:, :3], [[False, True, True], [True, False, False]])
    sigmoids = 1 / (1 + np.exp([-2.0, -3.0, -1.0]))
    np.testing.assert_allclose(totals, [sigmoids[0] + sigmoids[1], sigmoids[2]], rtol=1e-6)  # float32 sums


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    length=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=150)
def test_run_lengths_are_what_pycocotools_encodes(height, width, length, seed, density):
    masks = np.random.default_rng(seed).random((4, height, width)) < density
    masks[3] = True
    flat = masks.transpose(0, 2, 1).reshape(4, -1)  # column-major
    run_lengths = RunLengths(4)
    for first in range(0, height * width, length):
        run_lengths.add(first, flat[:, first : first + length])
    encoded, areas = run_lengths.encode((height, width))
    assert encoded == [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    assert list(areas) == list(masks.sum(axis=(1, 2)))


def test_stuff_uses_up_places():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6]])
    isthing = np.array([True, False])
    assert [list(x) for x in top_pairs(scores, isthing, 3)] == [[0, 2], [0, 0]]
    assert [list(x) for x in top_pairs(scores, ~isthing, 3)] == [[1], [1]]
    assert [list(x) for x in top_pairs(scores, isthing, 100)] == [[0, 1, 2], [0, 0, 0]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([2, 1000]))
@settings(deadline=None, max_examples=100)
def test_top_pairs_are_the_head_of_a_stable_sort(seed, max_instances, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, size=(5, 6)) / levels
    isthing = rng.random(6) < 0.5
    order = np.argsort(-scores.reshape(-1), kind="stable")[:max_instances]
    expected = {(i // 6, i % 6) for i in order.tolist() if isthing[i % 6]}
    queries, classes = top_pairs(scores, isthing, max_instances)
    assert set(zip(queries.tolist(), classes.tolist(), strict=True)) == expected
    assert len(queries) == len(expected)
