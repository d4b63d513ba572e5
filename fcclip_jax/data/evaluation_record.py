"""What an evaluation source hands out: one image and its truth, both still encoded."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer, UInt8
from pycocotools import mask as coco_mask

from fcclip_jax.data import image_files
from fcclip_jax.data.annotation_maps import decode_ids, decode_labels, runs
from fcclip_jax.data.records import DataError

CROWD_BELOW = 1000
"""Of Cityscapes' instance ids: label * 1000 + number; below stand the labels of regions that are not parted."""


class TrueSegment(NamedTuple):
    """A segment of a panoptic map. `area`: pixels by the annotation file, None where it does not say."""

    id: int
    class_index: int
    iscrowd: bool
    area: int | None


class TrueInstance(NamedTuple):
    """An object. `rle`: `{"size": [H, W], "counts": bytes}` of COCO; `area`: pixels by the annotation."""

    class_index: int
    rle: dict
    iscrowd: bool
    area: float


@dataclasses.dataclass(frozen=True)
class PanopticTruth:
    """The bytes of a panoptic map, and what its ids mean: `ids`, `classes` `[N]`, `crowd` `[N]`, `areas` `[N]` (-1:
    not given). `name`: what to call the map in messages."""

    name: str
    data: bytes
    ids: Int64[np.ndarray, " N"]
    classes: Int32[np.ndarray, " N"]
    crowd: Bool[np.ndarray, " N"]
    areas: Int64[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True)
class SemanticTruth:
    """The bytes of a label map. `class_of` `[values]`: the class of each value in the file, `ignore` for those that
    are not counted, -1 for those that may not stand there."""

    name: str
    data: bytes
    class_of: Int32[np.ndarray, " values"]


@dataclasses.dataclass(frozen=True)
class InstanceTruth:
    """Annotations of COCO, as JSON; `class_of`: category id -> class."""

    name: str
    data: bytes
    class_of: Mapping[int, int]


@dataclasses.dataclass(frozen=True)
class CityscapesTruth:
    """The bytes of an `*_instanceIds.png`; `class_of`: label id -> class, of the labels that have instances."""

    name: str
    data: bytes
    class_of: Mapping[int, int]


@dataclasses.dataclass(frozen=True)
class EvaluationRecord:
    """One image with its truth.

    `image_id`: the dataset's own; `image_name`: what to call the image in messages; `file_stem`: for the names of
    prediction files, unique in its source; `image`: the bytes of the file. A method raises DataError, naming the
    file, for what is damaged or does not fit, KeyError for a truth that this source does not have.
    """

    image_id: int | str
    image_name: str
    file_stem: str
    image: bytes
    panoptic_truth: PanopticTruth | None = None
    semantic_truth: SemanticTruth | None = None
    instance_truth: InstanceTruth | CityscapesTruth | None = None

    def decode_image(self) -> UInt8[np.ndarray, "H W 3"]:
        """RGB, upright (EXIF orientation applied)."""
        return self._image(image_files.decode_image)

    def size(self) -> tuple[int, int]:
        """Height and width of the upright image, from its head alone."""
        return self._image(image_files.upright_size)

    def _image(self, read: Callable) -> Any:
        try:
            return read(self.image, self.image_name)
        except image_files.ImageError as error:
            raise DataError(self.image_name, error.reason) from error

    def panoptic(self) -> tuple[Int32[np.ndarray, "H W"], list[TrueSegment]]:
        """The id of each pixel's segment (0: void), and the segments in the order of the annotation.

        Also raises DataError for an id that only the map has, and one that the annotation lists twice. A segment
        without pixels is handed on: it is one that cannot be found.
        """
        truth = self._truth(self.panoptic_truth, "panoptic")
        ids = decode_ids(truth.data, truth.name)
        self._check_size(truth.name, ids)
        _check_ids(truth, ids)
        columns = (truth.ids.tolist(), truth.classes.tolist(), truth.crowd.tolist(), truth.areas.tolist())
        rows = zip(*columns, strict=True)
        return ids, [TrueSegment(id_, cls, crowd, None if area < 0 else area) for id_, cls, crowd, area in rows]

    def semantic(self) -> Int32[np.ndarray, "H W"]:
        """The class of each pixel, or the source's `ignore_label` (255, or 65535 where there are more classes)."""
        truth = self._truth(self.semantic_truth, "semantic")
        labels = decode_labels(truth.data, truth.name)
        self._check_size(truth.name, labels)
        return look_up(truth.class_of, labels, truth.name)

    def instances(self) -> list[TrueInstance]:
        """The objects, in the order of the annotation. Of Cityscapes: those of `cityscapes_ids`, groups as crowds."""
        truth = self._truth(self.instance_truth, "instance")
        if isinstance(truth, CityscapesTruth):
            return _cityscapes_instances(self.cityscapes_ids(), truth.class_of)
        height, width = self.size()
        return [_coco_instance(entry, height, width, truth) for entry in json.loads(truth.data)]

    def cityscapes_ids(self) -> Int32[np.ndarray, "H W"]:
        """Cityscapes' own instance ids, as its instance AP takes them. KeyError: not from Cityscapes."""
        truth = self._truth(self.instance_truth, "instance")
        if not isinstance(truth, CityscapesTruth):
            raise KeyError("cityscapes_ids")
        ids = decode_labels(truth.data, truth.name).astype(np.int32)
        self._check_size(truth.name, ids)
        return ids

    def _truth(self, truth: Any, kind: str) -> Any:
        if truth is None:
            raise KeyError(kind)
        return truth

    def _check_size(self, name: str, array: np.ndarray) -> None:
        (height, width), (own_height, own_width) = array.shape, self.size()
        if array.shape != (own_height, own_width):
            raise DataError(
                name, f"is {width} x {height} pixels, but its image {self.image_name} is {own_width} x {own_height}"
            )


