"""Where images to evaluate on come from, with all the truth there is for them: panoptic, semantic, instance.

`benchmarks.open_benchmark` opens a benchmark of the paper, `open_folder` data of one's own. A source lists its images
from the annotations when it is made, and reads the files of an image only in `source[i]`.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from fcclip_jax.data.evaluation_record import (
    CityscapesTruth,
    EvaluationRecord,
    InstanceTruth,
    PanopticTruth,
    SemanticTruth,
)
from fcclip_jax.data.files import expect_folder, json_entries, read_file, read_json, refuse_if_absent, told
from fcclip_jax.data.records import DataError
from fcclip_jax.vocabulary import Vocabulary

_UNKNOWN = -1


@runtime_checkable
class EvaluationSource(Protocol):
    """Images with truth. `source[i]` raises DataError for a record that cannot be used."""

    vocabulary: Vocabulary
    truths: frozenset[str]
    """Some of "panoptic", "semantic", "instance": what its records hold."""
    ignore_label: int
    """In semantic truth: a pixel that is not counted."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> EvaluationRecord: ...

    def ids(self) -> list[int | str]:
        """The image ids in order; no image is read."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """`stem`: what the files of this image share in their names."""

    image_id: int | str
    stem: str
    path: Path


@runtime_checkable
class Truth(Protocol):
    """One kind of truth for the images of a source. `of` reads what belongs to an image, or raises DataError."""

    def of(self, image: ImageFile) -> Any: ...


class FileSource:
    """Images in files, and up to three kinds of truth for them. Raises DataError where there is no image, or none of
    the first hundred is there; `layout` is told then."""

    def __init__(
        self,
        images: Sequence[ImageFile],
        vocabulary: Vocabulary,
        *,
        panoptic: Truth | None = None,
        semantic: Truth | None = None,
        instance: Truth | None = None,
        layout: str = "",
    ):
        self.vocabulary, self.ignore_label = vocabulary, ignore_label(vocabulary)
        self._images = list(images)
        self._truth = {"panoptic": panoptic, "semantic": semantic, "instance": instance}
        self.truths = frozenset(kind for kind, truth in self._truth.items() if truth is not None)
        if not self._images:
            raise DataError("the evaluation set", f"holds no image{told(layout)}")
        refuse_if_absent([image.path for image in self._images], layout)

    def __len__(self) -> int:
        return len(self._images)

    def ids(self) -> list[int | str]:
        return [image.image_id for image in self._images]

    def __getitem__(self, index: int) -> EvaluationRecord:
        """The record at `index`, its files read. Raises DataError for a file that is missing or cannot be read, and
        for an unknown category."""
        image = self._images[index]
        truth = {f"{kind}_truth": t.of(image) for kind, t in self._truth.items() if t is not None}
        return EvaluationRecord(image.image_id, str(image.path), image.stem, read_file(image.path), **truth)


class PanopticAnnotations:
    """A JSON of COCO panoptic and its folder of maps. `classes`: category id -> class.

    Raises DataError for another kind of file, and where its categories are not those of `classes`.
    """

    def __init__(self, annotations: Path, maps: Path, class_of: Mapping[int, int], layout: str = ""):
        self._json, self._maps, self._class_of = annotations, expect_folder(maps, layout), dict(class_of)
        content = read_json(annotations, layout)
        entries, images = (json_entries(annotations, content, key) for key in ("annotations", "images"))
        try:
            self._fill(entries, images)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(annotations, f"not a COCO panoptic file: {type(error).__name__} {error}") from error
        check_categories(annotations, content, class_of, np.unique(self._categories).tolist())
        refuse_if_absent([maps / name for name in self.map_names], layout)

    def _fill(self, entries: Sequence[dict], images: Sequence[dict]) -> None:
        names = {image["id"]: str(image["file_name"]) for image in images}
        self.image_ids: list[int | str] = [entry["image_id"] for entry in entries]
        unlisted = [id_ for id_ in self.image_ids if id_ not in names]
        if unlisted:
            raise DataError(self._json, f"has an annotation of image {unlisted[0]!r}, which its `images` do not list")
        self.image_names = [names[id_] for id_ in self.image_ids]
        self.map_names = [str(entry["file_name"]) for entry in entries]
        self._row = {id_: row for row, id_ in enumerate(self.image_ids)}
        if len(self._row) != len(entries):
            raise DataError(self._json, "lists an image twice among its annotations")
        segments = [segment for entry in entries for segment in entry["segments_info"]]
        self._starts = np.cumsum([0] + [len(entry["segments_info"]) for entry in entries])
        self._ids = np.array([segment["id"] for segment in segments], np.int64)
        self._categories = np.array([segment["category_id"] for segment in segments], np.int64)
        self._crowd = np.array([segment.get("iscrowd", 0) for segment in segments], bool)
        self._areas = np.array([segment.get("area", -1) for segment in segments], np.int64)

    def of(self, image: ImageFile) -> PanopticTruth:
        row = self._row[image.image_id]
        path = self._maps / self.map_names[row]
        segments = slice(int(self._starts[row]), int(self._starts[row + 1]))
        categories = self._categories[segments].tolist()
        unknown = [place for place, category in enumerate(categories) if category not in self._class_of]
        if unknown:
            id_ = self._ids[segments][unknown[0]]
            raise DataError(path, f"segment {id_} has category {categories[unknown[0]]}, {not_in(self._class_of)}")
        classes = np.array([self._class_of[category] for category in categories], np.int32)
        return PanopticTruth(
            str(path), read_file(path), self._ids[segments], classes, self._crowd[segments], self._areas[segments]
        )


@dataclasses.dataclass(frozen=True)
class SemanticMaps:
    """Label maps in files, by the image's stem."""

    paths: Mapping[str, Path]
    class_of: Int32[np.ndarray, " values"]
    """The class of each value; see SemanticTruth."""

    def of(self, image: ImageFile) -> SemanticTruth:
        path = self.paths[image.stem]
        return SemanticTruth(str(path), read_file(path), self.class_of)


