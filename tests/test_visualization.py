"""Pictures of results: exact where exactness means something, and the promises about colours and names."""

import inspect
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax import visualization
from fcclip_jax.structures import Segment
from fcclip_jax.visualization import draw_panoptic, draw_semantic, panoptic_to_rgb, rgb_to_panoptic

SHARED = Path(__file__).parents[2] / "shared"


def segment(index: int, *, name: str = "cat", kind: int | None = None, thing: bool = True, score=0.9) -> Segment:
    return Segment(index, index if kind is None else kind, name, thing, score, 1)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cells(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    """A map of `count` segments: each pixel belongs to the nearest of as many random points."""
    rng = np.random.default_rng(seed)
    y, x = rng.random(count) * height, rng.random(count) * width
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    return (np.argmin((rows - y) ** 2 + (columns - x) ** 2, axis=2) + 1).astype(np.int32)


@pytest.fixture
def boxes(monkeypatch) -> list[tuple[int, int, int, int]]:
    """Where names are written: top, left, bottom, right."""
    written, stamp = [], visualization._stamp

    def record(painted, caption, y, x):
        written.append((y, x, y + caption.height, x + caption.width))
        stamp(painted, caption, y, x)

    monkeypatch.setattr(visualization, "_stamp", record)
    return written


# ------------------------------------------------------------------------------------------ COCO's colours


def test_panoptic_colours_by_hand():
    ids = np.array([[0, 1, 255], [256, 65536, 256**3 - 1]], np.int32)
    rgb = [[[0, 0, 0], [1, 0, 0], [255, 0, 0]], [[0, 1, 0], [0, 0, 1], [255, 255, 255]]]
    np.testing.assert_array_equal(panoptic_to_rgb(ids), rgb)
    assert panoptic_to_rgb(ids).dtype == np.uint8
    np.testing.assert_array_equal(rgb_to_panoptic(np.array(rgb, np.uint8)), ids)
    assert rgb_to_panoptic(np.array(rgb, np.uint8)).dtype == np.int32


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 256**3 - 1), min_size=6, max_size=6),
    st.sampled_from([np.int32, np.int64, np.uint32]),
)
def test_panoptic_colours_round_trip(ids, dtype):
    for order in "CF":
        panoptic = np.array(ids, dtype).reshape(2, 3, order=order)
        np.testing.assert_array_equal(rgb_to_panoptic(panoptic_to_rgb(panoptic)), panoptic)


@pytest.mark.parametrize("bad", [-1, 256**3])
def test_ids_without_a_colour_are_refused(bad):
    with pytest.raises(ValueError, match="0 to 16777215"):
        panoptic_to_rgb(np.array([[0, bad]], np.int32))


@pytest.mark.skipif(not SHARED.exists(), reason="the sample photos are not here")
def test_a_coco_panoptic_file():
    from fcclip_jax.data.image_files import read_image

    for annotation in json.loads((SHARED / "samples" / "panoptic.json").read_text())["annotations"]:
        panoptic = rgb_to_panoptic(read_image(SHARED / "samples" / "panoptic" / annotation["file_name"]))
        areas = {s["id"]: s["area"] for s in annotation["segments_info"]}
        assert {i: int((panoptic == i).sum()) for i in areas} == areas


# ------------------------------------------------------------------------------------------------ painting


def test_the_fill_is_the_mean_of_photo_and_colour():
    panoptic = np.ones((200, 200), np.int32)
    panoptic[:, 100:] = 2
    image, segments = photo(200, 200), [segment(1), segment(2)]
    solid = draw_panoptic(image, panoptic, segments, alpha=1.0, labels=False)
    drawn = draw_panoptic(image, panoptic, segments, alpha=0.25, labels=False)
    inside = np.s_[5:-5, 5:90]
    assert (solid[inside] == solid[50, 50]).all()
    expected = 0.75 * image[inside].astype(float) + 0.25 * solid[50, 50]
    # Rounded once: the shares 192 / 256 and 64 / 256 are exact.
    assert np.abs(drawn[inside] - expected).max() <= 0.5
    np.testing.assert_array_equal(
        draw_panoptic(image, panoptic, segments, alpha=0.0, labels=False)[inside], image[inside]
    )


