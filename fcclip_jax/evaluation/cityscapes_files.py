"""Predictions in Cityscapes' instance format: a text file for each image that names its masks."""

import dataclasses
import os
from pathlib import Path

from fcclip_jax.evaluation.cityscapes_ap import CityscapesAP
from fcclip_jax.evaluation.json_files import expect_folder
from fcclip_jax.evaluation.png import BadSample, read_label_png, read_mask_png

TRUTH_SUFFIX = "_gtFine_instanceIds.png"
TRUTH_LAYOUT = f"CITY/CITY_000000_000019{TRUTH_SUFFIX}, as in gtFine/val of Cityscapes,"
LAYOUT = "CITY_000000_000019*.txt with lines of `mask.png label_id score`, masks relative to the text file,"


@dataclasses.dataclass(frozen=True)
class CityscapesImage:
    """The truth of one image, the text file of its predictions (None: missing), and the folder it may refer to."""

    truth: Path
    prediction: Path | None
    root: Path


def cityscapes_images(truth: str | os.PathLike, predictions: str | os.PathLike) -> list[CityscapesImage]:
    """Pairs the files of two folders, searched at any depth, by the first three parts of their names; sorted.

    Raises:
        ValueError: no such folder, no truth in it, or two text files for one image.
    """
    truth, predictions = expect_folder(truth, TRUTH_LAYOUT), expect_folder(predictions, LAYOUT)
    found: dict[str, Path] = {}
    for path in sorted(predictions.rglob("*.txt")):
        key = "_".join(path.stem.split("_")[:3])
        if key in found:
            raise ValueError(f"{found[key]} and {path} are predictions for the same image")
        found[key] = path
    paths = sorted(truth.rglob(f"*{TRUTH_SUFFIX}"))
    if not paths:
        raise ValueError(f"nothing to score in {truth}. Expected {TRUTH_LAYOUT} in it")
    return [CityscapesImage(path, found.get(path.name.removesuffix(TRUTH_SUFFIX)), predictions) for path in paths]


def count_cityscapes(ap: CityscapesAP, image: CityscapesImage) -> None:
    """Reads one image and counts it.

    Raises:
        BadSample: a file is missing, damaged or malformed, sizes differ; nothing is counted then.
    """
    if image.prediction is None:
        raise BadSample(f"{image.truth}: no prediction. Expected {LAYOUT} in {image.root}")
    lines = [line for line in _lines(image) if line[1] in ap.labels]
    try:
        ap.update(
            read_label_png(image.truth),
            [label for _, label, _ in lines],
            [score for _, _, score in lines],
            (read_mask_png(path) for path, _, _ in lines),
        )
    except BadSample:
        raise
    except ValueError as error:
        raise BadSample(f"{image.prediction}: {error}") from None


def _lines(image: CityscapesImage) -> list[tuple[Path, int, float]]:
    """`(mask file, label id, score)` of each line."""
    try:
        text = image.prediction.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSample(f"{image.prediction}: {error}") from None
    lines = []
    root = image.root.resolve()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            name, label, score = line.split()
            label, score = int(float(label)), float(score)
        except ValueError:
            raise BadSample(f"{image.prediction}: line {number} is not `mask.png label_id score`") from None
        path = (image.prediction.parent / name).resolve()
        if not path.is_relative_to(root):
            raise BadSample(f"{image.prediction}: line {number} names a file outside {image.root}")
        lines.append((path, label, score))
    return lines
