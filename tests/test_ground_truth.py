"""True regions on the grids of the network, and what is made of them."""

import dataclasses

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from fcclip_jax.data.evaluation_record import EvaluationRecord, TrueInstance, TrueSegment
from fcclip_jax.ground_truth import Regions, cells, named_regions, overlapping, true_regions
from fcclip_jax.vocabulary.vocabulary import Vocabulary

WORDS = Vocabulary.parse(["cat", "dog", "sky [stuff]"])


@dataclasses.dataclass(frozen=True)
class Decoded(EvaluationRecord):
    """A record whose truth is at hand."""

    ids: np.ndarray = None
    segments: tuple = ()
    labels: np.ndarray = None
    objects: tuple = ()

    def panoptic(self):
        return self.ids, list(self.segments)

    def semantic(self):
        return self.labels

    def instances(self):
        return list(self.objects)

    def size(self):
        return (4, 6)


def record(**truth) -> Decoded:
    return Decoded(image_id=1, image_name="x", file_stem="x", image=b"", **truth)


def test_segments_are_regions_but_for_crowds_and_void():
    ids = np.zeros((4, 6), np.int32)
    ids[0], ids[1], ids[2] = 900, 7, 50
    segments = (TrueSegment(900, 1, False, 6), TrueSegment(7, 0, True, 6), TrueSegment(50, 2, False, 6))
    regions = true_regions(record(ids=ids, segments=segments), {"panoptic", "semantic"})
    np.testing.assert_array_equal(regions.place[:, 0], [1, -1, 0, -1])
    np.testing.assert_array_equal(regions.classes, [2, 1])


def test_classes_are_regions_where_there_are_no_segments():
    labels = np.full((4, 6), 255, np.int32)
    labels[0], labels[3, :2] = 2, 0
    regions = true_regions(record(labels=labels), {"semantic"})
    np.testing.assert_array_equal(regions.classes, [0, 2])
    np.testing.assert_array_equal(regions.place[:, 0], [1, -1, -1, 0])
    assert (regions.place[3, 2:] == -1).all()


def test_of_instances_the_small_ones_lie_above():
    large, small = np.zeros((4, 6), np.uint8, "F"), np.zeros((4, 6), np.uint8, "F")
    large[:3], small[1, 1] = 1, 1
    objects = tuple(TrueInstance(k, coco_mask.encode(m), False, float(m.sum())) for k, m in enumerate((small, large)))
    regions = true_regions(record(objects=objects), {"instance"})
    np.testing.assert_array_equal(regions.classes, [1, 0])
    assert regions.place[1, 1] == 1 and (regions.place[:3] >= 0).all() and (regions.place[3] == -1).all()


def test_cells_by_hand():
    """An image of 8 x 8 shown at 16 x 16 in a padded 16 x 32: a cell of stride 4 is 2 x 2 pixels."""
    place = np.full((8, 8), -1)
    place[:3, :3] = 0  # the cell (0, 0) wholly, (0, 1) and (1, 0) by half, (1, 1) by a quarter
    place[7, 7] = 1  # a quarter of one cell: the most that it has
    found = cells(Regions(place, np.array([2, 0])), (16, 16), (16, 32), 4)
    assert found.shape == (2, 4, 8)
    np.testing.assert_array_equal(np.argwhere(found[0]), [[0, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(np.argwhere(found[1]), [[3, 3]])


@pytest.mark.parametrize("stride", [4, 32])
def test_every_region_with_a_pixel_has_a_cell_inside_the_image(stride):
    rng = np.random.default_rng(3)
    place = rng.integers(-1, 20, (37, 61))
    found = cells(Regions(place, np.zeros(21, np.int64)), (64, 105), (64, 128), stride)
    assert found[:20].any(axis=(1, 2)).all() and not found[20].any()
    assert not found[:, :, -(-105 // stride) :].any()


def test_named_regions():
    place = np.full((4, 6), -1)
    place[0], place[1], place[2, :3] = 0, 1, 2
    probs = np.array([[0.1, 0.2, 0.7], [0.0, 0.1, 0.9], [0.6, 0.3, 0.1]], np.float32)
    results = named_regions(Regions(place, np.array([0, 0, 0])), probs, WORDS, 255)
    np.testing.assert_array_equal(results.panoptic[:, 0], [1, 1, 2, 0])
    assert [(s.id, s.name, s.area) for s in results.segments] == [(1, "sky", 12), (2, "cat", 3)]
    np.testing.assert_array_equal(results.semantic[:, 0], [2, 2, 0, 255])
    assert results.semantic.dtype == np.uint8
    # Things only, the best first: the cat of region 2, its dog, the dog of region 0, ...
    assert [(i.name, round(i.score, 4)) for i in results.instances[:3]] == [("cat", 0.6), ("dog", 0.3), ("dog", 0.2)]
    assert results.instances[0].mask.sum() == 3 and len(results.instances) == 6


def test_nothing_true_is_nothing_found():
    nothing = Regions(np.full((4, 6), -1), np.zeros(0, int))
    assert cells(nothing, (64, 96), (64, 96), 4).shape == (0, 16, 24)
    results = named_regions(nothing, np.zeros((0, 3), np.float32), WORDS, 255)
    assert results.segments == [] and results.instances == []
    assert (results.panoptic == 0).all() and (results.semantic == 255).all()


def test_the_region_that_a_mask_overlaps_most():
    masks = np.array([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], np.float32)
    regions = np.array([[1, 1, 1, 0], [0, 1, 0, 0]], bool)
    nearest, met = overlapping(masks, regions)
    np.testing.assert_array_equal(met, [True, False, False])
    assert nearest[0] == 0  # IoU 2/3 against 1/2
    assert not overlapping(masks, np.zeros((0, 4), bool))[1].any()