def test_pixels_of_no_segment_stay_and_the_input_is_untouched():
    panoptic = cells(150, 170, 6)
    panoptic[panoptic == 3], panoptic[panoptic == 4] = 0, -5
    image = photo(150, 170)
    kept = image.copy(), panoptic.copy()
    # 2 and 6 are on the map but not listed; 99 is listed but not on the map.
    drawn = draw_panoptic(image, panoptic, [segment(i) for i in (1, 5, 99)], labels=False)
    unlisted = ~np.isin(panoptic, (1, 5))
    np.testing.assert_array_equal(drawn[unlisted], image[unlisted])
    assert (drawn[~unlisted] != image[~unlisted]).any(axis=-1).mean() > 0.9
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(panoptic, kept[1])


def test_outlines_lie_along_the_borders_only():
    panoptic = np.ones((200, 200), np.int32)
    panoptic[60:140, 60:140] = 2
    image = np.full((200, 200, 3), 128, np.uint8)
    drawn = draw_panoptic(image, panoptic, [segment(1), segment(2)], labels=False).astype(int)
    differs = np.abs(drawn - np.where((panoptic == 1)[..., None], drawn[5, 5], drawn[100, 100])).max(axis=2) > 0
    expected = np.zeros_like(differs)
    expected[59:141, 59:141] = True  # one pixel to each side at this size
    expected[61:139, 61:139] = False
    expected[[59, 59, 140, 140], [59, 140, 59, 140]] = False  # reached along rows and columns, not diagonally
    np.testing.assert_array_equal(differs, expected)


def test_thin_outlines_grow_with_the_image():
    panoptic = np.repeat(np.array([1, 2], np.int32), 1000)[None].repeat(2000, axis=0)
    drawn = draw_panoptic(np.zeros((2000, 2000, 3), np.uint8), panoptic, [segment(1), segment(2)], labels=False)
    assert np.flatnonzero((drawn[1000] != drawn[1000, 10]).any(axis=1))[0] == 996  # 2000 / 500 = 4 pixels


def test_strips_do_not_show(monkeypatch):
    image, panoptic = photo(160, 150), cells(160, 150, 9)
    segments = [segment(i) for i in range(1, 10)]
    whole = draw_panoptic(image, panoptic, segments)
    monkeypatch.setattr(visualization, "_STRIP_PIXELS", 700)
    np.testing.assert_array_equal(draw_panoptic(image, panoptic, segments), whole)


