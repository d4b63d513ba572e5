"""Instance AP of Cityscapes, by the rules of cityscapesscripts' evalInstanceLevelSemanticLabeling.

It differs from COCO's: objects below 100 pixels are left out; each of the ten IoU thresholds is strict; of several
masks on one object the surest is right; a false mask is excused when more than the threshold's share of it lies on
unlabelled pixels, groups or small objects; AP is the area under the raw, stepwise precision-recall curve.
(The official tool is no dependency: it works on files through global settings, and numpy 2.4 breaks it.)
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from fcclip_jax.evaluation.accumulator import check_same

OVERLAPS = np.arange(0.5, 1.0, 0.05)
MIN_PIXELS = 100
GROUP_BELOW = 1000  # an instance id is label * 1000 + number; a bare label is a group of objects
INSTANCE_LABELS = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
VOID_LABELS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
EXCUSED, FALSE, TRUE = 0, 1, 2


class CityscapesAP:
    """Matches masks image by image; keeps a score and ten verdicts for each mask, no masks.

    `labels`: Cityscapes label id (not train id) to name, of the classes that are scored.
    """

    def __init__(self, labels: Mapping[int, str] = INSTANCE_LABELS):
        self.labels = dict(labels)
        self._row = {label: row for row, label in enumerate(self.labels)}
        shape = (len(self.labels), len(OVERLAPS))
        self.missed = np.zeros(shape, np.int64)
        """Objects without a mask, `[class, threshold]`."""
        self.objects = np.zeros(len(self.labels), np.int64)
        """Objects of at least MIN_PIXELS, per class."""
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.images = 0

    def update(
        self,
        instance_ids: Integer[np.ndarray, "H W"],
        labels: Sequence[int],
        scores: Sequence[float],
        masks: Iterable[Bool[np.ndarray, "h w"]],
    ) -> None:
        """Counts one image, or raises and counts nothing.

        Args:
            instance_ids: the truth as in `*_gtFine_instanceIds.png`.
            labels: label id of each mask; masks of labels that are not scored are passed over.
            scores: one each.
            masks: bool, one each, of the truth's size; taken one at a time.

        Raises:
            ValueError: sizes or numbers differ; a score is not a finite number; an instance id is out of range.
        """
        if not np.isfinite(np.asarray(scores, np.float64)).all():
            raise ValueError("a score is not a finite number")
        if instance_ids.min() < 0 or instance_ids.max() >= 1 << 16:
            raise ValueError("instance ids must be from 0 to 65535")
        pixels = np.bincount(instance_ids.reshape(-1))
        ids = np.flatnonzero(pixels)
        area = pixels[ids]
        place = np.zeros(pixels.size, np.int64)
        place[ids] = np.arange(ids.size)
        place = place[instance_ids]
        label_of = np.where(ids < GROUP_BELOW, ids, ids // GROUP_BELOW)
        overlap = {row: [] for row in self._row.values()}
        for label, score, mask in zip(labels, scores, masks, strict=True):
            if mask.shape != instance_ids.shape:
                sizes = ["x".join(map(str, a.shape)) for a in (mask, instance_ids)]
                raise ValueError(f"a mask is {sizes[0]} pixels (height x width), the truth is {sizes[1]}")
            if label in self._row and mask.any():
                inside = np.bincount(place[mask], minlength=ids.size)
                overlap[self._row[label]].append((float(score), inside))
        for label, row in self._row.items():
            self._match(row, ids, area, label_of == label, overlap[row])
        self.images += 1

    def _match(self, row: int, ids, area, mine, masks: list[tuple[float, np.ndarray]]) -> None:
        """The verdicts over the masks of one class. `ids`, `area`, `mine`: id, size, is it of this class."""
        scored = mine & (ids >= GROUP_BELOW) & (area >= MIN_PIXELS)
        self.objects[row] += scored.sum()
        if not masks:
            self.missed[row] += scored.sum()
            return
        score = np.array([s for s, _ in masks])
        inside = np.array([i for _, i in masks])  # [masks, ids]
        size = inside.sum(axis=1)
        iou = np.where(mine, inside / (area + size[:, None] - inside), 0.0)
        # groups and small objects both excuse, and count twice where a group is small, as in the official tool
        excusing = inside[:, np.isin(ids, VOID_LABELS)].sum(axis=1)
        excusing = excusing + inside[:, mine & (ids < GROUP_BELOW)].sum(axis=1)
        excusing = excusing + inside[:, mine & (area < MIN_PIXELS)].sum(axis=1)
        verdict = np.full((len(masks), len(OVERLAPS)), EXCUSED, np.uint8)
        for t, least in enumerate(OVERLAPS):
            near = iou > least  # [masks, ids]; a mask is near one object at most, as objects do not overlap
            verdict[~near.any(axis=1) & (excusing / size <= least), t] = FALSE
            for k in np.flatnonzero(scored):
                rivals = np.flatnonzero(near[:, k])
                if rivals.size:
                    verdict[rivals, t] = FALSE
                    verdict[rivals[score[rivals].argmax()], t] = TRUE
                else:
                    self.missed[row, t] += 1
        self._found.append((np.full(len(masks), row, np.int64), score, verdict))

    def _collected(self) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Integer[np.ndarray, "n t"]]:
        """Class, score and verdicts of all masks, in an order that does not depend on that of the images."""
        empty = (np.zeros(0, np.int64), np.zeros(0), np.zeros((0, len(OVERLAPS)), np.uint8))
        rows, scores, verdicts = (np.concatenate(part) for part in zip(empty, *self._found, strict=True))
        order = np.lexsort((*verdicts.T, scores, rows))
        self._found = [(rows[order], scores[order], verdicts[order])]
        return self._found[0]

    def merge(self, other: "CityscapesAP") -> None:
        check_same(list(self.labels), list(other.labels), "labels")
        self.missed += other.missed
        self.objects += other.objects
        self._found += other._found
        self.images += other.images

    def state(self) -> dict[str, np.ndarray]:
        rows, scores, verdicts = self._collected()
        return {
            "labels": np.array(list(self.labels), np.int64),
            "missed": self.missed.copy(),
            "objects": self.objects.copy(),
            "rows": rows,
            "scores": scores,
            "verdicts": verdicts,
            "images": np.array(self.images, np.int64),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        check_same(list(self.labels), state["labels"], "labels")
        self.missed = np.array(state["missed"], np.int64).reshape(self.missed.shape)
        self.objects = np.array(state["objects"], np.int64).reshape(self.objects.shape)
        self._found = [(state["rows"], state["scores"], state["verdicts"])]
        self.images = int(state["images"])

    def compute(self) -> dict:
        """AP (mean over classes that have objects, and thresholds) and AP50, percent; None where there is no object."""
        rows, scores, verdicts = self._collected()
        ap = np.full((len(self.labels), len(OVERLAPS)), np.nan)
        for row in np.flatnonzero(self.objects):
            mine = rows == row
            for t in range(len(OVERLAPS)):
                counts = verdicts[mine, t] != EXCUSED
                right = verdicts[mine, t][counts] == TRUE
                ap[row, t] = average_precision(scores[mine][counts], right, int(self.missed[row, t]))
        present = self.objects > 0
        return {
            "AP": float(100.0 * ap[present].mean()) if present.any() else None,
            "AP50": float(100.0 * ap[present, 0].mean()) if present.any() else None,
            "per_class": [
                {
                    "id": label,
                    "name": name,
                    "AP": float(100.0 * ap[row].mean()) if present[row] else None,
                    "AP50": float(100.0 * ap[row, 0]) if present[row] else None,
                }
                for row, (label, name) in enumerate(self.labels.items())
            ],
        }


def average_precision(scores: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], missed: int) -> float:
    """Area under the precision-recall curve through every score, and (precision 1, recall 0).

    Each precision stands for half the way to the recalls of its two neighbours, the last for half a way only.
    0 without any mask.
    """
    if not scores.size:
        return 0.0
    order = np.argsort(scores)
    first = np.unique(scores[order], return_index=True)[1]  # where each threshold starts
    below = np.concatenate([[0], np.cumsum(right[order])])[first]  # right masks under the threshold
    true = right.sum() - below
    precision = np.append(true / (scores.size - first), 1.0)
    recall = np.append(true / (right.sum() + missed), 0.0)
    padded = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ (0.5 * (padded[:-2] - padded[2:])))