class CocoInstances:
    """The JSON of COCO instances. `class_of`: category id -> class, of the things.

    Raises DataError for another kind of file, and where its categories are not those of `class_of`.
    """

    def __init__(self, annotations: Path, class_of: Mapping[int, int], layout: str = ""):
        self._json, self._class_of = annotations, dict(class_of)
        content = read_json(annotations, layout)
        entries = json_entries(annotations, content, "annotations")
        self.images = {image.get("id"): image for image in json_entries(annotations, content, "images")}
        check_categories(annotations, content, class_of, [entry.get("category_id") for entry in entries])
        by_image: dict[Any, list[dict]] = {id_: [] for id_ in self.images}
        for entry in entries:
            if entry.get("image_id") not in by_image:
                raise DataError(
                    annotations, f"has an annotation of image {entry.get('image_id')!r}, which its `images` do not list"
                )
            by_image[entry["image_id"]].append(entry)
        # As text: a tenth of the memory of the parsed, and it travels between processes as one piece.
        self._entries = {id_: json.dumps(found).encode() for id_, found in by_image.items()}

    def of(self, image: ImageFile) -> InstanceTruth:
        if image.image_id not in self._entries:
            raise DataError(self._json, f"does not list image {image.image_id!r}, which other annotations have")
        return InstanceTruth(f"{self._json}: image {image.image_id}", self._entries[image.image_id], self._class_of)


@dataclasses.dataclass(frozen=True)
class CityscapesInstances:
    """`*_instanceIds.png` by the image's stem; `class_of`: label id -> class, of the labels with instances."""

    paths: Mapping[str, Path]
    class_of: Mapping[int, int]

    def of(self, image: ImageFile) -> CityscapesTruth:
        path = self.paths[image.stem]
        return CityscapesTruth(str(path), read_file(path), self.class_of)


def ignore_label(vocabulary: Vocabulary) -> int:
    """What semantic truth holds for a pixel that is not counted: 255, or 65535 where 255 may be a class."""
    return 255 if vocabulary.num_classes <= 255 else 65535


def label_table(values: Mapping[int, int], ignored: int, vocabulary: Vocabulary) -> Int32[np.ndarray, " values"]:
    """The class of each value of a label map, from `values` (value -> class) and the value that is `ignored`."""
    table = np.full(max([ignored, *values]) + 1, _UNKNOWN, np.int32)
    for value, class_index in values.items():
        table[value] = class_index
    table[ignored] = ignore_label(vocabulary)
    return table


def check_categories(path: Path, content: Mapping, class_of: Mapping[int, int], used: Iterable[int]) -> None:
    """Refuses an annotation file that lists other categories than the ids of `class_of`. One that lists none passes,
    and so does a category more that nothing is annotated with (`used`: ids that something is)."""
    if not content.get("categories"):
        return
    ids = {entry.get("id") for entry in json_entries(path, content, "categories")}
    missing, extra = sorted(set(class_of) - ids), sorted((ids - set(class_of)) & set(used))
    if not missing and not extra:
        return
    parts = [f"{'has' if ids_ is extra else 'lacks'} {_some(ids_)}" for ids_ in (extra, missing) if ids_]
    raise DataError(
        path,
        f"has {len(ids)} categories where the vocabulary has {len(class_of)} classes that they could be: it "
        f"{' and '.join(parts)}. Give the label file of this data set",
    )


def _some(ids: Sequence) -> str:
    return f"{', '.join(map(str, ids[:3]))}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''}"


def not_in(class_of: Mapping[int, int]) -> str:
    known = sorted(class_of)
    return f"which the vocabulary does not have (it has {len(known)} ids from {known[0]} to {known[-1]})"
