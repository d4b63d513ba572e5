"""Large-scale jitter against a slow reference written from its description: whole resize, then crop, then pad."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcclip_jax.data.augment import LargeScaleJitter, View, epoch_order


def reference(picture: np.ndarray, panoptic: np.ndarray, view: View, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 `[edge,edge,3]` each: flip, scale, crop with one offset for both axes, pad with 128 and 255."""
    height, width = picture.shape[:2]
    k = min(edge * view.scale / height, edge * view.scale / width)
    new = max(round(k * height), 1), max(round(k * width), 1)  # Python, too, rounds halves to even
    results = []
    for array, method, padding in ((picture, Image.BILINEAR, 128), (panoptic, Image.NEAREST, 255)):
        if view.flip:
            array = array[:, ::-1]
        array = np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize(new[::-1], method))
        top, left = (round(max(size - edge, 0) * view.offset) for size in new)
        array = array[top : top + edge, left : left + edge]
        padded = np.full((edge, edge, 3), padding, np.uint8)
        padded[: array.shape[0], : array.shape[1]] = array
        results.append(padded)
    return results[0], results[1]


def as_rows(panoptic: np.ndarray) -> np.ndarray:
    rows = panoptic[..., 0].astype(np.int16)
    return np.where(rows == 255, -1, rows)


def jittered(picture: np.ndarray, rows: np.ndarray, view: View, edge: int) -> tuple[np.ndarray, np.ndarray]:
    image, ids = np.zeros((edge, edge, 3), np.uint8), np.zeros((edge, edge), np.int16)
    LargeScaleJitter(edge).apply(Image.fromarray(picture), rows.astype(np.int16), view, image, ids)
    return image, ids


@settings(deadline=None, max_examples=150)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(1, 80),
    st.booleans(),
    st.floats(0.1, 2.0),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 1000),
)
def test_equals_the_reference_to_the_bit(size, edge, flip, scale, offset, seed):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    rows = rng.integers(0, 250, size, dtype=np.uint8)
    view = View(flip, scale, offset)
    image, ids = jittered(picture, rows, view, edge)
    expected_image, expected_ids = reference(picture, np.stack([rows] * 3, -1), view, edge)
    np.testing.assert_array_equal(image, expected_image)
    np.testing.assert_array_equal(ids, as_rows(expected_ids))


def test_equals_the_reference_at_the_size_of_training():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (427, 640, 3), dtype=np.uint8)
    rows = rng.integers(0, 250, (427, 640), dtype=np.uint8)
    for number in range(4):
        view = LargeScaleJitter().draw(0, number)
        image, ids = jittered(picture, rows, view, 1024)
        expected_image, expected_ids = reference(picture, np.stack([rows] * 3, -1), view, 1024)
        np.testing.assert_array_equal(image, expected_image)
        np.testing.assert_array_equal(ids, as_rows(expected_ids))


@pytest.mark.parametrize(
    "edge, height, width, scale, offset, size, corner",
    [
        (1024, 480, 640, 2.0, 0.5, (1536, 2048), (256, 512)),  # k = 3.2
        (1024, 640, 480, 0.5, 0.9, (512, 384), (0, 0)),  # smaller than the crop: no offset
        (10, 5, 10, 0.5, 0.0, (2, 5), (0, 0)),  # 2.5 -> 2: halves to even
        (10, 7, 10, 0.5, 0.0, (4, 5), (0, 0)),  # 3.5 -> 4
        (8, 11, 9, 11 / 8, 0.5, (11, 9), (2, 0)),  # 1.5 -> 2, 0.5 -> 0
        (64, 1, 1000, 0.1, 0.5, (1, 6), (0, 0)),  # 0.0064 rows would be 0
    ],
)
def test_geometry_by_hand(edge, height, width, scale, offset, size, corner):
    assert LargeScaleJitter(edge).geometry(height, width, View(False, scale, offset)) == (size, corner)


def test_nothing_drawn_but_the_crop():
    jitter = LargeScaleJitter(16, min_scale=1.5, max_scale=1.5, flip_probability=0.0)
    views = [jitter.draw(3, number) for number in range(20)]
    assert {(view.flip, view.scale) for view in views} == {(False, 1.5)}
    assert len({view.offset for view in views}) == 20


def test_draws_are_uniform_and_independent():
    views = [LargeScaleJitter().draw(1, number) for number in range(2000)]
    flips = np.array([view.flip for view in views])
    scales = (np.array([view.scale for view in views]) - 0.1) / 1.9
    offsets = np.array([view.offset for view in views])
    for draws in (scales, offsets):
        assert draws.min() >= 0 and draws.max() < 1
        # A uniform mean of 2000 lies within 0.5 +- 0.0065 (one sigma); six of these.
        assert abs(draws.mean() - 0.5) < 0.04
        assert abs(draws.std() - 12**-0.5) < 0.04
    assert abs(flips.mean() - 0.5) < 0.07  # sigma 0.011
    assert np.abs(np.corrcoef([flips, scales, offsets]) - np.eye(3)).max() < 0.14  # sigma 0.022


def test_draws_never_change():
    # Another order of pictures, or other crops, would break the resumption of every run on disk.
    view = LargeScaleJitter().draw(7, 123456)
    assert (view.flip, view.scale, view.offset) == (True, 0.9468486679324831, 0.7282429041632508)
    assert epoch_order(7, 2, 10).tolist() == [1, 9, 3, 8, 0, 6, 4, 7, 5, 2]


def test_epoch_orders():
    first, second = epoch_order(0, 0, 1000), epoch_order(0, 1, 1000)
    for order in (first, second, epoch_order(1, 0, 1000)):
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    # Two random orders agree in one place on average.
    assert (first == second).sum() < 12 and (first == epoch_order(1, 0, 1000)).sum() < 12
    assert (first == np.arange(1000)).sum() < 12


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"min_scale": 0.0}, "0 < min <= max"),
        ({"min_scale": 2.0, "max_scale": 1.0}, "0 < min <= max"),
        ({"flip_probability": 1.5}, r"in \[0, 1\]"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        LargeScaleJitter(**arguments)