def test_memory_does_not_grow_with_segments_times_pixels():
    image, panoptic = np.zeros((3000, 3000, 3), np.uint8), np.zeros((3000, 3000), np.int32)
    panoptic[:] = (np.arange(3000) // 30 + 1)[:, None]
    tracemalloc.start()
    draw_panoptic(image, panoptic, [segment(i) for i in range(1, 101)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The result is 27 MB, a mask stack would be 900 MB. The rest: strips of a million pixels, 60 bytes each.
    assert peak < 27e6 + 100e6


def test_large_ids_are_drawn():
    panoptic = np.full((50, 50), 256**3 - 1, np.int32)
    image = photo(50, 50)
    assert (draw_panoptic(image, panoptic, [segment(256**3 - 1)], labels=False) != image).any()


# ------------------------------------------------------------------------------------------------- colours


def solid_colors(panoptic: np.ndarray, segments: list[Segment]) -> dict[int, np.ndarray]:
    image = np.zeros((*panoptic.shape, 3), np.uint8)
    drawn = draw_panoptic(image, panoptic, segments, alpha=1.0, labels=False)
    return {s.id: drawn[panoptic == s.id][0].astype(int) for s in segments}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("thing", [True, False])
def test_neighbours_differ_clearly(seed, thing):
    panoptic = cells(120, 160, 30, seed)
    # Two classes only: their preferred colours can serve two segments.
    colors = solid_colors(panoptic, [segment(i, kind=i % 2, thing=thing) for i in range(1, 31)])
    pairs = np.stack([panoptic[:, 1:], panoptic[:, :-1]]).reshape(2, -1).T
    for a, b in np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).tolist():
        # In 8-bit RGB; the eye tells patches apart from about 10 on, muted colours have less room.
        assert np.linalg.norm(colors[a] - colors[b]) >= (40 if thing else 20)


def test_a_class_keeps_its_colour_from_picture_to_picture():
    one = solid_colors(cells(90, 90, 2, 0), [segment(1, kind=7), segment(2, kind=3, thing=False)])
    two = solid_colors(cells(60, 120, 2, 1), [segment(1, kind=3, thing=False), segment(2, kind=7)])
    np.testing.assert_array_equal(one[1], two[2])
    np.testing.assert_array_equal(one[2], two[1])


@pytest.mark.parametrize("kind", range(12))
def test_things_are_vivid_and_stuff_is_muted(kind):
    panoptic = np.ones((20, 20), np.int32)
    thing = solid_colors(panoptic, [segment(1, kind=kind)])[1]
    stuff = solid_colors(panoptic, [segment(1, kind=kind, thing=False)])[1]
    assert np.ptp(thing) > 1.5 * np.ptp(stuff)


def test_oklab_by_hand():
    # White, black, and sRGB red, (0.6280, 0.2249, 0.1258) in Ottosson's article.
    lab = np.array([[1, 0, 0], [0, 0, 0], [0.6279554, 0.2248631, 0.1258463]])
    np.testing.assert_array_equal(visualization._oklab_to_rgb(lab), [[255, 255, 255], [0, 0, 0], [255, 0, 0]])


# --------------------------------------------------------------------------------------------------- names


def test_names_lie_inside_the_image_on_their_own_segment_and_apart(boxes):
    shape = (700, 900)
    panoptic = cells(*shape, 20)
    segments = [segment(i, name=f"segment {i}") for i in range(1, 21)]
    draw_panoptic(photo(*shape), panoptic, segments)
    assert len(boxes) > 12
    owners = set()
    for i, (top, left, bottom, right) in enumerate(boxes):
        assert 0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]
        ids, counts = np.unique(panoptic[top:bottom, left:right], return_counts=True)
        # At least half of the box, but judged on every third pixel: it may be one of those off on each side.
        assert counts.max() >= 0.4 * counts.sum()
        owners.add(int(ids[counts.argmax()]))
        for other in boxes[:i]:
            assert bottom <= other[0] or other[2] <= top or right <= other[1] or other[3] <= left
    assert len(owners) == len(boxes)


def test_the_name_lies_on_the_thickest_part(boxes):
    panoptic = np.zeros((300, 400), np.int32)
    panoptic[10:20, :] = 1  # a long thin arm
    panoptic[150:290, 200:390] = 1
    draw_panoptic(photo(300, 400), panoptic, [segment(1)])
    ((top, left, bottom, right),) = boxes
    assert 150 <= top < bottom <= 290 and 200 <= left < right <= 390


def test_small_segments_carry_no_name(boxes):
    panoptic = np.zeros((300, 400), np.int32)
    panoptic[100:104, 100:104] = 1
    draw_panoptic(photo(300, 400), panoptic, [segment(1)])
    assert boxes == []


def test_names_grow_with_the_image_and_stay_readable_on_small_ones(boxes):
    for height, width in ((48, 64), (427, 640), (3000, 4000)):
        draw_panoptic(np.zeros((height, width, 3), np.uint8), np.ones((height, width), np.int32), [segment(1)])
    heights = [bottom - top for top, _, bottom, _ in boxes]
    assert heights[0] >= 10
    # 2.5 % of the geometric mean side, and the box's margins.
    for box, (height, width) in zip(heights[1:], ((427, 640), (3000, 4000)), strict=True):
        assert math.isclose(box, 0.025 * 1.35 * math.sqrt(height * width), rel_tol=0.1)


def test_text_is_light_on_dark(boxes):
    for shade in (0, 255):
        image = np.full((300, 400, 3), shade, np.uint8)
        drawn = draw_panoptic(image, np.ones((300, 400), np.int32), [segment(1)])
        top, left, bottom, right = boxes[-1]
        brightness = drawn[top:bottom, left:right].mean(axis=2)
        assert brightness.max() > 240
        assert np.median(brightness) < 100


def test_labels_can_be_left_out_and_an_odd_score_leaves_only_the_name(boxes):
    panoptic, image = np.ones((300, 400), np.int32), photo(300, 400)
    draw_panoptic(image, panoptic, [segment(1)], labels=False)
    assert boxes == []
    draw_panoptic(image, panoptic, [segment(1)])
    draw_panoptic(image, panoptic, [segment(1, score=float("nan"))])
    with_score, without = (right - left for _, left, _, right in boxes)
    assert with_score > without + 10


NAMES = [
    "",
    "   ",
    "a\nb\0c\t",
    "\ud800",
    "猫",
    "🐴",
    "ก",
    "é" * 500,
    "שלום",
    "\u0301",
    "\U0010ffff",
    "ﷺ",
    "<b>&",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn(boxes, name):
    draw_panoptic(photo(200, 600), np.ones((200, 600), np.int32), [segment(1, name=name)])
    assert len(boxes) == 1


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(codec=None), max_size=40))
def test_any_unicode_name_is_drawn(name):
    draw_panoptic(np.zeros((60, 200, 3), np.uint8), np.ones((60, 200), np.int32), [segment(1, name=name)])


