import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

pytest.importorskip("hotcoco", reason="mask AP needs hotcoco, of the extra `evaluate`")
from fcclip_jax.evaluation.mask_ap import MaskAP

# pycocotools' own decode, under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CATEGORIES = [{"id": k, "name": f"class {k}"} for k in (3, 1, 90, 17)]
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def rle(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def box(height: int, width: int, y: int, x: int, h: int, w: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = True
    return mask


def random_image(rng: np.random.Generator, image_id: int) -> tuple[dict, list[dict], list[dict]]:
    """Objects as RLE, uncompressed RLE and polygons, with crowds; detections near them and elsewhere, equal scores."""
    height, width = 120, 150
    truth, detections = [], []
    for _ in range(rng.integers(0, 7)):
        h, w = np.exp(rng.uniform(1, 4.7, 2)).astype(int)
        y, x = rng.integers(-5, height - 2), rng.integers(-5, width - 2)
        mask = box(height, width, y, x, h, w)
        form = rng.integers(3)
        segmentation = rle(mask)
        if form == 1:
            changes = np.flatnonzero(np.diff(mask.T.reshape(-1).astype(int), prepend=0, append=-1))
            segmentation = {"size": [height, width], "counts": np.diff(changes, prepend=0).tolist()}
        elif form == 2:
            segmentation = [[float(v) for v in (x, y, x + w, y + 0.3, x + w - 1.5, y + h, x + 0.7, y + h)]]
            mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))).astype(bool)
        if not mask.any():
            continue
        category = int(rng.choice([3, 1, 90]))
        truth.append(
            {
                "image_id": image_id,
                "category_id": category,
                "segmentation": segmentation,
                "area": int(mask.sum()),
                "iscrowd": int(form == 1 and rng.random() < 0.4),
            }
        )
        for _ in range(rng.integers(0, 5)):
            dy, dx, dh, dw = rng.integers(-4, 5, 4)
            near = box(height, width, y + dy, x + dx, max(h + dh, 1), max(w + dw, 1))
            detections.append((near, category if rng.random() < 0.8 else int(rng.choice([3, 1, 17]))))
    for _ in range(rng.integers(0, 4)):
        detections.append((box(height, width, *rng.integers(0, 100, 4)), 3))
    return (
        {"id": image_id, "height": height, "width": width},
        truth,
        [
            {
                "image_id": image_id,
                "category_id": category,
                "segmentation": rle(mask),
                "score": float(rng.integers(1, 10) / 10),
            }
            for mask, category in detections
        ],
    )


def counted(*images) -> MaskAP:
    ap = MaskAP(CATEGORIES)
    for image, truth, detections in images:
        ap.update(image["id"], image["height"], image["width"], truth, detections)
    return ap


def fractions(figures: dict) -> list[float]:
    """As pycocotools gives them: from 0 to 1, -1 where there is none."""
    return [-1 if figures[name] is None else figures[name] / 100 for name in STATS]


