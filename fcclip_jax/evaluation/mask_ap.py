"""COCO mask AP. The matching is hotcoco's StreamingEval: the only library of those compared that is fed image by
image, merges, and saves itself; its precision arrays are those of pycocotools to the bit (tests/evaluation)."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fcclip_jax.evaluation.accumulator import check_same

try:
    import hotcoco
except ImportError as error:
    raise ImportError("mask AP needs hotcoco: pip install 'fcclip_jax[evaluate]'") from error

MAX_DETECTIONS = (1, 10, 100)
AREAS = ("all", "small", "medium", "large")  # px: any, below 32^2, up to 96^2, above


class MaskAP:
    """Matches detections image by image; keeps about 40 bytes a detection, no masks.

    `categories` as in COCO's JSON: `id`, and `name` for the tables.
    """

    def __init__(self, categories: Sequence[Mapping[str, Any]]):
        self.categories = sorted(
            ({"id": int(c["id"]), "name": str(c.get("name", c["id"]))} for c in categories), key=lambda c: c["id"]
        )
        self._ids = [c["id"] for c in self.categories]
        if len(set(self._ids)) != len(self._ids) or not self._ids:
            raise ValueError("the categories are empty, or an id stands twice among them")
        self._known = frozenset(self._ids)
        self._stream = hotcoco.StreamingEval(self.categories, "segm")
        self._merged: list[hotcoco.StreamingEval] = []
        self.images = 0

    def knows(self, category_id: object) -> bool:
        """Whether this is the id of one of the categories."""
        return isinstance(category_id, int) and category_id in self._known

    def update(
        self,
        image_id: int,
        height: int,
        width: int,
        truth: Sequence[Mapping[str, Any]],
        detections: Sequence[Mapping[str, Any]],
    ) -> None:
        """Counts one image, or raises and counts nothing. Each image once.

        Args:
            image_id: settles the order of equal scores, as in pycocotools.
            height, width: pixels.
            truth: COCO annotations: `category_id`, `segmentation` (RLE or polygons), `area`, `iscrowd` (else 0).
            detections: `category_id`, `segmentation` (RLE), `score`. The hundred best of each class count. Small,
                medium and large go by the area of the mask, even where a detection brings a box (as detectron2).

        Raises:
            ValueError: an unknown category; a score that is not a finite number.
        """
        for annotation in (*truth, *detections):
            if not self.knows(annotation["category_id"]):
                raise ValueError(f"unknown category_id {annotation['category_id']!r}")
        true = [
            {
                # An annotation need not have an id, and pycocotools mistakes the id 0 for "no match".
                "id": number,
                "image_id": image_id,
                "category_id": a["category_id"],
                "segmentation": a["segmentation"],
                "area": a["area"],
                "iscrowd": int(a.get("iscrowd", 0)),
            }
            for number, a in enumerate(truth, start=1)
        ]
        found = [
            {
                "image_id": image_id,
                "category_id": d["category_id"],
                "segmentation": d["segmentation"],
                "score": float(d["score"]),
            }
            for d in detections
        ]
        if not np.isfinite([d["score"] for d in found]).all():
            raise ValueError("a score is not a finite number")
        self._stream.update([{"id": image_id, "height": height, "width": width}], true, found)
        self.images += 1

    def merge(self, other: "MaskAP") -> None:
        check_same(self._ids, other._ids, "categories")
        self._merged += [copy.copy(stream) for stream in (other._stream, *other._merged)]
        self.images += other.images

    def _collected(self) -> hotcoco.StreamingEval:
        if self._merged:  # all at once: each merge copies everything
            self._stream, self._merged = hotcoco.StreamingEval.merge([self._stream, *self._merged]), []
        return self._stream

    def state(self) -> dict[str, np.ndarray]:
        """Readable by the same version of hotcoco."""
        return {
            "category_ids": np.array(self._ids, np.int64),
            "stream": np.frombuffer(self._collected().to_bytes(), np.uint8),
            "images": np.array(self.images, np.int64),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        check_same(self._ids, state["category_ids"], "categories")
        self._stream = hotcoco.StreamingEval.from_bytes(state["stream"].tobytes())
        self._merged = []
        self.images = int(state["images"])

    def compute(self) -> dict:
        """The twelve figures of COCO, percent, None where no object of that size exists; and `per_class` AP, AP50."""
        evaluation = copy.copy(self._collected()).finalize()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])  # [IoU 0.5:0.05:0.95, recall, class, area, detections]
        recall = np.asarray(evaluation.eval["recall"])  # [IoU, class, area, detections]
        figures: dict = {
            "AP": _mean(precision[:, :, :, 0, 2]),
            "AP50": _mean(precision[0, :, :, 0, 2]),
            "AP75": _mean(precision[5, :, :, 0, 2]),
        }
        figures |= {f"AP{area[0]}": _mean(precision[:, :, :, k, 2]) for k, area in enumerate(AREAS) if k}
        figures |= {f"AR{most}": _mean(recall[:, :, 0, m]) for m, most in enumerate(MAX_DETECTIONS)}
        figures |= {f"AR{area[0]}": _mean(recall[:, :, k, 2]) for k, area in enumerate(AREAS) if k}
        figures["per_class"] = [
            c | {"AP": _mean(precision[:, :, k, 0, 2]), "AP50": _mean(precision[0, :, k, 0, 2])}
            for k, c in enumerate(self.categories)
        ]
        return figures


def _mean(values: np.ndarray) -> float | None:
    valid = values[values > -1]
    return float(100.0 * valid.mean()) if valid.size else None
