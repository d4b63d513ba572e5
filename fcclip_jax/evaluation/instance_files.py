"""Predictions in COCO's instance format: one JSON list of scored masks, against a COCO instance JSON."""

import dataclasses
import os
from collections import defaultdict

import numpy as np
from jaxtyping import Int64

from fcclip_jax.evaluation.json_files import index_by, read_json
from fcclip_jax.evaluation.mask_ap import MaskAP
from fcclip_jax.evaluation.png import BadSample

TRUTH_LAYOUT = (
    'COCO instance JSON: {"images": [{"id", "height", "width"}], "annotations": [{"image_id", "category_id", '
    '"segmentation", "area", "iscrowd"}], "categories": [{"id", "name"}]}'
)
LAYOUT = (
    'COCO results JSON: [{"image_id", "category_id", "segmentation": {"size": [height, width], "counts"}, "score"}]'
)


@dataclasses.dataclass(frozen=True)
class InstanceImage:
    """The objects and detections of one image. `image` is its entry in the truth, None where it has none; `rank` its
    place among all ids in order: equal scores are ranked by it, as pycocotools does by the id."""

    image_id: int | str
    rank: int
    image: dict | None
    truth: list[dict]
    detections: list[dict]
    truth_file: str
    predictions_file: str


def instance_images(truth: str | os.PathLike, predictions: str | os.PathLike) -> tuple[list[dict], list[InstanceImage]]:
    """Reads both JSON files (wholly: the masks of an image may stand anywhere) and sorts their content by image.

    Returns:
        The categories, and the images: first those of the truth, then those that only the predictions know.

    Raises:
        ValueError: a file is missing or has another layout.
    """
    truth_json = read_json(truth, TRUTH_LAYOUT, {"images": list, "annotations": list, "categories": list})
    found = read_json(predictions, LAYOUT)
    images = index_by(truth_json["images"], "id", truth, TRUTH_LAYOUT)
    if not images:
        raise ValueError(f"{truth} has no images. Expected {TRUTH_LAYOUT}")
    by_image: dict[int | str, tuple[list[dict], list[dict]]] = {image_id: ([], []) for image_id in images}
    strays: dict[int | str, tuple[list[dict], list[dict]]] = defaultdict(lambda: ([], []))
    for place, (path, layout, entries) in enumerate(
        ((truth, TRUTH_LAYOUT, truth_json["annotations"]), (predictions, LAYOUT, found))
    ):
        for entry in entries:
            if not isinstance(entry.get("image_id"), int | str):
                raise ValueError(f"an entry of {path} has no 'image_id'. Expected {layout}")
            image_id = entry["image_id"]
            (by_image if image_id in by_image else strays)[image_id][place].append(entry)
    rank = {image_id: place for place, image_id in enumerate(sorted(images, key=lambda i: (isinstance(i, str), i)))}
    return truth_json["categories"], [
        InstanceImage(image_id, rank.get(image_id, -1), images.get(image_id), *both, str(truth), str(predictions))
        for image_id, both in (*by_image.items(), *strays.items())
    ]


def count_instances(ap: MaskAP, image: InstanceImage) -> None:
    """Checks one image and counts it.

    Raises:
        BadSample: the truth does not know the image; a category is unknown; a mask is damaged or of another size
            than the image; a score is not a number; nothing is counted then.
    """
    if image.image is None:
        path = image.truth_file if image.truth else image.predictions_file
        raise BadSample(f"{path}: image_id {image.image_id!r} is not among the images of {image.truth_file}")
    try:
        size = int(image.image["height"]), int(image.image["width"])
    except (KeyError, TypeError, ValueError):
        raise BadSample(f"{image.truth_file}: image {image.image_id!r} has no height and width") from None
    for path, entries in ((image.truth_file, image.truth), (image.predictions_file, image.detections)):
        for entry in entries:
            _check(ap, path, entry, size, detection=entries is image.detections)
    ap.update(image.rank, *size, image.truth, image.detections)


def _check(ap: MaskAP, path: str, entry: dict, size: tuple[int, int], detection: bool) -> None:
    where = f"{path}: image {entry['image_id']!r}"
    needed = ("category_id", "segmentation", "score" if detection else "area")
    for name in needed:
        if name not in entry:
            raise BadSample(f"{where}: an entry has no {name!r}. Expected {LAYOUT if detection else TRUTH_LAYOUT}")
    if not ap.knows(entry["category_id"]):
        raise BadSample(f"{where}: unknown category_id {entry['category_id']!r}")
    if detection and not (isinstance(entry["score"], int | float) and np.isfinite(entry["score"])):
        raise BadSample(f"{where}: the score {entry['score']!r} is not a finite number")
    mask = entry["segmentation"]
    if isinstance(mask, list) and not detection:
        return  # polygons
    try:
        runs = rle_runs(mask["counts"])
        mask_size = tuple(int(edge) for edge in mask["size"])
    except (KeyError, TypeError, ValueError):
        raise BadSample(f"{where}: a mask is not a run-length encoding of COCO") from None
    if mask_size != size:
        raise BadSample(f"{where}: a mask is {mask_size[0]}x{mask_size[1]} pixels, the image is {size[0]}x{size[1]}")
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise BadSample(f"{where}: the runs of a mask do not add up to {size[0]}x{size[1]} pixels")


def rle_runs(counts: str | bytes | list[int]) -> Int64[np.ndarray, " n"]:
    """Run lengths of a COCO mask, of zeros and ones in turn, beginning with zeros.

    Compressed counts are signed numbers in groups of five bits, lowest first, in ASCII from "0" on; bit 5 says that
    more follow, the highest bit of the last is the sign. From the fourth number on, each is the difference to the
    one before the last.

    Raises:
        ValueError: not such a string.
    """
    if isinstance(counts, list):
        return np.array(counts, np.int64).reshape(-1)
    data = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    if data.size == 0 or data.min() < 0 or data.max() > 63 or data[-1] & 32:
        raise ValueError("not the counts of a COCO mask")
    start = np.flatnonzero(np.concatenate([[True], (data[:-1] & 32) == 0]))
    length = np.diff(start, append=data.size)
    if length.max() > 7:
        raise ValueError("a run of a COCO mask is too long")
    digit = np.arange(data.size) - np.repeat(start, length)
    numbers = np.add.reduceat((data & 31) << 5 * digit, start)
    last = start + length - 1
    numbers -= np.where(data[last] & 16, 1 << 5 * length, 0)
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return runs
