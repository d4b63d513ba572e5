import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.results.panoptic import KeptQueries, keep_queries, make_segments
from fcclip_jax.results.pixels import _first_maximum, panoptic_run, query_bucket

NAMES = ["cat", "dog", "sky", "sea"]
ISTHING = np.array([True, True, False, False])


def segments_of(labels, scores, won, size, area, threshold=0.8):
    kept = KeptQueries(np.arange(len(labels)), np.array(labels), np.array(scores))
    ids, segments = make_segments(kept, np.array(won), np.array(size), np.array(area), NAMES, ISTHING, threshold)
    return list(ids), [(s.id, s.name, s.isthing, round(s.score, 6), s.area) for s in segments]


def test_things_stay_apart_and_stuff_merges():
    ids, segments = segments_of([0, 2, 0, 2, 3], [0.5, 0.25, 0.5, 0.75, 1], [10] * 5, [10] * 5, [9, 8, 7, 6, 5])
    assert ids == [1, 2, 3, 2, 4]
    assert segments == [
        (1, "cat", True, 0.5, 9),
        (2, "sky", False, 0.75, 14),
        (3, "cat", True, 0.5, 7),
        (4, "sea", False, 1, 5),
    ]


def test_the_overlap_threshold_is_inclusive_and_counts_won_pixels_outside_the_mask():
    # 8 of 10: kept at 0.8. 7 of 10: dropped. 12 of 10: kept, though only 7 of the 12 lie inside the mask.
    ids, segments = segments_of([0, 1, 1], [0.5] * 3, [8, 7, 12], [10, 10, 10], [8, 7, 7])
    assert ids == [1, 0, 2]
    assert [s[4] for s in segments] == [8, 7]


@pytest.mark.parametrize("empty", ["won", "size", "area"])
def test_queries_without_pixels_are_dropped_at_any_threshold(empty):
    counts = {"won": [3, 3], "size": [3, 3], "area": [3, 3]}
    counts[empty][0] = 0
    ids, segments = segments_of([0, 0], [0.5, 0.5], **counts, threshold=0.0)
    assert ids == [0, 1] and len(segments) == 1


def test_dropped_stuff_does_not_open_a_segment_to_merge_with():
    ids, segments = segments_of([2, 2], [0.9, 0.4], [1, 9], [10, 10], [1, 9])
    assert ids == [0, 1]
    assert segments == [(1, "sky", False, 0.4, 9)]


def test_kept_queries():
    # void is last: query 1 is void, query 3 lies at the threshold, not above; equals go to the first class
    probs = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.45, 0.1, 0.45]])
    kept = keep_queries(probs, 0.5)
    assert list(kept.index) == [0, 2] and list(kept.label) == [0, 1] and list(kept.score) == [0.6, 0.7]
    assert list(keep_queries(probs, 0.0).index) == [0, 2, 3, 4]


def test_run_by_hand():
    """Three pixels of the photo and one beyond its end; two queries and one filling up the bucket."""
    probabilities = jnp.asarray([[0.9, 0.2, 1], [0.4, 0.4, 1], [0.5, 1, 1], [1, 1, 1]], jnp.float32)
    winners, sizes = panoptic_run(probabilities, np.array([0.5, 0.5, -1], np.float32), np.int32(3))
    assert list(winners[:3]) == [
        0 + 3,
        0,
        1 + 3,
    ]  # + 3 where the winner's sigmoid reaches 0.5; first of equals
    assert list(sizes) == [2, 1, 3]


def test_sigmoid_exactly_half_counts_as_inside():
    winners, sizes = panoptic_run(jnp.full((1, 1), 0.5), np.ones(1, np.float32), np.int32(1))
    assert winners[0] == 1 and sizes[0] == 1


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 100]), st.sampled_from([3, 1000]))
@settings(deadline=None, max_examples=30)
def test_first_maximum_is_argmax(seed, levels, width):
    """Few levels: many equals."""
    x = np.random.default_rng(seed).integers(-levels, levels, size=(50, width)).astype(np.float32)
    np.testing.assert_array_equal(_first_maximum(jnp.asarray(x)), x.argmax(axis=1))


def test_bucket_sizes():
    assert [query_bucket(n, 250) for n in (1, 16, 17, 64, 65, 129, 250)] == [16, 16, 32, 64, 128, 250, 250]
    assert [query_bucket(n, 10) for n in (1, 10)] == [10, 10]
