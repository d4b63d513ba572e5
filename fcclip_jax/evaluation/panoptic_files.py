"""Predictions in COCO's panoptic format: a JSON file and a folder of PNGs, against a truth of the same form."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcclip_jax.evaluation.json_files import expect_folder, index_by, read_json
from fcclip_jax.evaluation.panoptic_quality import PanopticQuality, SegmentError
from fcclip_jax.evaluation.png import BadSample, read_panoptic_png

LAYOUT = (
    'COCO panoptic JSON: {"annotations": [{"image_id", "file_name" of the PNG, "segments_info": '
    '[{"id", "category_id", in the truth also "area", "iscrowd"}]}], in the truth also '
    '"categories": [{"id", "name", "isthing"}]}'
)


@dataclasses.dataclass(frozen=True)
class PanopticPair:
    """The files of one image. `prediction` is None where the predictions lack it; `size`: `(height, width)` or None."""

    image_id: Any
    truth: Path
    truth_segments: Sequence[dict]
    prediction: Path | None
    predicted_segments: Sequence[dict]
    size: tuple[int, int] | None


def panoptic_pairs(
    truth: str | os.PathLike,
    predictions: str | os.PathLike,
    truth_dir: str | os.PathLike | None = None,
    predictions_dir: str | os.PathLike | None = None,
) -> tuple[list[dict], list[PanopticPair]]:
    """Reads both JSON files and pairs their images, in the order of the truth.

    The folders default to the JSON files' names without `.json`, as in panopticapi.

    Returns:
        The categories of the truth, and the pairs.

    Raises:
        ValueError: a file or folder is missing or has another layout.
    """
    truth_json = read_json(truth, LAYOUT, {"annotations": list, "categories": list})
    predicted_json = read_json(predictions, LAYOUT, {"annotations": list})
    truth_dir = expect_folder(truth_dir or Path(truth).with_suffix(""), f"the PNGs of {truth}")
    predictions_dir = expect_folder(predictions_dir or Path(predictions).with_suffix(""), f"the PNGs of {predictions}")
    annotations = index_by(truth_json["annotations"], "image_id", truth, LAYOUT)
    predicted = index_by(predicted_json["annotations"], "image_id", predictions, LAYOUT)
    images = {image.get("id"): image for image in truth_json.get("images", ())}
    if not annotations:
        raise ValueError(f"{truth} has no annotations. Expected {LAYOUT}")
    pairs = []
    try:
        for image_id, annotation in annotations.items():
            prediction = predicted.get(image_id)
            image = images.get(image_id, {})
            pairs.append(
                PanopticPair(
                    image_id,
                    truth_dir / annotation["file_name"],
                    annotation["segments_info"],
                    prediction and predictions_dir / prediction["file_name"],
                    prediction["segments_info"] if prediction else (),
                    (image["height"], image["width"]) if {"height", "width"} <= image.keys() else None,
                )
            )
    except KeyError as error:
        raise ValueError(f"the annotation of image {image_id} has no {error}. Expected {LAYOUT}") from None
    return truth_json["categories"], pairs


def count_panoptic(quality: PanopticQuality, pair: PanopticPair) -> None:
    """Reads one pair and counts it.

    Raises:
        BadSample: a file is missing or damaged, the prediction is missing, sizes differ, or a map and its segments
            do not fit together; nothing is counted then.
    """
    if pair.prediction is None:
        raise BadSample(f"{pair.truth}: the predictions have no annotation for image_id {pair.image_id!r}")
    truth = read_panoptic_png(pair.truth)
    if pair.size is not None and truth.shape != pair.size:
        raise BadSample(
            f"{pair.truth}: {truth.shape[0]}x{truth.shape[1]} pixels (height x width), "
            f"but the image is {pair.size[0]}x{pair.size[1]} by the JSON file"
        )
    prediction = read_panoptic_png(pair.prediction)
    try:
        quality.update(truth, pair.truth_segments, prediction, pair.predicted_segments)
    except SegmentError as error:
        raise BadSample(f"{pair.truth if error.side == 'truth' else pair.prediction}: {error}") from None