def look_up(class_of: Int32[np.ndarray, " values"], labels: Integer[np.ndarray, "H W"], name: str) -> np.ndarray:
    """`class_of[labels]`, int32. Raises DataError, naming the file, for a value without a class."""
    outside = (labels < 0) | (labels >= len(class_of))
    classes = class_of[np.where(outside, 0, labels) if outside.any() else labels]
    wrong = outside | (classes < 0)
    if wrong.any():
        value, count = labels[wrong][0], int(wrong.sum())
        known = np.flatnonzero(class_of >= 0)
        raise DataError(
            name,
            f"holds the label {value} ({count} pixels without a class in all); known are {len(known)} labels from "
            f"{known[0]} to {known[-1]}",
        )
    return classes


def _check_ids(truth: PanopticTruth, ids: np.ndarray) -> None:
    known, counts = np.unique(truth.ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(truth.name, f"its annotation lists segment {known[counts > 1][0]} twice")
    unlisted = np.setdiff1d(runs(ids)[0], np.append(known, 0))
    if len(unlisted):
        more = f" (and {len(unlisted) - 1} more such)" if len(unlisted) > 1 else ""
        raise DataError(truth.name, f"holds segment id {unlisted[0]}, which its annotation does not list{more}")


def _coco_instance(entry: dict, height: int, width: int, truth: InstanceTruth) -> TrueInstance:
    where = f"{truth.name}: annotation {entry.get('id', '?')}"
    category = entry.get("category_id")
    if category not in truth.class_of:
        known = sorted(truth.class_of)
        raise DataError(
            where,
            f"category {category!r}, which is no thing of the vocabulary (it has {len(known)} from {known[0]} to "
            f"{known[-1]})",
        )
    try:
        shape = entry["segmentation"]
        if isinstance(shape, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
        elif isinstance(shape["counts"], list):
            rle = coco_mask.frPyObjects(shape, height, width)
        else:
            counts = shape["counts"]
            rle = {"size": list(shape["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}
        own_height, own_width = rle["size"]
        area = float(entry["area"]) if "area" in entry else float(coco_mask.area(rle))
    except Exception as error:  # pycocotools raises whatever its C code met
        raise DataError(where, f"its segmentation is no polygons and no mask of COCO ({error})") from error
    if (own_height, own_width) != (height, width):
        raise DataError(where, f"its mask is {own_width} x {own_height} pixels, but the image is {width} x {height}")
    return TrueInstance(truth.class_of[category], rle, bool(entry.get("iscrowd", 0)), area)


def _cityscapes_instances(ids: np.ndarray, class_of: Mapping[int, int]) -> list[TrueInstance]:
    found = []
    for id_ in np.unique(ids).tolist():
        crowd = id_ < CROWD_BELOW
        label = id_ if crowd else id_ // CROWD_BELOW
        if label in class_of:
            rle = coco_mask.encode(np.asfortranarray(ids == id_, np.uint8))
            found.append(TrueInstance(class_of[label], rle, crowd, float(coco_mask.area(rle))))
    return found
