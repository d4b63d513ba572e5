"""The shapes that images are stored in."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fcclip_jax.data.buckets import bucket, extent, fill, long_edges, round_up
from fcclip_jax.data.transforms import target_size

sizes = st.integers(1, 3000)


def test_the_lengths_by_hand():
    assert long_edges(800, 1333) == [800, 1088, 1216, 1344]
    assert long_edges(1024, 2560) == [1024, 1376, 1536, 2048, 2560]
    assert long_edges(64, 64) == [64]
    assert long_edges(800, 64) == [64]
    assert round_up(0.2) == 32 and round_up(32.4) == 32 and round_up(33) == 64


def test_common_photos_by_hand():
    # COCO's commonest sizes fill their buckets but for the reference's own padding to multiples of 32.
    for height, width in ((480, 640), (427, 640), (375, 500), (640, 640)):
        resized = target_size(height, width)
        assert bucket(*resized, 800, 1333) == extent(*resized)
        assert bucket(*resized[::-1], 800, 1333) == extent(*resized[::-1])
    assert bucket(750, 1333, 800, 1333) == (800, 1344)  # 360 x 640
    assert extent(750, 1333) == (768, 1344)


@given(sizes, sizes, st.sampled_from([(800, 1333), (1024, 2560), (320, 1333), (64, 64), (500, 100), (33, 4000)]))
def test_every_image_fits_its_bucket(height, width, limits):
    resized = target_size(height, width, *limits)
    shape = bucket(*resized, *limits)
    assert all(inner <= outer for inner, outer in zip(extent(*resized), shape, strict=True))
    assert all(side % 32 == 0 for side in shape)
    shortest, longest = sorted(shape)
    assert longest in long_edges(*limits) and shortest == round_up(min(limits))


@given(st.sampled_from([(800, 1333), (1024, 2560), (320, 1333), (640, 2560)]))
def test_there_are_few_and_no_gap_is_wide(limits):
    edges = long_edges(*limits)
    assert len(edges) <= 8
    # 1.5: the widest step is the square root of 2, and 32 pixels of rounding.
    assert all(b / a < 1.5 for a, b in itertools.pairwise(edges))


def test_filling_by_hand():
    stored = fill(np.ones((2, 3, 3), np.float32), (4, 5))
    assert stored.shape == (4, 5, 3) and stored.sum() == 18
    np.testing.assert_array_equal(stored[:2, :3], 1)