def test_what_no_font_has_is_shown_as_far_as_possible(monkeypatch):
    monkeypatch.setattr(visualization, "_system_fonts", lambda: ())
    assert visualization._typeset("cat", 12, "#3")[1] == "cat"
    assert visualization._typeset("a cat 猫", 12, "#3")[1] == "a cat ?"
    assert visualization._typeset("猫犬", 12, "#3")[1] == "#3"
    assert visualization._typeset("\x00\n", 12, "#3")[1] == "#3"
    assert visualization._typeset("x" * 99, 12, "#3")[1] == "x" * 31 + "…"


@pytest.mark.parametrize("seed", range(3))
def test_depth_equals_the_slow_definition(seed):
    layout = np.random.default_rng(seed).integers(0, 2, (3, 4)).repeat(5, axis=0).repeat(4, axis=1)
    layout[2, 3] = 2
    padded = np.pad(layout, 1, constant_values=-1)
    rows, columns = np.indices(padded.shape)
    expected = np.zeros(layout.shape)
    for y, x in np.ndindex(layout.shape):
        other = padded != layout[y, x]
        squared = (rows - y - 1) ** 2 + (0.5 * (columns - x - 1)) ** 2
        expected[y, x] = np.sqrt(squared[other].min())
    np.testing.assert_allclose(visualization._depth(layout), expected, rtol=1e-6)  # float32 square roots


# ----------------------------------------------------------------------------------------- semantic, limits


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_semantic_paints_classes_and_leaves_other_values(dtype):
    semantic = np.full((100, 150), 255 if dtype == np.uint8 else -1, dtype)
    semantic[:, 50:100], semantic[:, 100:] = 0, 2
    semantic[90:, 50:] = 3  # one past the last name
    image = photo(100, 150)
    drawn = draw_semantic(image, semantic, ["sky", "road", "cat"], labels=False)
    unnamed = (semantic != 0) & (semantic != 2)
    np.testing.assert_array_equal(drawn[unnamed], image[unnamed])
    assert (drawn[~unnamed] != image[~unnamed]).any(axis=-1).mean() > 0.9


def test_semantic_writes_each_present_name_once(boxes):
    semantic = np.zeros((300, 400), np.int32)
    semantic[150:] = 2
    draw_semantic(photo(300, 400), semantic, ["sky", "road", "cat"])
    assert len(boxes) == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3), (333, 7), (427, 641), (10, 2000)])
def test_any_shape(shape):
    panoptic = cells(*shape, 2)
    drawn = draw_panoptic(photo(*shape), panoptic, [segment(1), segment(2, thing=False)])
    assert drawn.shape == (*shape, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, draw_panoptic(photo(*shape), panoptic, [segment(1), segment(2, thing=False)]))


def test_nothing_to_draw():
    image = photo(30, 40)
    np.testing.assert_array_equal(draw_panoptic(image, np.ones((30, 40), np.int32), []), image)
    np.testing.assert_array_equal(draw_semantic(image, np.ones((30, 40), np.int32), []), image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((4, 5), np.uint8)}, "uint8"),
        ({"image": np.zeros((4, 5, 3), np.float32)}, "uint8"),
        ({"image": np.zeros((0, 5, 3), np.uint8)}, "uint8"),
        ({"panoptic": np.zeros((5, 4), np.int32)}, r"\[4, 5\]"),
        ({"panoptic": np.zeros((4, 5), np.float32)}, "integers"),
        ({"segments": [segment(0)]}, "1 to 16777215"),
        ({"segments": [segment(1), segment(1)]}, "differ"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {
        "image": photo(4, 5),
        "panoptic": np.ones((4, 5), np.int32),
        "segments": [segment(1)],
        **change,
    }
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(draw_panoptic)(**arguments)  # without the type checks that the tests add
