"""What a model could do with half of the answer given: the true masks, or the true classes (an upper bound each)."""

import dataclasses
from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from pycocotools import mask as coco_mask

from fcclip_jax.data import buckets, transforms
from fcclip_jax.data.evaluation_record import EvaluationRecord
from fcclip_jax.results.instance import top_pairs
from fcclip_jax.results.results import Results, compute_results, softmax
from fcclip_jax.segmenter import Segmenter
from fcclip_jax.structures import Instance, Segment
from fcclip_jax.vocabulary.vocabulary import Vocabulary

_BUCKET = 32  # true regions are compiled for in multiples of this
_MAX_INSTANCES = 100


@dataclasses.dataclass(frozen=True)
class Regions:
    """The true regions of an image that a model is to find: `place` `[H,W]`, the region of each pixel, -1 for none;
    `classes` `[N]`. Regions do not overlap. Crowds and void are none."""

    place: Int[np.ndarray, "H W"]
    classes: Int[np.ndarray, " N"]


def true_regions(record: EvaluationRecord, truths: Collection[str]) -> Regions:
    """The segments of the panoptic truth; else the classes of the semantic truth; else the instances, of which the
    smaller ones lie above.

    Raises:
        DataError: the truth is damaged or does not fit the image.
    """
    if "panoptic" in truths:
        ids, segments = record.panoptic()
        segments = sorted((s for s in segments if not s.iscrowd), key=lambda s: s.id)
        known = np.array([s.id for s in segments], np.int64)
        place = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
        found = known[place] == ids if len(known) else np.zeros(ids.shape, bool)
        return Regions(np.where(found, place, -1), np.array([s.class_index for s in segments], np.int64))
    if "semantic" in truths:
        labels = record.semantic()
        classes, place = np.unique(labels, return_inverse=True)
        place, ignored = place.reshape(labels.shape), 255 if labels.max(initial=0) <= 255 else 65535
        real = classes != ignored
        return Regions(np.where(real[place], (np.cumsum(real) - 1)[place], -1), classes[real].astype(np.int64))
    place = np.full(record.size(), -1, np.int64)
    objects = sorted((i for i in record.instances() if not i.iscrowd), key=lambda i: -i.area)
    for number, instance in enumerate(objects):
        place[coco_mask.decode(instance.rle).astype(bool)] = number
    return Regions(place, np.array([i.class_index for i in objects], np.int64))


def cells(regions: Regions, network_size: tuple[int, int], padded: tuple[int, int], stride: int) -> np.ndarray:
    """Each region on a coarser grid, bool `[N,h,w]`: the cells that it covers by half or more; for a region too small
    for that, the cells that it covers most.

    Args:
        network_size: of the image in the network.
        padded: the same with padding, a multiple of `stride`.
    """
    height, width = regions.place.shape
    h, w = padded[0] // stride, padded[1] // stride
    y = ((np.arange(height) + 0.5) * network_size[0] / height / stride).astype(np.int64)
    x = ((np.arange(width) + 0.5) * network_size[1] / width / stride).astype(np.int64)
    cell = (y[:, None] * w + x).reshape(-1)
    place, count = regions.place.reshape(-1), len(regions.classes)
    inside = place >= 0
    pixels = np.bincount(place[inside] * (h * w) + cell[inside], minlength=count * h * w).reshape(count, h * w)
    whole = np.maximum(np.bincount(cell, minlength=h * w), 1)
    share = pixels / whole
    most = share.max(axis=1, initial=0.0, keepdims=True)
    return ((share >= np.minimum(0.5, most)) & (share > 0)).reshape(count, h, w)


def with_true_masks(
    segmenter: Segmenter,
    image: np.ndarray,
    record: EvaluationRecord,
    vocabulary: Vocabulary,
    truths: Collection[str],
    nothing: int,
) -> Results:
    """The true regions, named by the model: the out-vocabulary classifier sees the region itself, the in-vocabulary one
    the query whose mask overlaps most. No region is called void.

    Args:
        nothing: what the semantic map holds where no region is.
    """
    regions = true_regions(record, truths)
    count = len(regions.classes)
    if count:
        network_size = transforms.target_size(*image.shape[:2], segmenter.min_size, segmenter.max_size)
        padded = buckets.extent(*network_size)
        filling = -count % _BUCKET
        fine, coarse = (
            np.pad(cells(regions, network_size, padded, stride), ((0, filling), (0, 0), (0, 0))) for stride in (4, 32)
        )
        log_probs = segmenter.class_log_probs(segmenter.encode_masks(image, fine, coarse), vocabulary)
        probs = softmax(np.asarray(log_probs, np.float32)[:count, :-1])
    else:
        probs = np.zeros((0, vocabulary.num_classes), np.float32)
    return named_regions(regions, probs, vocabulary, nothing)


