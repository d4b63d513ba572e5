"""Pictures of the images that went worst: the photo, what was found, and the truth, side by side."""

import bisect
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fcclip_jax import visualization
from fcclip_jax.data.evaluation_record import EvaluationRecord
from fcclip_jax.evaluation.evaluator import Found
from fcclip_jax.structures import Segment
from fcclip_jax.vocabulary.vocabulary import Vocabulary


class WorstPictures:
    """Keeps `count` pictures in `folder`. `known`: index to score of images that were counted before.

    Several processes share the folder: each draws what is among the worst of all that it knows of, which those that are
    among the worst of all always are, and `keep_only` takes the rest away in the end.
    """

    def __init__(self, folder: Path, count: int, vocabulary: Vocabulary, known: Mapping[int, float | None]):
        self._folder, self._count, self._vocabulary = folder, count, vocabulary
        self._scores = sorted((score, index) for index, score in known.items() if score is not None)[:count]

    def wants(self, index: int, score: float | None) -> bool:
        """Takes note of an image, and says whether it is among the worst so far."""
        if score is None or not self._count:
            return False
        place = bisect.bisect(self._scores, (score, index))
        self._scores.insert(place, (score, index))
        del self._scores[self._count :]
        return place < self._count

    def draw(
        self,
        index: int,
        score: float,
        image: UInt8[np.ndarray, "H W 3"],
        record: EvaluationRecord,
        found: Found,
    ) -> None:
        """Writes the picture, aside and renamed."""
        name = picture_name(index, score)
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = self._folder / f".{name}.partial"
        panels = [image, self._found(image, found), self._truth(image, record)]
        Image.fromarray(np.concatenate([p for p in panels if p is not None], axis=1)).save(aside, "png")
        aside.replace(self._folder / name)

    def keep_only(self, images: Mapping[int, float | None]) -> list[tuple[float, int]]:
        """Removes the pictures of all but the worst of `images` (index to score), and gives these, the worst first."""
        worst = sorted((score, index) for index, score in images.items() if score is not None)[: self._count]
        wanted = {picture_name(index, score) for score, index in worst}
        for path in self._folder.glob("*.png") if self._count else ():
            if path.name not in wanted:
                path.unlink()
        return worst

    def _found(self, image: np.ndarray, found: Found) -> np.ndarray | None:
        if found.panoptic is not None:
            return visualization.draw_panoptic(image, np.asarray(found.panoptic), found.segments)
        return None if found.semantic is None else self._semantic(image, found.semantic)

    def _truth(self, image: np.ndarray, record: EvaluationRecord) -> np.ndarray | None:
        if record.panoptic_truth is not None:
            ids, segments = record.panoptic()
            classes = self._vocabulary.classes
            shown = []
            for segment in segments:
                cls, area = classes[segment.class_index], segment.area or 0
                shown.append(Segment(segment.id, segment.class_index, cls.name, cls.isthing, math.nan, area))
            return visualization.draw_panoptic(image, ids, shown)
        return self._semantic(image, record.semantic()) if record.semantic_truth is not None else None

    def _semantic(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return visualization.draw_semantic(image, labels, self._vocabulary.names)


def picture_name(index: int, score: float) -> str:
    return f"{score:08.4f}_{index:06}.png"