def official(images) -> tuple[np.ndarray, dict]:
    """pycocotools' twelve figures, and AP by class."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        annotations = [a | {"id": k} for k, a in enumerate((a for i in images for a in i[1]), start=1)]
        coco.dataset = {"images": [i[0] for i in images], "annotations": annotations, "categories": CATEGORIES}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(d) for i in images for d in i[2]]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    by_class = {}
    for k, category in enumerate(sorted(c["id"] for c in CATEGORIES)):
        precision = evaluation.eval["precision"][:, :, k, 0, 2]
        precision = precision[precision > -1]
        by_class[category] = 100.0 * precision.mean() if precision.size else -1
    return evaluation.stats, by_class


def test_by_hand():
    # 72 of 100 pixels: IoU 0.72 is enough at 0.5, 0.55, 0.6, 0.65, 0.7 of the ten thresholds
    truth = {"category_id": 3, "segmentation": rle(box(20, 20, 0, 0, 10, 10)), "area": 100}
    found = {"category_id": 3, "segmentation": rle(box(20, 20, 0, 0, 9, 8)), "score": 0.3}
    figures = counted(({"id": 1, "height": 20, "width": 20}, [truth], [found])).compute()
    assert figures["AP"] == figures["APs"] == pytest.approx(50.0, rel=1e-15)
    assert (figures["AP50"], figures["AP75"], figures["APm"], figures["AR1"]) == (
        pytest.approx(100.0, rel=1e-15),
        0.0,
        None,
        pytest.approx(50.0, rel=1e-15),
    )
    assert [c["AP"] for c in figures["per_class"]] == [None, pytest.approx(50.0, rel=1e-15), None, None]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equal_to_pycocotools(seed):
    rng = np.random.default_rng(seed)
    images = [random_image(rng, image_id) for image_id in rng.choice(1000, 12, replace=False).tolist()]
    if not any(image[2] for image in images):
        return  # pycocotools cannot load an empty list
    figures = counted(*images).compute()
    stats, by_class = official(images)
    # the same arrays; only the factor 100 is applied before or after the mean
    assert fractions(figures) == pytest.approx(stats.tolist(), rel=1e-15)
    found = {c["id"]: -1 if c["AP"] is None else c["AP"] for c in figures["per_class"]}
    assert found == pytest.approx(by_class, rel=1e-15)


def test_equal_to_pycocotools_on_a_thousand_images():
    """Crowds, images without objects or detections, and objects of a single pixel are among them."""
    rng = np.random.default_rng(7)
    images = [random_image(rng, image_id) for image_id in range(1000)]
    for image, truth, _ in images[::3]:
        pixel = box(120, 150, *rng.integers(0, 100, 2), 1, 1)
        truth.append({"image_id": image["id"], "category_id": 3, "segmentation": rle(pixel), "area": 1, "iscrowd": 0})
    assert sum(not truth for _, truth, _ in images) > 30 and sum(not found for *_, found in images) > 10
    assert sum(t["iscrowd"] for _, truth, _ in images for t in truth) > 100
    stats, by_class = official(images)
    figures = counted(*images).compute()
    assert fractions(figures) == pytest.approx(stats.tolist(), rel=1e-12)
    assert {c["id"]: -1 if c["AP"] is None else c["AP"] for c in figures["per_class"]} == pytest.approx(
        by_class, rel=1e-12
    )


def test_more_than_a_hundred_detections():
    rng = np.random.default_rng(0)
    image, truth, _ = random_image(rng, 5)
    detections = [random_image(rng, 5)[2] for _ in range(60)]
    images = [(image, truth, [d | {"category_id": 3} for some in detections for d in some])]
    assert len(images[0][2]) > 200
    figures = counted(*images).compute()
    assert fractions(figures) == pytest.approx(official(images)[0].tolist())


def test_detections_without_masks_of_the_truth_and_the_reverse():
    image, truth, detections = random_image(np.random.default_rng(3), 1)
    assert truth and detections
    assert counted((image, truth, [])).compute()["AP"] == 0.0
    assert counted((image, [], detections)).compute()["AP"] is None


def test_the_area_of_a_mask_not_of_its_box_sorts_it_by_size():
    diagonal = np.eye(100, dtype=bool)
    image = {"id": 1, "height": 100, "width": 100}
    truth = [{"category_id": 3, "segmentation": rle(diagonal), "area": 100}]
    found = {"category_id": 3, "segmentation": rle(diagonal), "score": 0.3, "bbox": [0, 0, 100, 100]}
    wrong = found | {"segmentation": rle(np.fliplr(diagonal)), "score": 0.9}
    assert counted((image, truth, [found, wrong])).compute()["APs"] == pytest.approx(50.0, abs=0.5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(8)))
def test_any_grouping_gives_the_same_bits(seed, order):
    rng = np.random.default_rng(seed)
    images = [random_image(rng, image_id) for image_id in range(8)]
    expected = counted(*images).compute()
    a, b, c = (counted(*(images[k] for k in part)) for part in (order[:3], order[3:4], order[4:]))
    resumed = MaskAP(CATEGORIES)
    resumed.load_state(b.state())
    resumed.merge(c)
    resumed.merge(a)
    assert resumed.compute() == expected
    assert resumed.compute() == expected  # once more: computing consumes nothing
    state = resumed.state()
    a.update(77, 120, 150, images[0][1], [])
    resumed.update(99, 120, 150, [], [])
    assert (resumed.compute(), resumed.images) == (expected, 9)
    resumed.merge(a)
    resumed.load_state(state)  # forgets what came after
    assert (resumed.compute(), resumed.images) == (expected, 8)


def test_what_was_merged_does_not_change_with_its_source():
    images = [random_image(np.random.default_rng(seed), seed) for seed in (3, 4)]
    total, part = counted(), counted(images[0])
    total.merge(part)
    expected = counted(images[0]).compute()
    part.update(4, 120, 150, images[1][1], images[1][2])
    assert images[1][1]
    assert total.compute() == expected != part.compute()


def test_misfits_count_nothing():
    _, truth, detections = random_image(np.random.default_rng(3), 1)
    ap = counted()
    with pytest.raises(ValueError, match="unknown category_id 4"):
        ap.update(1, 120, 150, truth, [detections[0] | {"category_id": 4}])
    with pytest.raises(ValueError, match="unknown category_id 'a'"):
        ap.update(1, 120, 150, [truth[0] | {"category_id": "a"}], [])
    with pytest.raises(ValueError, match="not a finite number"):
        ap.update(1, 120, 150, truth, [detections[0] | {"score": float("nan")}])
    assert (ap.images, ap.compute()["AP"]) == (0, None)
    with pytest.raises(ValueError, match="an id stands twice"):
        MaskAP([CATEGORIES[0]] * 2)
    with pytest.raises(ValueError, match="different categories"):
        ap.merge(MaskAP(CATEGORIES[1:]))
