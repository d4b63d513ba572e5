"""Predictions in the formats that the benchmarks' own tools and servers take.

    panoptic.json, panoptic/STEM.png     COCO panoptic: id = R + 256 G + 65536 B, and the dataset's category ids
    semantic/STEM.png                    label maps with the dataset's own labels, 8 bits, or 16 where they need it
    instances.json                       COCO results: run-length encoded masks with scores
    instances/STEM.txt, STEM_N.png       Cityscapes' instance format

STEM is the file's name in its dataset without what all files share, such as its ending; Cityscapes' label maps lie in
a folder for each city, as its own do.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image
from pycocotools import mask as coco_mask

from fcclip_jax.data.annotation_maps import id_to_rgb
from fcclip_jax.data.evaluation_record import EvaluationRecord
from fcclip_jax.evaluation.evaluator import Classes, Found, instance_entry
from fcclip_jax.evaluation.image_records import ImageRecord
from fcclip_jax.vocabulary.vocabulary import Vocabulary

_LABELLED_BY_ID = ("coco_panoptic", "cityscapes", "pascal_voc_20", "pascal_voc_21", "folder")


class SubmissionWriter:
    """Writes the predictions of `tasks` into `folder`.

    `labels` `[K]`: what a label map holds for each class. A pixel without a class holds the ignored label.
    """

    def __init__(self, folder: Path, classes: Classes, tasks: Sequence[str], labels: Int[np.ndarray, " K"]):
        self._folder, self._classes, self._tasks = folder, classes, tuple(tasks)
        nothing = classes.ignore_label
        self._labels = np.full(nothing + 1, nothing, np.uint8 if max(labels.max(), nothing) <= 255 else np.uint16)
        self._labels[: len(labels)] = labels

    def write(self, record: EvaluationRecord, found: Found) -> dict[str, Any]:
        """Writes the files of one image, each aside and renamed; gives what its entries in the JSON files hold."""
        entries: dict[str, Any] = {}
        if "panoptic" in self._tasks:
            name = f"{record.file_stem}.png"
            _write_png(self._folder / "panoptic" / name, id_to_rgb(np.asarray(found.panoptic)))
            segments = [
                {"id": s.id, "category_id": self._classes.ids[s.category_id], "area": s.area} for s in found.segments
            ]
            entries["panoptic"] = {"file_name": name, "segments_info": segments}
        if "semantic" in self._tasks:
            city = record.file_stem.partition("_")[0] if self._classes.cityscapes else ""
            _write_png(self._folder / "semantic" / city / f"{record.file_stem}.png", self._labels[found.semantic])
        if "instance" in self._tasks:
            ids = self._classes.instance_ids
            instances = [i for i in found.instances if i.category_id in ids]
            if self._classes.cityscapes:
                self._write_cityscapes(record.file_stem, instances)
            else:
                entries["instance"] = [instance_entry(i, ids) for i in instances]
        return entries

    def _write_cityscapes(self, stem: str, instances: Sequence[Any]) -> None:
        """The masks first: the text file, which names them, stands only where they do."""
        text, lines = self._folder / "instances" / f"{stem}.txt", []
        for number, instance in enumerate(instances):
            mask = text.with_name(f"{text.stem}_{number}.png")
            _write_png(mask, coco_mask.decode(instance.rle) * np.uint8(255))
            lines.append(f"{mask.name} {self._classes.instance_ids[instance.category_id]} {instance.score!r}\n")
        _write(text, "".join(lines).encode("utf-8"))

    def finish(self, records: Callable[[], Iterable[ImageRecord]]) -> None:
        """Writes the JSON files. `records` gives all images in the order of the source, anew at each call."""
        if "panoptic" in self._tasks:
            categories = [
                {"id": id_, "name": name, "isthing": int(thing)}
                for id_, name, thing in zip(self._classes.ids, self._classes.names, self._classes.isthing, strict=True)
            ]
            annotations = (
                {"image_id": r.image_id, **r.predictions["panoptic"]} for r in records() if "panoptic" in r.predictions
            )
            head = f'{{"categories": {_json(categories)},\n"annotations": '
            _write_list(self._folder / "panoptic.json", head, annotations, "}")
        if "instance" in self._tasks and not self._classes.cityscapes:
            instances = (
                {"image_id": r.image_id, **entry} for r in records() for entry in r.predictions.get("instance", ())
            )
            _write_list(self._folder / "instances.json", "", instances, "")


def own_labels(benchmark: str, vocabulary: Vocabulary) -> Int[np.ndarray, " K"]:
    """What the label maps of a benchmark's own tools hold for each class: the numbers of its label list where its maps
    hold these, for ADE20K the place counted from 1 (0 is "other"), else the place counted from 0."""
    places = np.arange(vocabulary.num_classes)
    if benchmark == "ade20k_150":
        return places + 1
    ids = [cls.id for cls in vocabulary.classes]
    return np.array(ids) if benchmark in _LABELLED_BY_ID and None not in ids else places


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _write_list(path: Path, head: str, entries: Iterable[Any], tail: str) -> None:
    """A JSON list of any length, one entry in memory at a time."""

    def lines() -> Iterator[str]:
        yield f"{head}["
        for number, entry in enumerate(entries):
            yield f"{',' if number else ''}\n{_json(entry)}"
        yield f"\n]{tail}\n"

    _write(path, (line.encode("utf-8") for line in lines()))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)  # twice as fast as the default, and little larger
    _write(path, buffer.getvalue())


def _write(path: Path, data: bytes | Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as file:
            for part in [data] if isinstance(data, bytes) else data:
                file.write(part)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