def named_regions(regions: Regions, probs: Float[np.ndarray, "N K"], vocabulary: Vocabulary, nothing: int) -> Results:
    """Results whose masks are the regions. Stuff regions of one class are one segment."""
    labels, isthing, names = probs.argmax(axis=1), vocabulary.isthing, vocabulary.names
    areas = np.bincount(regions.place[regions.place >= 0], minlength=len(labels))
    ids, segments, stuff = np.zeros(len(labels) + 1, np.int32), [], {}
    for n, label in enumerate(labels.tolist()):
        if not areas[n]:
            continue
        if label in stuff:
            ids[n] = stuff[label]
            merged = segments[ids[n] - 1]
            segments[ids[n] - 1] = dataclasses.replace(merged, area=merged.area + int(areas[n]))
            continue
        ids[n] = len(segments) + 1
        if not isthing[label]:
            stuff[label] = int(ids[n])
        score = float(probs[n, label])
        segments.append(Segment(int(ids[n]), label, names[label], bool(isthing[label]), score, int(areas[n])))
    semantic = np.append(labels, nothing)[regions.place]
    instances = []
    if len(labels):
        rows, classes = top_pairs(probs, isthing, _MAX_INSTANCES)
        masks = {n: coco_mask.encode(np.asfortranarray(regions.place == n, np.uint8)) for n in np.unique(rows)}
        instances = [
            Instance(int(c), names[c], float(probs[n, c]), dict(masks[n]))
            for n, c in sorted(zip(rows, classes, strict=True), key=lambda pair: -probs[pair])
        ]
    # the place -1 of "none" is the last entry
    return Results(ids[regions.place], segments, _small(semantic, nothing), instances)


def _small(labels: Integer[np.ndarray, "H W"], largest: int) -> Integer[np.ndarray, "H W"]:
    return labels.astype(np.uint8 if largest <= 255 else np.uint16)


def with_true_classes(
    segmenter: Segmenter,
    image: np.ndarray,
    record: EvaluationRecord,
    vocabulary: Vocabulary,
    truths: Collection[str],
    **options,
) -> Results:
    """The masks that the model finds, each with the class of the true region that it overlaps most (IoU). A mask that
    meets none is void; else its void probability stays the model's.

    Args:
        options: those of `compute_results`: `tasks` and thresholds.
    """
    encoded = segmenter.encode(image)
    masks = encoded.predictions.masks[0]
    rows, columns = (edge // 4 for edge in encoded.padded_size)
    log_probs = np.asarray(segmenter.class_log_probs(encoded, vocabulary))
    regions = true_regions(record, truths)
    found = (np.asarray(masks[:, :rows, :columns]) > 0).reshape(-1, rows * columns).astype(np.float32)
    true = cells(regions, encoded.network_size, encoded.padded_size, 4).reshape(-1, rows * columns)
    nearest, met = overlapping(found, true)
    void = np.where(met, np.exp(log_probs[:, -1]), 1.0)
    probs = np.zeros(log_probs.shape, np.float32)
    probs[:, -1] = void
    probs[np.flatnonzero(met), regions.classes[nearest[met]]] = 1 - void[met]
    return compute_results(
        masks,
        np.log(probs + 1e-8),
        network_size=encoded.network_size,
        padded_size=encoded.padded_size,
        output_size=image.shape[:2],
        names=vocabulary.names,
        isthing=vocabulary.isthing,
        **options,
    )


def overlapping(
    masks: Float[np.ndarray, "Q P"], regions: Bool[np.ndarray, "N P"]
) -> tuple[Int[np.ndarray, " Q"], Bool[np.ndarray, " Q"]]:
    """For each mask the region with the largest IoU, and whether it meets any."""
    if not len(regions):
        return np.zeros(len(masks), np.int64), np.zeros(len(masks), bool)
    shared = masks @ regions.T.astype(np.float32)
    union = masks.sum(axis=1)[:, None] + regions.sum(axis=1) - shared
    iou = shared / np.maximum(union, 1.0)
    return iou.argmax(axis=1), iou.max(axis=1) > 0
