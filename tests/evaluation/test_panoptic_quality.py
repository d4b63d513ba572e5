import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from panoptic_samples import CATEGORIES, IDS, random_pair, slow_counts

from fcclip_jax.evaluation.accumulator import load_state, save_state
from fcclip_jax.evaluation.panoptic_quality import PanopticQuality, SegmentError, overlaps

seeds = st.integers(0, 2**32 - 1)
# One IoU is rounded to a multiple of 2^-40; every matched IoU is above 0.5.
ROUNDING = 2.0**-40


def segment(id_: int, category: int, **more) -> dict:
    return {"id": id_, "category_id": category, **more}


def counted(*pairs) -> PanopticQuality:
    quality = PanopticQuality(CATEGORIES)
    for pair in pairs:
        quality.update(*pair)
    return quality


def row(category: int) -> int:
    return IDS.index(category)


def test_by_hand():
    # truth: class 1 on 8 of 16 pixels, class 2 on 6, void on 2; the prediction moves the border by one pixel
    truth = np.array([5] * 8 + [6] * 6 + [0] * 2, np.uint32).reshape(2, 8)
    prediction = np.array([9] * 7 + [4] * 9, np.uint32).reshape(2, 8)
    quality = counted((truth, [segment(5, 1), segment(6, 2)], prediction, [segment(9, 1), segment(4, 2)]))
    # class 1: 7 / 8. Class 2: 6 in common, 9 + 6 - 6 - 2 on void = 7
    figures = quality.compute()
    assert figures["PQ_th"] == pytest.approx(100 * 7 / 8, rel=ROUNDING)
    assert figures["PQ_st"] == pytest.approx(100 * 6 / 7, rel=ROUNDING)
    assert figures["PQ"] == pytest.approx(100 * (7 / 8 + 6 / 7) / 2, rel=ROUNDING)
    assert (figures["RQ"], figures["n"], figures["n_th"], figures["n_st"]) == (100.0, 2, 1, 1)


def test_half_a_union_is_not_a_match():
    truth = np.array([[1, 1, 1, 1, 2, 2]])
    prediction = np.array([[1, 1, 0, 0, 2, 0]])
    quality = counted((truth, [segment(1, 1), segment(2, 2)], prediction, [segment(1, 1), segment(2, 2)]))
    assert quality.tp.sum() == 0  # both IoU are exactly 1/2
    assert quality.fp[[row(1), row(2)]].tolist() == quality.fn[[row(1), row(2)]].tolist() == [1, 1]
    assert quality.compute()["SQ"] == 0.0


def test_void_excuses_a_false_segment_only_above_one_half():
    truth = np.array([[0, 0, 0, 1, 1, 1, 1, 1]])
    wrong = [segment(7, 2)]
    assert counted((truth, [segment(1, 1)], np.array([[7, 7, 7, 7, 7, 0, 0, 0]]), wrong)).fp.sum() == 0
    assert counted((truth, [segment(1, 1)], np.array([[7, 7, 7, 7, 7, 7, 0, 0]]), wrong)).fp.sum() == 1


def test_crowd_is_neither_found_nor_missed_and_excuses_its_own_class():
    truth = np.array([[1, 1, 1, 1]])
    crowd = [segment(1, 1, iscrowd=1)]
    same, other = [segment(3, 1)], [segment(3, 2)]
    prediction = np.array([[3, 3, 3, 3]])
    assert counted((truth, crowd, prediction, same)).state()["counts"].sum() == 0
    assert counted((truth, crowd, prediction, other)).fp.tolist() == np.eye(len(IDS), dtype=int)[row(2)].tolist()


def test_of_several_crowd_regions_of_a_class_the_last_listed_counts():
    truth = np.array([[1, 1, 2]])
    prediction = np.array([[3, 3, 0]])
    first, last = segment(1, 1, iscrowd=1), segment(2, 1, iscrowd=1)
    assert counted((truth, [first, last], prediction, [segment(3, 1)])).fp.sum() == 1
    assert counted((truth, [last, first], prediction, [segment(3, 1)])).fp.sum() == 0


def test_area_of_the_json_decides_as_in_panopticapi():
    truth = prediction = np.array([[1, 1, 1, 1]])
    quality = counted((truth, [segment(1, 1, area=6)], prediction, [segment(1, 1, area=99)]))
    assert quality.iou[row(1)] == pytest.approx(4 / 6, rel=ROUNDING)


def test_a_true_segment_without_pixels_is_missed():
    zeros = np.zeros((3, 3), np.int32)
    quality = counted((zeros, [segment(8, 2, area=5)], zeros, []))
    assert (quality.fn[row(2)], quality.images) == (1, 1)


def test_nothing_occurs():
    zeros = np.zeros((3, 3), np.int32)
    figures = counted((zeros, [], zeros, [])).compute()
    assert (figures["PQ"], figures["SQ_th"], figures["RQ_st"], figures["n"]) == (None, None, None, 0)


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_like_the_definition(seed):
    pair = random_pair(np.random.default_rng(seed))
    quality, slow = counted(pair), slow_counts(*pair)
    for k, category in enumerate(IDS):
        tp, fp, fn, iou = slow[category]
        assert (quality.tp[k], quality.fp[k], quality.fn[k]) == (tp, fp, fn)
        assert quality.iou[k] == pytest.approx(sum(iou), rel=ROUNDING)
    figures = quality.compute()
    occurring = [(sum(c[3]), c[0] + 0.5 * c[1] + 0.5 * c[2]) for c in slow.values() if sum(c[:3])]
    if occurring:
        assert figures["PQ"] == pytest.approx(100 * np.mean([iou / n for iou, n in occurring]), rel=ROUNDING)
    assert figures["n"] == len(occurring)


