"""All metrics of a benchmark, counted image by image while the images are segmented."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Integer
from pycocotools import mask as coco_mask

from fcclip_jax.data.evaluation_record import EvaluationRecord
from fcclip_jax.data.records import DataError
from fcclip_jax.evaluation.accumulator import Accumulator
from fcclip_jax.evaluation.cityscapes_ap import INSTANCE_LABELS, CityscapesAP
from fcclip_jax.evaluation.image_records import ImageRecord
from fcclip_jax.evaluation.miou import MeanIoU
from fcclip_jax.evaluation.panoptic_quality import PanopticQuality

TASKS = ("panoptic", "semantic", "instance")
MAIN_FIGURE = {"panoptic": "PQ", "instance": "AP", "semantic": "mIoU"}
"""Task to the figure that the paper gives for it, in the paper's order."""


@runtime_checkable
class Found(Protocol):
    """What was found in one image, as a segmenter's Result has it: `category_id` of a segment or an instance is the
    class's place in the vocabulary, and `semantic` holds such places. A task that was not asked for is None."""

    panoptic: Integer[np.ndarray, "H W"] | None
    segments: Sequence[Any] | None
    semantic: Integer[np.ndarray, "H W"] | None
    instances: Sequence[Any] | None


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a benchmark, in the order of the vocabulary.

    `names`, `isthing` `[K]`; `ids`: their numbers in the panoptic annotations; `instance_ids`: class to its number
    in the instance annotations, of the classes that these have; `ignore_label` of the semantic truth;
    `cityscapes`: instance AP goes by the rules of Cityscapes, and `instance_ids` are label ids.
    """

    names: Sequence[str]
    isthing: Bool[np.ndarray, " K"]
    ids: Sequence[int]
    instance_ids: Mapping[int, int]
    ignore_label: int
    cityscapes: bool = False


class Evaluator:
    """Counts the `tasks` of a benchmark. Its methods may be called by several threads at a time.

    Raises:
        ValueError: mask AP is among the tasks and hotcoco is not installed.
    """

    def __init__(self, classes: Classes, tasks: Sequence[str]):
        self.classes, self.tasks = classes, tuple(task for task in TASKS if task in tasks)
        self._empty = {task: self._new(task).state() for task in self.tasks}

    def _new(self, task: str) -> Accumulator:
        classes = self.classes
        if task == "panoptic":
            return PanopticQuality(
                [
                    {"id": id_, "name": name, "isthing": int(thing)}
                    for id_, name, thing in zip(classes.ids, classes.names, classes.isthing, strict=True)
                ]
            )
        if task == "semantic":
            return MeanIoU(classes.names, classes.ignore_label)
        if classes.cityscapes:
            return CityscapesAP({id_: INSTANCE_LABELS[id_] for id_ in classes.instance_ids.values()})
        try:
            from fcclip_jax.evaluation.mask_ap import MaskAP
        except ImportError as error:
            raise ValueError(str(error)) from None
        return MaskAP([{"id": id_, "name": classes.names[k]} for k, id_ in classes.instance_ids.items()])

    def count(self, index: int, rank: int, record: EvaluationRecord, found: Found) -> ImageRecord:
        """Compares one image with its truth.

        Args:
            index: its place in the source.
            rank: its place among all image ids in ascending order, which settles the order of equal scores in AP.

        Returns:
            what was counted; its score is the main figure of the first task that has one.

        Raises:
            DataError: the truth is damaged or does not fit the image.
        """
        states, score = {}, None
        for task in self.tasks:
            accumulator = self._new(task)
            try:
                getattr(self, f"_count_{task}")(accumulator, rank, record, found)
            except ValueError as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(record.image_name, f"{task}: {error}") from error
            if score is None:
                score = accumulator.compute()[MAIN_FIGURE[task]]
            empty = self._empty[task]
            states[task] = {k: v for k, v in accumulator.state().items() if not np.array_equal(v, empty[k])}
        return ImageRecord(index, record.image_id, states, score)

    def _count_panoptic(self, quality: PanopticQuality, rank: int, record: EvaluationRecord, found: Found) -> None:
        ids, ids_of_class = record.panoptic(), self.classes.ids
        quality.update(
            ids[0],
            [
                {"id": s.id, "category_id": ids_of_class[s.class_index], "iscrowd": int(s.iscrowd)}
                | ({} if s.area is None else {"area": s.area})
                for s in ids[1]
            ],
            np.asarray(found.panoptic),
            [{"id": s.id, "category_id": ids_of_class[s.category_id]} for s in found.segments],
        )

    def _count_semantic(self, matrix: MeanIoU, rank: int, record: EvaluationRecord, found: Found) -> None:
        matrix.update(record.semantic(), found.semantic)

    def _count_instance(self, ap: Any, rank: int, record: EvaluationRecord, found: Found) -> None:
        ids = self.classes.instance_ids
        instances = [i for i in found.instances if i.category_id in ids]
        if self.classes.cityscapes:
            masks = (coco_mask.decode(i.rle).astype(bool) for i in instances)
            labels, scores = [ids[i.category_id] for i in instances], [i.score for i in instances]
            ap.update(record.cityscapes_ids(), labels, scores, masks)
            return
        truth = [
            {"category_id": ids[t.class_index], "segmentation": text_rle(t.rle), "area": t.area, "iscrowd": t.iscrowd}
            for t in record.instances()
        ]
        ap.update(rank, *record.size(), truth, [instance_entry(i, ids) for i in instances])

    def total(self, records: Iterable[ImageRecord]) -> dict[str, Accumulator]:
        """The sum over images. In memory is one record at a time, and what the accumulators keep."""
        totals = {task: self._new(task) for task in self.tasks}
        for record in records:
            for task, state in record.states.items():
                part = self._new(task)
                part.load_state({**self._empty[task], **state})
                totals[task].merge(part)
        return totals


def instance_entry(instance: Any, category_ids: Mapping[int, int]) -> dict[str, Any]:
    """A found instance as COCO's results have it, without its image."""
    return {
        "category_id": category_ids[instance.category_id],
        "segmentation": text_rle(instance.rle),
        "score": instance.score,
    }


def text_rle(rle: Mapping[str, Any]) -> dict[str, Any]:
    """A mask of COCO with its runs as text."""
    counts = rle["counts"]
    return {
        "size": [int(n) for n in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }
