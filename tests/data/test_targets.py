"""Row maps against a slow reference, pixel by pixel; the limit on segments; what is wrong is named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.data.records import DataError, PanopticRecord
from fcclip_jax.data.targets import limit_segments, row_map


def colours(ids) -> np.ndarray:
    ids = np.asarray(ids)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def annotated(segment_ids, crowd=None) -> PanopticRecord:
    count = len(segment_ids)
    return PanopticRecord(
        image_id=1,
        image_name="photo.jpg",
        panoptic_name="photo.png",
        image=b"",
        panoptic=b"",
        segment_ids=np.array(segment_ids, np.int64),
        classes=np.arange(count, dtype=np.int32),
        crowd=np.zeros(count, bool) if crowd is None else np.array(crowd, bool),
    )


@st.composite
def scenes(draw):
    """Ids of segments, which are crowds, and a map in which each has a pixel at least; blocks and noise."""
    ids = draw(st.lists(st.integers(1, 2**24 - 1), unique=True, max_size=12))
    crowd = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    height, width = draw(st.integers(1, 12)), draw(st.integers(12, 20))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    palette = np.array([0, *ids])
    coarse = palette[rng.integers(0, len(palette), (height, width))]
    panoptic = np.repeat(coarse, draw(st.integers(1, 4)), axis=1)
    panoptic[rng.integers(0, height), : len(ids)] = ids
    return ids, crowd, panoptic


@settings(deadline=None, max_examples=150)
@given(scenes())
def test_row_map_equals_pixel_by_pixel(scene):
    ids, crowd, panoptic = scene
    targets = [id_ for id_, is_crowd in zip(ids, crowd, strict=True) if not is_crowd]  # in their order
    expected = [[targets.index(id_) if id_ in targets else -1 for id_ in line] for line in panoptic.tolist()]
    rows = row_map(annotated(ids, crowd), colours(panoptic))
    assert rows.dtype == np.int16
    np.testing.assert_array_equal(rows, expected)


def test_row_map_by_hand():
    # 300 = 44 + 256, a crowd; 7 comes second in the annotation, so it is row 1; 0 is no segment.
    rows = row_map(annotated([70_000, 300, 7], [False, True, False]), colours([[0, 7, 300], [70_000, 70_000, 7]]))
    assert rows.tolist() == [[-1, 1, -1], [0, 0, 1]]


def test_no_segment_and_only_crowds():
    assert row_map(annotated([]), colours(np.zeros((2, 3), int))).tolist() == [[-1] * 3] * 2
    assert row_map(annotated([5], [True]), colours(np.full((2, 3), 5))).tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize(
    "segment_ids, panoptic, message",
    [
        ([5], [[5, 9]], "photo.png: holds segment id 9, which its annotation does not list$"),
        ([5], [[5, 9, 8, 9]], r"photo.png: holds segment id 8, .* \(and 1 more such\)$"),
        ([], [[9]], "photo.png: holds segment id 9"),
        ([5, 6], [[5, 0]], "photo.png: its annotation lists segment 6, which has no pixel$"),
        ([5, 5], [[5, 5]], "photo.png: its annotation lists segment 5 twice"),
        (range(1, 40_000), [[1]], "photo.jpg: 39999 segments"),
    ],
)
def test_map_and_annotation_that_differ(segment_ids, panoptic, message):
    with pytest.raises(DataError, match=message):
        row_map(annotated(list(segment_ids)), colours(panoptic))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10), st.integers(1, 12), st.integers(0, 10_000))
def test_limit_keeps_the_largest_in_their_order(count, most, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, max(count, 1) if count else 0, (6, 7)).astype(np.int16)
    classes = rng.integers(0, 133, count).astype(np.int32)
    areas = [int((rows == row).sum()) for row in range(count)]
    kept = sorted(sorted(range(count), key=lambda row: (-areas[row], row))[:most])
    before = rows.copy()

    labels, valid, dropped = limit_segments(rows, classes, most)

    assert labels.dtype == np.int32 and labels.shape == valid.shape == (most,)
    assert valid.tolist() == [True] * len(kept) + [False] * (most - len(kept))
    assert labels.tolist() == [int(classes[row]) for row in kept] + [0] * (most - len(kept))
    assert dropped == count - len(kept)
    for new, old in enumerate(kept):
        np.testing.assert_array_equal(rows == new, before == old)
    dropped_pixels = np.isin(before, [-1, *set(range(count)) - set(kept)])
    np.testing.assert_array_equal(rows == -1, dropped_pixels)


def test_an_emptied_segment_stays_valid():
    rows = np.array([[-1, 2]], np.int16)  # rows 0 and 1 were cropped away
    labels, valid, dropped = limit_segments(rows, np.array([7, 8, 9], np.int32), 4)
    assert (labels.tolist(), valid.tolist(), dropped) == ([7, 8, 9, 0], [True, True, True, False], 0)
    assert rows.tolist() == [[-1, 2]]


def test_emptied_segments_are_the_first_to_be_dropped():
    rows = np.array([[-1, 2, 2, 0]], np.int16)
    labels, valid, dropped = limit_segments(rows, np.array([7, 8, 9], np.int32), 2)
    assert (labels.tolist(), valid.tolist(), dropped) == ([7, 9], [True, True], 1)
    assert rows.tolist() == [[-1, 1, 1, 0]]