def wide_map(width: int) -> np.ndarray:
    return np.repeat(np.array([[3, 5], [5, 5]], np.uint32), width // 2, axis=1)


@pytest.mark.parametrize("width", [2, 1 << 15, 1 << 16, (1 << 17) + 2])
def test_runs_longer_than_16_bits(width):
    first, second, pixels = overlaps(wide_map(width), np.zeros((2, width), np.int64))
    assert list(zip(first.tolist(), second.tolist(), pixels.tolist(), strict=True)) == [
        (3, 0, width // 2),
        (5, 0, 3 * width // 2),
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(seeds, min_size=3, max_size=8), st.data())
def test_any_grouping_gives_the_same_bits(numbers, data):
    pairs = [random_pair(np.random.default_rng(seed)) for seed in numbers]
    together = counted(*pairs)
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(pairs), max_size=len(pairs)))
    parts = [counted(*(p for p, g in zip(pairs, groups, strict=True) if g == k)) for k in range(3)]
    for order in ((0, 1, 2), (2, 0, 1)):
        total = counted()
        for k in order:
            total.merge(parts[k])
        assert total.compute() == together.compute()
        assert total.images == len(pairs)


def test_goes_on_from_a_saved_state(tmp_path):
    pairs = [random_pair(np.random.default_rng(seed)) for seed in range(10)]
    save_state(tmp_path / "half.npz", counted(*pairs[:5]).state())
    resumed = counted()
    resumed.load_state(load_state(tmp_path / "half.npz"))
    for pair in pairs[5:]:
        resumed.update(*pair)
    assert resumed.compute() == counted(*pairs).compute()
    assert [path.name for path in tmp_path.iterdir()] == ["half.npz"]


ONE = np.array([[1, 1, 2, 2]])
GOOD = [segment(1, 1), segment(2, 2)]


@pytest.mark.parametrize(
    ("pair", "side", "message"),
    [
        ((ONE, GOOD[:1], ONE, GOOD), "truth", "segment 2 is in the map but not in segments_info"),
        ((ONE, GOOD, ONE, GOOD[1:]), "prediction", "segment 1 is in the map but not in segments_info"),
        ((ONE, GOOD, ONE, [*GOOD, segment(3, 1)]), "prediction", "segment 3 is listed in segments_info but has no"),
        ((ONE, GOOD, ONE, [*GOOD, segment(2, 1)]), "prediction", "segment 2 is listed twice"),
        ((ONE, GOOD, ONE, [GOOD[0], segment(2, 5)]), "prediction", "segment 2 has the unknown category_id 5"),
        ((ONE, [GOOD[0], segment(2, 5)], ONE, GOOD), "truth", "segment 2 has the unknown category_id 5"),
        ((ONE, [*GOOD, segment(0, 1)], ONE, GOOD), "truth", "0 means void"),
        ((ONE, [*GOOD, segment(1 << 24, 1)], ONE, GOOD), "truth", "not from 0 to 16777215"),
        ((ONE, GOOD, -ONE, GOOD), "prediction", "ids must be from 0 to 16777215"),
        ((ONE << 24, GOOD, ONE, GOOD), "truth", "ids must be from 0 to 16777215"),
        ((ONE, GOOD, ONE.T, GOOD), "prediction", "the map is 4x1 pixels (height x width), the truth is 1x4"),
        ((ONE, [{"id": 1}], ONE, GOOD), "truth", "malformed"),
        ((ONE, [*GOOD, segment(3, 1, area="big")], ONE, GOOD), "truth", "area that is not a number"),
    ],
)
def test_misfits_are_named_and_count_nothing(pair, side, message):
    quality = counted()
    with pytest.raises(SegmentError, match="^.*" + message.replace("(", r"\(").replace(")", r"\)")) as caught:
        quality.update(*pair)
    assert caught.value.side == side
    assert (quality.images, quality.state()["counts"].sum()) == (0, 0)


def test_categories_are_checked():
    for bad in ([], [{"id": 1, "name": "a"}], [CATEGORIES[0], CATEGORIES[0]]):
        with pytest.raises(ValueError, match="categor"):
            PanopticQuality(bad)
    with pytest.raises(ValueError, match="different categories"):
        counted().merge(PanopticQuality(CATEGORIES[:2]))
    with pytest.raises(ValueError, match="different categories"):
        counted().load_state(PanopticQuality(CATEGORIES[:2]).state())


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path):
    save_state(tmp_path / "a.npz", {"x": np.arange(3)})

    class Unwritable:
        def __array__(self, *_args, **_options):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path / "a.npz", {"x": np.arange(9), "y": Unwritable()})
    assert load_state(tmp_path / "a.npz")["x"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_not_a_state(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a saved evaluation state"):
        load_state(tmp_path / "a.npz")
