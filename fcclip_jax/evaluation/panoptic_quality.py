"""Panoptic quality: PQ, SQ and RQ (Kirillov et al., arXiv 1801.00868), with the rules of panopticapi.

A predicted and a true segment of one class match when IoU > 0.5, where predicted pixels on void (id 0 of the truth)
belong to no union. PQ = sum of matched IoU / (TP + FP / 2 + FN / 2), averaged over the classes that occur.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt64

from fcclip_jax.evaluation.accumulator import check_same

VOID = 0
ID_BITS = 24  # of a panoptic PNG: R + 256 G + 65536 B
# IoU sums are kept as whole multiples of 2^-40: whole numbers add up to the same sum in any order and grouping.
# One IoU is rounded by at most 2^-41 = 4.5e-13 of itself at least 0.5, and 8 million of a class fit in 64 bits.
IOU_UNIT = 2.0**-40
LENGTH_BITS = 64 - 2 * ID_BITS

Segments = Sequence[Mapping[str, Any]]


class SegmentError(ValueError):
    """A map and its segments do not fit together. `side`: "truth" or "prediction"."""

    def __init__(self, side: str, message: str):
        super().__init__(message)
        self.side = side


class PanopticQuality:
    """Counts matches per class. `categories` as in COCO's JSON: `id`, `isthing` (0 or 1), and `name` for the tables."""

    def __init__(self, categories: Sequence[Mapping[str, Any]]):
        try:
            self.ids = [int(c["id"]) for c in categories]
            self.isthing = np.array([bool(c["isthing"]) for c in categories], bool)
        except KeyError as error:
            raise ValueError(f"a category has no {error}: each needs an id, a name and isthing (0 or 1)") from None
        self.names = [str(c.get("name", c["id"])) for c in categories]
        self._row = {category: row for row, category in enumerate(self.ids)}
        if len(self._row) != len(self.ids) or not self.ids:
            raise ValueError("the categories are empty, or an id stands twice among them")
        # rows: true positives, false positives, false negatives, sum of IoU in IOU_UNIT
        self._counts = np.zeros((4, len(self.ids)), np.int64)
        self.images = 0

    def update(
        self,
        truth: Integer[np.ndarray, "H W"],
        truth_segments: Segments,
        prediction: Integer[np.ndarray, "h w"],
        predicted_segments: Segments,
    ) -> None:
        """Counts one image, or raises and counts nothing.

        Args:
            truth: segment id of every pixel, 0 is void.
            truth_segments: as `segments_info` of COCO: `id`, `category_id`, and where known `iscrowd` (else 0) and
                `area` in pixels (else counted in the map; panopticapi takes it from here, and so its figures are
                met even where it disagrees with the map). A segment without pixels is a missed one.
            prediction: the same for the prediction; id 0 is "no segment" unless it is listed.
            predicted_segments: `id` and `category_id`; each must have pixels.

        Raises:
            SegmentError: sizes differ; an id in a map that is not listed, listed twice, or out of range; a predicted
                segment without pixels; an unknown category.
        """
        if truth.shape != prediction.shape:
            raise SegmentError(
                "prediction", f"the map is {_size(prediction)} pixels (height x width), the truth is {_size(truth)}"
            )
        true = _Listed(truth_segments, self._row, "truth")
        predicted = _Listed(predicted_segments, self._row, "prediction")
        true_id, predicted_id, pixels = overlaps(truth, prediction)
        t, p = true.find(true_id), predicted.find(predicted_id)
        predicted_area = np.bincount(p, pixels, predicted.count + 1)
        if not predicted_area[: predicted.count].all():
            missing = predicted.ids[: predicted.count][predicted_area[: predicted.count] == 0]
            raise SegmentError("prediction", f"segment {missing[0]} is listed in segments_info but has no pixels")
        true_area = true.area(np.bincount(t, pixels, true.count + 1))
        self._count(true, predicted, t, p, pixels, true_area, predicted_area, true_id == VOID)
        self.images += 1

    def _count(self, true, predicted, t, p, pixels, true_area, predicted_area, on_void) -> None:
        """Matches the pairs (t, p) of overlapping segments; the last row of each list stands for "none"."""
        void = np.bincount(p[on_void], pixels[on_void], predicted.count + 1)
        # the row -1 of "none" and -2 of crowd never equal the class of a predicted segment
        candidate = (true.matchable[t] == predicted.rows[p]) & (p < predicted.count)
        ct, cp, inside = t[candidate], p[candidate], pixels[candidate]
        iou = inside / (predicted_area[cp] + true_area[ct] - inside - void[cp])
        hit = iou > 0.5
        rows = true.matchable[ct[hit]]
        found, used = np.zeros(true.count + 1, bool), np.zeros(predicted.count + 1, bool)
        found[ct[hit]] = True
        used[cp[hit]] = True
        # A predicted segment that lies by more than half on void, or on the crowd of its class, is not counted.
        excused = void
        if true.crowd_row.max(initial=-1) >= 0:
            on_crowd = (true.crowd_row[t] == predicted.rows[p]) & (p < predicted.count)
            excused = void + np.bincount(p[on_crowd], pixels[on_crowd], predicted.count + 1)
        false = ~used[:-1] & (excused[:-1] / predicted_area[:-1] <= 0.5)
        missed = ~found[:-1] & (true.matchable[:-1] >= 0)
        classes = len(self.ids)
        counts = self._counts
        counts[0] += np.bincount(rows, minlength=classes)
        counts[1] += np.bincount(predicted.rows[:-1][false], minlength=classes)
        counts[2] += np.bincount(true.matchable[:-1][missed], minlength=classes)
        np.add.at(counts[3], rows, np.rint(iou[hit] / IOU_UNIT).astype(np.int64))

    def merge(self, other: "PanopticQuality") -> None:
        check_same(self.ids, other.ids, "categories")
        self._counts += other._counts
        self.images += other.images

    def state(self) -> dict[str, np.ndarray]:
        return {
            "category_ids": np.array(self.ids, np.int64),
            "counts": self._counts.copy(),
            "images": np.array(self.images, np.int64),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        check_same(self.ids, state["category_ids"], "categories")
        self._counts = np.array(state["counts"], np.int64).reshape(self._counts.shape)
        self.images = int(state["images"])

    @property
    def tp(self) -> Int64[np.ndarray, " K"]:
        return self._counts[0]

    @property
    def fp(self) -> Int64[np.ndarray, " K"]:
        return self._counts[1]

    @property
    def fn(self) -> Int64[np.ndarray, " K"]:
        return self._counts[2]

    @property
    def iou(self) -> np.ndarray:
        """Sum of the matched IoU per class, float `[K]`."""
        return self._counts[3] * IOU_UNIT

    def compute(self) -> dict:
        """PQ, SQ, RQ and the number `n` of classes that occur, for all classes, things (`_th`) and stuff (`_st`).

        Percent; None where no class occurs. `per_class`: the same by class, with TP, FP, FN and the IoU sum.
        """
        denominator = self.tp + 0.5 * self.fp + 0.5 * self.fn
        occurs = denominator > 0
        pq = 100.0 * self.iou / np.where(occurs, denominator, 1.0)
        rq = 100.0 * self.tp / np.where(occurs, denominator, 1.0)
        sq = 100.0 * self.iou / np.maximum(self.tp, 1)
        figures: dict = {}
        for suffix, chosen in (("", occurs), ("_th", occurs & self.isthing), ("_st", occurs & ~self.isthing)):
            for name, values in (("PQ", pq), ("SQ", sq), ("RQ", rq)):
                figures[name + suffix] = float(values[chosen].mean()) if chosen.any() else None
            figures["n" + suffix] = int(chosen.sum())
        figures["per_class"] = [
            {
                "id": category,
                "name": self.names[k],
                "isthing": bool(self.isthing[k]),
                "PQ": float(pq[k]) if occurs[k] else None,
                "SQ": float(sq[k]) if occurs[k] else None,
                "RQ": float(rq[k]) if occurs[k] else None,
                "TP": int(self.tp[k]),
                "FP": int(self.fp[k]),
                "FN": int(self.fn[k]),
                "IoU_sum": float(self.iou[k]),
            }
            for k, category in enumerate(self.ids)
        ]
        return figures


def overlaps(
    first: Integer[np.ndarray, "H W"], second: Integer[np.ndarray, "H W"]
) -> tuple[UInt64[np.ndarray, " n"], UInt64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """All pairs (id in `first`, id in `second`) that meet in some pixel, and the number of those pixels.

    Raises:
        SegmentError: an id is negative or above 2^24 - 1.
    """
    # Maps are made of runs: a tenth of the pixels or fewer start one, and only those are sorted. Runs are cut at every
    # row and at every 2^15 columns, so that a length fits into the 16 bits that two ids leave free in a 64-bit word.
    flat, other = first.reshape(-1), second.reshape(-1)
    starts = np.empty(flat.shape, bool)
    np.not_equal(flat[1:], flat[:-1], out=starts[1:])
    starts[1:] |= other[1:] != other[:-1]
    starts.reshape(first.shape)[:, :: 1 << 15] = True
    start = np.flatnonzero(starts)
    ids, other_ids = flat[start], other[start]
    for side, values in (("truth", ids), ("prediction", other_ids)):
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < 1 << ID_BITS:
            raise SegmentError(side, f"segment ids must be from 0 to {(1 << ID_BITS) - 1}")
    word = ids.astype(np.uint64) << np.uint64(ID_BITS)
    word |= other_ids.astype(np.uint64)
    word <<= np.uint64(LENGTH_BITS)
    word |= np.diff(start, append=flat.size).astype(np.uint64)
    word.sort()
    length = (word & np.uint64((1 << LENGTH_BITS) - 1)).astype(np.int64)
    word >>= np.uint64(LENGTH_BITS)
    group = np.flatnonzero(np.concatenate([[True], word[1:] != word[:-1]]))
    pairs, pixels = word[group], np.add.reduceat(length, group)
    return pairs >> np.uint64(ID_BITS), pairs & np.uint64((1 << ID_BITS) - 1), pixels


class _Listed:
    """`segments_info` as arrays sorted by id, with one more entry at the end for "none"."""

    def __init__(self, segments: Segments, row_of: Mapping[int, int], side: str):
        self.side, self.count = side, len(segments)
        try:
            listed = sorted((int(s["id"]), place, s) for place, s in enumerate(segments))
            rows = [row_of.get(s["category_id"], -1) for _, _, s in listed]
        except (KeyError, TypeError, ValueError) as error:
            raise SegmentError(side, f"a segment of segments_info is malformed: {error!r}") from None
        if listed and not 0 <= listed[0][0] <= listed[-1][0] < 1 << ID_BITS:
            raise SegmentError(side, f"segments_info has an id that is not from 0 to {(1 << ID_BITS) - 1}")
        if -1 in rows:
            id_, _, segment = listed[rows.index(-1)]
            raise SegmentError(side, f"segment {id_} has the unknown category_id {segment['category_id']!r}")
        self.ids = np.array([id_ for id_, _, _ in listed] + [1 << ID_BITS], np.uint64)
        if (self.ids[1:] == self.ids[:-1]).any():
            raise SegmentError(side, f"segment {self.ids[:-1][self.ids[1:] == self.ids[:-1]][0]} is listed twice")
        self.rows = np.array([*rows, -1], np.int64)
        if side == "truth":
            self._truth(listed, rows)

    def _truth(self, listed: list, rows: list[int]) -> None:
        if listed and listed[0][0] == VOID:
            raise SegmentError(self.side, "segment 0 is listed in segments_info, but 0 means void in the truth")
        crowd = [bool(s.get("iscrowd", 0)) for _, _, s in listed]
        self.matchable = np.array([-2 if c else r for c, r in zip(crowd, rows, strict=True)] + [-1], np.int64)
        # Of several crowd regions of one class, panopticapi knows the one that is listed last.
        last = {}
        for k in sorted(np.flatnonzero(crowd), key=lambda k: listed[k][1]):
            last[rows[k]] = k
        self.crowd_row = np.full(self.count + 1, -1, np.int64)
        for row, k in last.items():
            self.crowd_row[k] = row
        self._area = [s.get("area") for _, _, s in listed]
        if not all(isinstance(area, int | float | None) for area in self._area):
            raise SegmentError(self.side, "a segment of segments_info has an area that is not a number")

    def area(self, counted: np.ndarray) -> np.ndarray:
        return np.array([c if a is None else a for a, c in zip(self._area, counted, strict=False)] + [0.0], np.float64)

    def find(self, ids: np.ndarray) -> Int64[np.ndarray, " n"]:
        """The place of each id in the list; void, where it is not listed, has the place `count`."""
        place = np.searchsorted(self.ids, ids)
        unlisted = self.ids[place] != ids
        place[unlisted] = self.count
        stray = ids[unlisted & (ids != VOID)]
        if stray.size:
            raise SegmentError(self.side, f"segment {stray[0]} is in the map but not in segments_info")
        return place


def _size(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))
