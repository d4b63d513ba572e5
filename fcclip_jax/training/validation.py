"""Panoptic quality of a segmenter on annotated images, counted while it runs."""

from collections.abc import Callable, Iterable

import numpy as np

from fcclip_jax.data.records import PanopticRecord
from fcclip_jax.data.targets import panoptic_ids
from fcclip_jax.evaluation.panoptic_quality import PanopticQuality
from fcclip_jax.structures import Segment
from fcclip_jax.vocabulary.vocabulary import Vocabulary

SegmentImage = Callable[[np.ndarray], tuple[np.ndarray, list[Segment]]]


def new_counts(vocabulary: Vocabulary) -> PanopticQuality:
    """Counts over a vocabulary's classes; their places in it are the categories' ids."""
    return PanopticQuality(
        [
            {"id": i, "name": name, "isthing": int(thing)}
            for i, (name, thing) in enumerate(zip(vocabulary.names, vocabulary.isthing, strict=True))
        ]
    )


def evaluate_panoptic(segment: SegmentImage, records: Iterable[PanopticRecord], counts: PanopticQuality) -> None:
    """Segments every image and adds it to `counts`.

    Args:
        segment: uint8 RGB `[H,W,3]` to its panoptic map int32 `[H,W]` and segments, whose `category_id` is the class's
            place in the vocabulary.
    """
    for record in records:
        image, panoptic = record.decode()
        predicted, segments = segment(np.asarray(image))
        counts.update(
            panoptic_ids(np.asarray(panoptic)),
            [
                {"id": int(i), "category_id": int(c), "iscrowd": int(crowd)}
                for i, c, crowd in zip(record.segment_ids, record.classes, record.crowd, strict=True)
            ],
            predicted,
            [{"id": s.id, "category_id": s.category_id} for s in segments],
        )
