"""Preprocessing: hand-worked sizes, exact arithmetic, the reference's own arrays to the bit."""

import inspect
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.data.image_files import read_image
from fcclip_jax.data.transforms import MEAN, normalize, pad_to_multiple, resize_shortest_edge, target_size

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocessing.npz"
SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((427, 640), (800, 1333), (800, 1199)),  # 640 * 800 / 427 = 1199.06
        ((640, 427), (800, 1333), (1199, 800)),
        ((427, 640), (256, 1333), (256, 384)),  # 383.7
        ((100, 1000), (800, 1333), (133, 1333)),  # the longest edge decides: 133.3
        ((1, 1), (800, 1333), (800, 800)),
        ((1, 5000), (800, 1333), (1, 1333)),  # 0.27 would round to 0
        ((5000, 1), (800, 1333), (1333, 1)),
        ((20000, 20000), (800, 1333), (800, 800)),
        ((2, 5), (1, 9), (1, 3)),  # 2.5 rounds up, not to even
        ((3, 3), (7, 5), (5, 5)),
    ],
)
def test_target_size_by_hand(size, limits, expected):
    assert target_size(*size, *limits) == expected


SIDE, EDGE = st.integers(1, 20000), st.integers(1, 3000)


@settings(deadline=None, max_examples=300)
@given(SIDE, SIDE, EDGE, EDGE)
def test_target_size_is_the_exact_scale_rounded(height, width, min_size, max_size):
    scale = min(Fraction(min_size, min(height, width)), Fraction(max_size, max(height, width)))
    for side, new in zip((height, width), target_size(height, width, min_size, max_size), strict=True):
        exact = side * scale
        # A tie may fall either way: float64, as in the reference, may miss it by a rounding.
        ties = (Fraction(1, 2), Fraction(1, 2) - Fraction(1, 10**9))
        assert new in {max(1, math.floor(exact + half)) for half in ties}
        assert 1 <= new <= max_size


@settings(deadline=None, max_examples=100)
@given(SIDE, SIDE, EDGE, EDGE)
def test_target_size_keeps_orientation_and_mirrors(height, width, min_size, max_size):
    new_height, new_width = target_size(height, width, min_size, max_size)
    assert (new_height <= new_width) if height <= width else (new_height >= new_width)
    assert target_size(width, height, min_size, max_size) == (new_width, new_height)


@pytest.mark.parametrize("sizes", [(0, 5, 800, 1333), (5, 0, 800, 1333), (5, 5, 0, 1333), (5, 5, 800, -1)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        target_size(*sizes)


def triangle_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Pillow's bilinear filter along one axis, plainly: a triangle as wide as two source or two target pixels
    (the wider), cut off at the border and normalised."""
    scale = size_in / size_out
    support = max(scale, 1.0)
    centres = (np.arange(size_out) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(size_in) + 0.5 - centres[:, None]) / support)
    return weights / weights.sum(axis=1, keepdims=True)


SMALLER, LARGER, CLIPPED = ((40, 61), (20, 99)), ((13, 17), (40, 99)), ((9, 50), (30, 31))


@pytest.mark.parametrize(("size", "limits"), [SMALLER, LARGER, CLIPPED])
def test_resize_is_an_antialiased_triangle_filter(size, limits):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    resized = resize_shortest_edge(image, *limits)
    height, width = target_size(*size, *limits)
    rows, columns = triangle_matrix(size[0], height), triangle_matrix(size[1], width)
    expected = np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns)
    assert resized.dtype == np.uint8
    # Pillow rounds to 8 bits after each of its two passes: half a level each.
    np.testing.assert_allclose(resized, expected, atol=1.01)


def test_an_image_of_the_right_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_shortest_edge(image, 8, 12), image)


@pytest.mark.parametrize("shape", [(1, 5000, 3), (5000, 1, 3), (1, 1, 3)])
def test_elongated_images_resize(shape):
    resized = resize_shortest_edge(np.full(shape, 77, np.uint8))
    assert resized.shape == (*target_size(*shape[:2]), 3)
    assert (resized == 77).all()


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 4), (0, 5, 3)])
def test_resize_refuses_what_is_no_image(shape):
    resize = inspect.unwrap(resize_shortest_edge)  # without the type checks that the tests add
    with pytest.raises(ValueError, match=r"uint8|at least 1"):
        resize(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        resize(np.zeros((4, 5, 3), np.float32))


def test_normalisation_and_padding_equal_the_reference_to_the_bit():
    golden = np.load(GOLDEN)
    np.testing.assert_array_equal(normalize(golden["image"])[:64, :64], golden["normalized"])
    # The reference was given the picture without its last 18 rows and 10 columns.
    padded = pad_to_multiple(normalize(golden["image"][:110, :150]), 32)
    assert padded.shape == (128, 160, 3)
    np.testing.assert_array_equal(padded[96:, 128:], golden["padded"])


def test_the_mean_colour_is_zero():
    # The nearest 8-bit colour is at most half a level off: 0.5 / 66.6 = 0.0075.
    assert np.abs(normalize(np.round(MEAN).astype(np.uint8)[None, None])).max() <= 0.0075


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 33), st.sampled_from([(), (3,), (2, 2)]))
def test_padding_is_the_least_and_zero(height, width, multiple, rest):
    x = np.random.default_rng(0).random((height, width, *rest)) + 1
    padded = pad_to_multiple(x, multiple)
    for before, after in zip(x.shape[:2], padded.shape[:2], strict=True):
        assert after % multiple == 0 and before <= after < before + multiple
    np.testing.assert_array_equal(padded[:height, :width], x)
    assert np.count_nonzero(padded) == x.size and padded.dtype == x.dtype


def test_padding_needs_a_multiple_of_at_least_one():
    with pytest.raises(ValueError, match="at least 1"):
        pad_to_multiple(np.zeros((2, 2)), 0)


@pytest.mark.skipif(not SHARED.exists(), reason="the reference's photos and outputs are not here")
def test_a_photo_is_read_and_resized_as_by_the_reference_to_the_bit():
    oracle = np.load(SHARED / "oracle" / "e2e_ade_142238_s256.npz")
    image = read_image(SHARED / "samples" / "000000142238.jpg")
    assert image.shape[:2] == tuple(oracle["orig_hw"])
    resized = resize_shortest_edge(image, 256, 1333)
    np.testing.assert_array_equal(resized, oracle["image_chw_uint8"].transpose(1, 2, 0))
    assert pad_to_multiple(normalize(resized)).shape[:2] == tuple(oracle["padded_hw"])
