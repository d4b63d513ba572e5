"""The window must be Pillow's, to the bit: Pillow resizes the whole and is cropped, as the slow reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcclip_jax.data.resize_window import bilinear_window, nearest_window


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def whole(picture: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize(size[::-1], method))


@st.composite
def windows(draw, most_old: int, most_new: int):
    old = draw(st.tuples(*[st.integers(1, most_old)] * 2))
    new = draw(st.tuples(*[st.integers(1, most_new)] * 2))
    corner = tuple(draw(st.integers(0, edge - 1)) for edge in new)
    shape = tuple(draw(st.integers(1, edge - start)) for edge, start in zip(new, corner, strict=True))
    return old, new, corner, shape


@settings(deadline=None, max_examples=200)
@given(windows(60, 200), st.integers(0, 1000))
def test_bilinear_equals_pillow(window, seed):
    old, new, (top, left), (rows, columns) = window
    picture = noise(seed, *old, 3)
    out = np.empty((rows, columns, 3), np.uint8)
    bilinear_window(Image.fromarray(picture), new, (top, left), out)
    expected = whole(picture, new, Image.Resampling.BILINEAR)[top : top + rows, left : left + columns]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("old", [333, 427, 480, 612, 640])
def test_every_enlargement_of_photo_heights_equals_pillow(old):
    # The fixed-point weights are what could differ, and they depend on the two sizes alone.
    picture = noise(old, old, 2, 3)
    for new in range(old, 2049, 13):
        out = np.empty((new, 2, 3), np.uint8)
        bilinear_window(Image.fromarray(picture), (new, 2), (0, 0), out)
        np.testing.assert_array_equal(out, whole(picture, (new, 2), Image.Resampling.BILINEAR), err_msg=str(new))


@pytest.mark.parametrize("size", [(1537, 2048), (1023, 1365), (428, 571), (210, 280)])
def test_photo_sizes_equal_pillow(size):
    picture = noise(0, 427, 640, 3)
    rows, columns = min(size[0], 1024), min(size[1], 1024)
    corner = (size[0] - rows) // 3, (size[1] - columns) // 3
    out = np.empty((1024, 1024, 3), np.uint8)  # the window's rows do not touch in memory
    bilinear_window(Image.fromarray(picture), size, corner, out[:rows, :columns])
    expected = whole(picture, size, Image.Resampling.BILINEAR)
    expected = expected[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
    np.testing.assert_array_equal(out[:rows, :columns], expected)


def test_bilinear_by_hand():
    # Two rows 0 and 100 to four: centres at -0.25 (border: 0), 0.25, 0.75 and 1.25 of the way: 0, 25, 75, 100.
    picture = np.repeat(np.array([0, 100], np.uint8), 3).reshape(2, 1, 3)
    out = np.empty((2, 1, 3), np.uint8)
    bilinear_window(Image.fromarray(picture), (4, 1), (1, 0), out)
    assert out[:, 0, 0].tolist() == [25, 75]


@settings(deadline=None, max_examples=200)
@given(windows(60, 200), st.integers(0, 1000))
def test_nearest_equals_pillow_on_a_colour_picture(window, seed):
    old, new, (top, left), (rows, columns) = window
    picture = noise(seed, *old, 3)  # the reference resizes the colours, and ids are made of them afterwards
    out = np.empty((rows, columns), np.int16)
    nearest_window(picture[..., 0].astype(np.int16), new, (top, left), out)
    expected = whole(picture, new, Image.Resampling.NEAREST)[top : top + rows, left : left + columns, 0]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "corner, shape", [((0, 0), (5, 4, 3)), ((-1, 0), (2, 2, 3)), ((3, 0), (2, 2, 3)), ((0, 3), (2, 2, 3))]
)
def test_a_window_outside_is_refused(corner, shape):
    with pytest.raises(ValueError, match="not inside"):
        bilinear_window(Image.new("RGB", (2, 2)), (4, 4), corner, np.empty(shape, np.uint8))


def test_columns_apart_in_memory_are_refused():
    with pytest.raises(ValueError, match="side by side"):
        bilinear_window(Image.new("RGB", (2, 2)), (4, 4), (0, 0), np.empty((4, 8, 3), np.uint8)[:, ::2])
