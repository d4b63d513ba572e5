import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instance_samples import random_cityscapes

from fcclip_jax.evaluation.cityscapes_ap import OVERLAPS, CityscapesAP, average_precision

PERSON, CAR, ROAD = 24, 26, 7


def mask(columns: slice, rows: slice = slice(None)) -> np.ndarray:
    result = np.zeros((20, 20), bool)
    result[rows, columns] = True
    return result


def scene(*objects: tuple[int, slice]) -> np.ndarray:
    """A road of 20 x 20 pixels with instance ids on some columns."""
    ids = np.full((20, 20), ROAD, np.uint16)
    for id_, columns in objects:
        ids[:, columns] = id_
    return ids


def counted(*images) -> CityscapesAP:
    ap = CityscapesAP()
    for ids, found in images:
        ap.update(ids, [f[0] for f in found], [f[1] for f in found], [f[2] for f in found])
    return ap


def ap_of(figures: dict, label: int) -> float | None:
    return next(c["AP"] for c in figures["per_class"] if c["id"] == label)


ALL = slice(None)
LEFT, RIGHT = slice(0, 10), slice(10, 20)


def test_all_found():
    image = scene((PERSON * 1000 + 1, LEFT), (CAR * 1000, RIGHT))
    figures = counted((image, [(PERSON, 0.9, mask(LEFT)), (CAR, 0.2, mask(RIGHT))])).compute()
    assert (figures["AP"], figures["AP50"]) == (100.0, 100.0)
    assert ap_of(figures, 33) is None


def test_thresholds_are_strict():
    # 8 of 10 columns: IoU 0.8, above 0.5 .. 0.75, and not above the float 0.8 (0.8000000000000003)
    figures = counted((scene((PERSON * 1000, LEFT)), [(PERSON, 0.9, mask(slice(0, 8)))])).compute()
    assert OVERLAPS[6] > 0.8
    assert figures["AP"] == pytest.approx(60.0, rel=1e-15)


def test_the_surest_of_two_masks_is_right():
    found = [(PERSON, 0.4, mask(LEFT)), (PERSON, 0.9, mask(LEFT))]
    # precision 1 at the score 0.9 and recall 1; the second mask comes after all is found
    assert counted((scene((PERSON * 1000, LEFT)), found)).compute()["AP"] == 100.0


def test_a_false_mask_with_a_higher_score():
    found = [(PERSON, 0.4, mask(LEFT)), (PERSON, 0.9, mask(RIGHT))]
    # thresholds 0.4: precision 1/2, recall 1; 0.9: 0, 0; end: 1, 0. Each precision covers half of both its sides.
    assert counted((scene((PERSON * 1000, LEFT)), found)).compute()["AP"] == pytest.approx(25.0, rel=1e-15)


@pytest.mark.parametrize(
    ("other", "on", "excused"),
    [
        ((PERSON, RIGHT), RIGHT, True),  # a group, as one
        ((PERSON, RIGHT), slice(12, 15), True),  # inside a group
        ((CAR, RIGHT), slice(12, 15), False),  # a group of another class
        ((CAR * 1000, RIGHT), RIGHT, False),  # an object of another class
        ((0, RIGHT), RIGHT, True),  # unlabelled
        ((0, slice(10, 15)), RIGHT, False),  # half of it unlabelled: not more than any threshold
        ((PERSON * 1000 + 7, slice(10, 14)), slice(10, 11), True),  # inside a small object
        ((PERSON * 1000 + 7, slice(10, 14)), RIGHT, False),  # a small object on 40 % of the mask
    ],
)
def test_excuses(other, on, excused):
    found = [(PERSON, 0.4, mask(LEFT)), (PERSON, 0.9, mask(on))]
    figures = counted((scene((PERSON * 1000, LEFT), other), found)).compute()
    expected = 100.0 if excused else pytest.approx(25.0, rel=1e-15)
    assert next((c["AP"], c["AP50"]) for c in figures["per_class"] if c["id"] == PERSON) == (expected, expected)


def test_half_of_an_object_is_not_enough():
    assert counted((scene((PERSON * 1000, LEFT)), [(PERSON, 0.9, mask(slice(0, 5)))])).compute()["AP50"] == 0.0


def test_a_mask_on_a_small_object_is_passed_over():
    image = scene((PERSON * 1000, LEFT), (PERSON * 1000 + 7, slice(10, 14)))
    found = [(PERSON, 0.4, mask(LEFT)), (PERSON, 0.9, mask(slice(10, 14)))]
    ap = counted((image, found))
    assert ap.objects.sum() == 1
    assert ap.compute()["AP"] == 100.0


def test_missed_and_empty():
    assert counted((scene((PERSON * 1000, LEFT)), [])).compute()["AP"] == 0.0
    assert counted((scene((PERSON * 1000, LEFT)), [(PERSON, 0.9, mask(slice(0, 0)))])).compute()["AP"] == 0.0
    assert counted((scene((PERSON, ALL)), [(PERSON, 0.9, mask(ALL))])).compute()["AP"] is None
    # every mask is excused and the object is missed: the official tool fails here
    image = scene((PERSON * 1000, LEFT), (0, RIGHT))
    assert counted((image, [(PERSON, 0.9, mask(RIGHT))])).compute()["AP"] == 0.0
    assert counted((scene(), [(ROAD, 0.9, mask(ALL))])).compute()["AP"] is None


def test_equal_scores_are_one_threshold():
    assert average_precision(np.array([0.5, 0.5]), np.array([True, False]), 0) == 0.5 * 0.5 + 1.0 * 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(6)))
def test_any_grouping_gives_the_same_bits(seed, order):
    rng = np.random.default_rng(seed)
    images = [random_cityscapes(rng) for _ in range(6)]
    expected = counted(*images)
    a, b, c = (counted(*(images[k] for k in part)) for part in (order[:2], order[2:3], order[3:]))
    resumed = CityscapesAP()
    resumed.load_state(b.state())
    resumed.merge(c)
    resumed.merge(a)
    assert (resumed.compute(), resumed.images) == (expected.compute(), 6)
    for name, array in resumed.state().items():
        np.testing.assert_array_equal(array, expected.state()[name])


def test_misfits_count_nothing():
    image = scene((PERSON * 1000, LEFT))
    ap = CityscapesAP()
    for call, message in (
        ((image, [PERSON], [float("nan")], [mask(LEFT)]), "not a finite number"),
        ((image, [PERSON], [0.5], [mask(LEFT)[:5]]), "a mask is 5x20 pixels .height x width., the truth is 20x20"),
        ((image, [PERSON, PERSON], [0.5], [mask(LEFT)] * 2), "shorter"),
        ((np.full((20, 20), -1), [PERSON], [0.5], [mask(LEFT)]), "from 0 to 65535"),
    ):
        with pytest.raises(ValueError, match=message):
            ap.update(*call)
    assert (ap.images, ap.objects.sum()) == (0, 0)
    with pytest.raises(ValueError, match="different labels"):
        ap.merge(CityscapesAP({24: "person"}))
