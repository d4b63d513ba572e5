"""Predictions as a folder of label maps, against a folder of true ones."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from fcclip_jax.evaluation.json_files import expect_folder
from fcclip_jax.evaluation.miou import LabelError, MeanIoU
from fcclip_jax.evaluation.png import BadSample, read_label_png

ENDINGS = (".png", ".tif", ".tiff")
LAYOUT = "label maps (one channel, 8 or 16 bits, PNG or TIFF) at any depth, predictions named as the truth"


@dataclasses.dataclass(frozen=True)
class LabelPair:
    """The files of one image. `prediction` is None where there is none; `expected` is where it was looked for."""

    truth: Path
    prediction: Path | None
    expected: Path


def label_pairs(
    truth: str | os.PathLike,
    predictions: str | os.PathLike,
    truth_suffix: str | None = None,
    predictions_suffix: str | None = None,
) -> list[LabelPair]:
    """Pairs the files of two folders by their path inside the folder, without its suffix; sorted.

    Args:
        truth, predictions: folders, searched at any depth.
        truth_suffix, predictions_suffix: only files that end so, such as `_gtFine_labelTrainIds.png`; default:
            any of ENDINGS.

    Raises:
        ValueError: no such folder, no label map in the truth, or two files for one image.
    """
    truth, predictions = (expect_folder(folder, LAYOUT) for folder in (truth, predictions))
    true = _find(truth, truth_suffix)
    predicted = _find(predictions, predictions_suffix)
    if not true:
        raise ValueError(f"{truth} has no file that ends with {truth_suffix or ' or '.join(ENDINGS)}")
    ending = predictions_suffix or ".png"
    return [LabelPair(path, predicted.get(key), predictions / (key + ending)) for key, path in sorted(true.items())]


def _find(folder: Path, suffix: str | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        ending = next((e for e in ((suffix,) if suffix else ENDINGS) if path.name.lower().endswith(e.lower())), None)
        if ending is None or path.is_dir():
            continue
        key = path.relative_to(folder).as_posix()[: -len(ending)]
        if key in found:
            raise ValueError(f"{found[key]} and {path} are label maps of the same image")
        found[key] = path
    return found


def label_table(ids: Sequence[int], ignore: int, others: int) -> Int[np.ndarray, " values"]:
    """From a value of a label map to the place of its class, where maps hold the numbers `ids` of the classes: `ignore`
    stays, and all that is no class becomes `others`."""
    table = np.full(1 << 16, others, np.int64)
    table[ignore] = ignore
    table[np.asarray(ids)] = np.arange(len(ids))
    return table


def count_labels(
    matrix: MeanIoU,
    pair: LabelPair,
    truth_table: Int[np.ndarray, " values"] | None = None,
    predictions_table: Int[np.ndarray, " values"] | None = None,
) -> None:
    """Reads one pair and counts it. The tables, made by `label_table`, are looked up first.

    Raises:
        BadSample: a file is missing or damaged, sizes differ, or a label is no class; nothing is counted then.
    """
    if pair.prediction is None:
        raise BadSample(f"{pair.truth}: no prediction, expected {pair.expected}")
    truth, prediction = read_label_png(pair.truth), read_label_png(pair.prediction)
    truth = truth if truth_table is None else truth_table[truth]
    prediction = prediction if predictions_table is None else predictions_table[prediction]
    try:
        matrix.update(truth, prediction)
    except LabelError as error:
        raise BadSample(f"{pair.truth if error.side == 'truth' else pair.prediction}: {error}") from None
