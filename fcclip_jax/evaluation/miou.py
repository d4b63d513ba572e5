"""Mean intersection over union and pixel accuracies, as detectron2's SemSegEvaluator defines them."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64, Integer

from fcclip_jax.evaluation.accumulator import check_same, percent

IGNORE = 255


class LabelError(ValueError):
    """A label map has a value that is no class, or another size. `side`: "truth" or "prediction"."""

    def __init__(self, side: str, message: str):
        super().__init__(message)
        self.side = side


class MeanIoU:
    """Counts pixels in a confusion matrix.

    Args:
        classes: their number or their names; labels are 0 .. K - 1.
        ignore: pixels whose true label is this are not counted. It may be one of the classes.
    """

    def __init__(self, classes: int | Sequence[str], ignore: int = IGNORE):
        self.names = [str(k) for k in range(classes)] if isinstance(classes, int) else list(classes)
        self.ignore = ignore
        count = len(self.names)
        if not count:
            raise ValueError("at least one class is needed")
        # label -> row or column: K is "ignored" (truth) or "no class" (prediction), K + 1 is an error
        self._column = np.full(1 << 16, count + 1, np.int64)
        self._column[:count] = np.arange(count)
        self._row = self._column.copy()
        if not 0 <= ignore < self._column.size:
            raise ValueError(f"the ignored label must be from 0 to {self._column.size - 1}, not {ignore}")
        self._column[ignore] = self._row[ignore] = count
        self._row *= count + 2
        self.confusion = np.zeros((count + 1, count + 1), np.int64)
        """Pixels `[K+1,K+1]`, predicted class by true class; the last row is "no class", the last column ignored."""
        self.images = 0

    def update(self, truth: Integer[np.ndarray, "H W"], prediction: Integer[np.ndarray, "h w"]) -> None:
        """Counts one image, or raises and counts nothing.

        A predicted pixel with the ignored label is a prediction of no class: missed, and nobody's false positive.

        Raises:
            LabelError: sizes differ; a label is neither a class nor the ignored one.
        """
        if truth.shape != prediction.shape:
            sizes = ["x".join(map(str, array.shape)) for array in (prediction, truth)]
            raise LabelError("prediction", f"the map is {sizes[0]} pixels (height x width), the truth is {sizes[1]}")
        count = len(self.names)
        cell = self._look_up(self._row, prediction, "prediction") + self._look_up(self._column, truth, "truth")
        counted = np.bincount(cell.reshape(-1), minlength=(count + 2) ** 2).reshape(count + 2, count + 2)
        for side, stray, labels in (("truth", counted[:, -1], truth), ("prediction", counted[-1], prediction)):
            if stray.any():
                self._complain(side, labels)
        self.confusion += counted[:-1, :-1]
        self.images += 1

    def _look_up(self, table: np.ndarray, labels: np.ndarray, side: str) -> np.ndarray:
        if labels.dtype not in (np.uint8, np.uint16) and (labels.min() < 0 or labels.max() >= table.size):
            self._complain(side, labels)
        return table[labels]

    def _complain(self, side: str, labels: np.ndarray) -> None:
        strays = labels[(labels < 0) | (labels >= len(self.names)) & (labels != self.ignore)]
        raise LabelError(
            side,
            f"label {strays[0]} is neither one of the {len(self.names)} classes (0 to {len(self.names) - 1}) "
            f"nor the ignored label {self.ignore}",
        )

    def merge(self, other: "MeanIoU") -> None:
        check_same(self.names, other.names, "classes")
        check_same(self.ignore, other.ignore, "ignored labels")
        self.confusion += other.confusion
        self.images += other.images

    def state(self) -> dict[str, np.ndarray]:
        return {
            "names": np.array(self.names, np.str_),
            "ignore": np.array(self.ignore, np.int64),
            "confusion": self.confusion.copy(),
            "images": np.array(self.images, np.int64),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        check_same(self.names, state["names"], "classes")
        check_same(self.ignore, state["ignore"], "ignored labels")
        self.confusion = np.array(state["confusion"], np.int64).reshape(self.confusion.shape)
        self.images = int(state["images"])

    @property
    def true_pixels(self) -> Int64[np.ndarray, " K"]:
        """Pixels of each true class."""
        return self.confusion[:, :-1].sum(axis=0)

    def compute(self) -> dict:
        """mIoU, frequency-weighted fwIoU, mean accuracy mACC, pixel accuracy pACC, percent.

        Means are over the classes that the truth has; None when it has none. `per_class`: IoU and ACC, None for
        a class that the truth lacks, whether or not it was predicted.
        """
        hits = np.diagonal(self.confusion)[:-1]
        true = self.true_pixels
        union = true + self.confusion[:-1, :-1].sum(axis=1) - hits
        present = true > 0
        iou, accuracy = hits / np.maximum(union, 1), hits / np.maximum(true, 1)
        return {
            "mIoU": percent(iou[present].sum(), present.sum()),
            "fwIoU": percent((iou * true)[present].sum(), true.sum()),
            "mACC": percent(accuracy[present].sum(), present.sum()),
            "pACC": percent(hits[present].sum(), true.sum()),
            "per_class": [
                {
                    "id": k,
                    "name": name,
                    "IoU": percent(hits[k], union[k]) if present[k] else None,
                    "ACC": percent(hits[k], true[k]),
                    "pixels": int(true[k]),
                }
                for k, name in enumerate(self.names)
            ],
        }
