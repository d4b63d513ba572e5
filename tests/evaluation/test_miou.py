import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.evaluation.miou import LabelError, MeanIoU

seeds = st.integers(0, 2**32 - 1)
# sums of at most 12 ratios in another order
ROUNDING = 1e-13


def counted(classes, *pairs, **options) -> MeanIoU:
    matrix = MeanIoU(classes, **options)
    for truth, prediction in pairs:
        matrix.update(truth, prediction)
    return matrix


def test_by_hand():
    truth = np.array([[0, 0, 0, 0, 1, 1, 255, 255]], np.uint8)
    prediction = np.array([[0, 0, 0, 1, 1, 2, 2, 0]], np.uint8)
    matrix = counted(4, (truth, prediction))
    # IoU: class 0 has 3 of 4, class 1 has 1 of 3; class 2 is only predicted, class 3 never occurs
    figures = matrix.compute()
    assert figures["mIoU"] == pytest.approx(100 * (3 / 4 + 1 / 3) / 2, rel=ROUNDING)
    assert figures["fwIoU"] == pytest.approx(100 * (3 / 4 * 4 + 1 / 3 * 2) / 6, rel=ROUNDING)
    assert figures["mACC"] == pytest.approx(100 * (3 / 4 + 1 / 2) / 2, rel=ROUNDING)
    assert figures["pACC"] == pytest.approx(100 * 4 / 6, rel=ROUNDING)
    assert [c["IoU"] for c in figures["per_class"]][2:] == [None, None]
    assert matrix.confusion[1].tolist() == [1, 1, 0, 0, 0]  # predicted 1: true 0, 1, 2, 3, ignored
    assert matrix.confusion[:, -1].tolist() == [1, 0, 1, 0, 0]


def test_predicting_nothing_is_a_miss():
    truth, prediction = np.array([[0, 0, 1]], np.uint8), np.array([[0, 255, 1]], np.uint8)
    figures = counted(2, (truth, prediction)).compute()
    assert (figures["pACC"], figures["mIoU"]) == (pytest.approx(200 / 3), 75.0)


def test_the_ignored_label_may_be_a_class():
    truth, prediction = np.array([[0, 1, 1, 1]]), np.array([[0, 0, 1, 1]])
    figures = counted(2, (truth, prediction), ignore=0).compute()
    assert [c["IoU"] for c in figures["per_class"]] == [None, pytest.approx(200 / 3)]


def test_nothing_is_labelled():
    blank = np.full((2, 2), 255, np.uint8)
    figures = counted(2, (blank, np.zeros((2, 2), np.uint8))).compute()
    assert [figures[name] for name in ("mIoU", "fwIoU", "mACC", "pACC")] == [None] * 4


def random_pair(seed: int, classes: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, classes, (2, 7, 9))
    truth[rng.random(truth.shape) < 0.2] = 65535 if classes > 255 else 255
    return truth.astype(dtype), prediction.astype(dtype)


@settings(max_examples=100, deadline=None)
@given(seeds, st.sampled_from([(3, np.uint8), (12, np.int64), (300, np.uint16), (300, np.int32)]))
def test_like_the_definition(seed, kind):
    classes, dtype = kind
    truth, prediction = random_pair(seed, classes, dtype)
    ignore = 65535 if classes > 255 else 255
    figures = counted(classes, (truth, prediction), ignore=ignore).compute()
    ious, shares, accuracies = [], [], []
    for k in np.unique(truth[truth != ignore]):
        seen = truth != ignore
        both = ((truth == k) & (prediction == k)).sum()
        ious.append(both / (((truth == k) | (prediction == k)) & seen).sum())
        shares.append((truth == k).sum() / seen.sum())
        accuracies.append(both / (truth == k).sum())
    assert figures["mIoU"] == pytest.approx(100 * np.mean(ious), rel=ROUNDING)
    assert figures["fwIoU"] == pytest.approx(100 * np.dot(ious, shares), rel=ROUNDING)
    assert figures["mACC"] == pytest.approx(100 * np.mean(accuracies), rel=ROUNDING)
    assert figures["pACC"] == pytest.approx(100 * (truth == prediction)[truth != ignore].mean(), rel=ROUNDING)


def test_a_thousand_pairs_like_detectron2():
    """Its SemSegEvaluator: one histogram of `(K + 1) prediction + truth` over all images, ignored labels as class K."""
    classes, histogram = 12, np.zeros(13 * 13, np.int64)
    matrix = MeanIoU(classes)
    for seed in range(1000):
        truth, prediction = random_pair(seed, classes, np.uint8)
        matrix.update(truth, prediction)
        shifted = np.where(truth == 255, classes, truth).astype(np.int64)
        histogram += np.bincount((13 * prediction.astype(np.int64) + shifted).ravel(), minlength=13 * 13)
    counts = histogram.reshape(13, 13)
    right, true, found = np.diag(counts)[:-1], counts[:-1, :-1].sum(0), counts[:-1, :-1].sum(1)
    iou, accuracy = right / (true + found - right), right / true
    figures = matrix.compute()
    assert figures["mIoU"] == pytest.approx(100 * iou.mean(), rel=ROUNDING)
    assert figures["fwIoU"] == pytest.approx(100 * (iou * true).sum() / true.sum(), rel=ROUNDING)
    assert figures["mACC"] == pytest.approx(100 * accuracy.mean(), rel=ROUNDING)
    assert figures["pACC"] == pytest.approx(100 * right.sum() / true.sum(), rel=ROUNDING)


@settings(max_examples=30, deadline=None)
@given(st.lists(seeds, min_size=3, max_size=3))
def test_merging_is_counting_together(numbers):
    pairs = [random_pair(seed, 5, np.uint8) for seed in numbers]
    a, b, c = (counted(5, pair) for pair in pairs)
    resumed = MeanIoU(5)
    resumed.load_state(b.state())
    resumed.merge(c)
    a.merge(resumed)
    together = counted(5, *pairs)
    assert (a.confusion == together.confusion).all()
    assert (a.compute(), a.images) == (together.compute(), 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_misfits_are_named_and_count_nothing(dtype):
    good, bad = np.zeros((2, 3), dtype), np.full((2, 3), 77, dtype)
    matrix = MeanIoU(5)
    for pair, side, message in (
        ((bad, good), "truth", "label 77 is neither one of the 5 classes"),
        ((good, bad), "prediction", "label 77 is neither one of the 5 classes"),
        ((good, good.T), "prediction", "the map is 3x2 pixels .height x width., the truth is 2x3"),
    ):
        with pytest.raises(LabelError, match=message) as caught:
            matrix.update(*pair)
        assert caught.value.side == side
    with pytest.raises(LabelError, match="label -1 is neither"):
        matrix.update(np.full((1, 1), -1), np.zeros((1, 1), int))
    with pytest.raises(LabelError, match="label 70000 is neither"):
        matrix.update(np.zeros((1, 1), int), np.full((1, 1), 70000))
    assert (matrix.images, matrix.confusion.sum()) == (0, 0)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="at least one class"):
        MeanIoU(0)
    with pytest.raises(ValueError, match="the ignored label must be from 0 to 65535, not -1"):
        MeanIoU(3, ignore=-1)
    with pytest.raises(ValueError, match="different classes"):
        MeanIoU(3).merge(MeanIoU(4))
    with pytest.raises(ValueError, match="different ignored labels"):
        MeanIoU(3).load_state(MeanIoU(3, ignore=0).state())
