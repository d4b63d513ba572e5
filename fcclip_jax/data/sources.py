"""Where training images come from: COCO panoptic folders, and array_record files prepared by tensorflow-datasets.

A source has `len`, `source[i] -> PanopticRecord`, and travels to loader processes by pickle at little cost: what it
holds are a few flat arrays, not a hundred thousand dictionaries.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fcclip_jax.data.files import expect_folder, json_entries, read_file, read_json, refuse_if_absent
from fcclip_jax.data.records import DataError, PanopticRecord
from fcclip_jax.vocabulary import Vocabulary

LAYOUT = """expected is the layout of COCO panoptic:
    images (train2017/)                   000000000009.jpg ...
    panoptic maps (panoptic_train2017/)   000000000009.png ...
    annotations (panoptic_train2017.json)"""

_UNKNOWN = -1


@runtime_checkable
class PanopticSource(Protocol):
    """What `make_loader` takes. `source[i]` raises DataError for a record that cannot be used."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> PanopticRecord: ...


class CocoPanopticSource:
    """The annotated images of a COCO panoptic set, in the order of its annotations.

    `vocabulary` gives classes by their ids (`ClassName.id` = COCO's `category_id`). Images without an annotation are
    left out; an annotation without segments is kept. Image files are looked for only when read.

    Raises DataError for a missing folder or file, an annotation file of another kind, and a category that the
    vocabulary lacks; with `skip_bad` the last is raised only when such an image is read, so that the loader may pass
    over it.
    """

    def __init__(
        self,
        images_dir: str | PathLike,
        panoptic_dir: str | PathLike,
        annotations: str | PathLike,
        vocabulary: Vocabulary,
        skip_bad: bool = False,
    ):
        self._images_dir, self._panoptic_dir = Path(images_dir), Path(panoptic_dir)
        self._json = Path(annotations)
        for folder in (self._images_dir, self._panoptic_dir):
            expect_folder(folder, LAYOUT)
        self._class_by_id = class_by_id(vocabulary)
        content = read_json(self._json, LAYOUT)
        images = _entries(self._json, content, "images")
        entries = _entries(self._json, content, "annotations")
        if not entries:
            raise DataError(self._json, "holds no annotation, so there is nothing to train on")
        try:
            self._fill(entries, images)
        except DataError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(self._json, f"not a COCO panoptic file: {type(error).__name__} {error}") from error
        if not skip_bad:
            self._refuse_unknown_categories()
        refuse_if_absent([self._images_dir / name for name in self._image_names], LAYOUT)

    def _fill(self, entries: Sequence[dict], images: Sequence[dict]) -> None:
        image_names = {image["id"]: image["file_name"] for image in images}
        segments = [segment for entry in entries for segment in entry["segments_info"]]
        unlisted = [entry["image_id"] for entry in entries if entry["image_id"] not in image_names]
        if unlisted:
            raise DataError(self._json, f"has an annotation of image {unlisted[0]}, which its `images` do not list")
        self._image_ids = np.array([entry["image_id"] for entry in entries], np.int64)
        self._image_names = [image_names[entry["image_id"]] for entry in entries]
        self._panoptic_names = [entry["file_name"] for entry in entries]
        if not all(isinstance(name, str) for name in self._image_names + self._panoptic_names):
            raise TypeError("a file_name is no text")
        self._starts = np.cumsum([0] + [len(entry["segments_info"]) for entry in entries])
        self._segment_ids = np.array([segment["id"] for segment in segments], np.int64)
        self._categories = np.array([segment["category_id"] for segment in segments], np.int64)
        self._crowd = np.array([segment.get("iscrowd", 0) for segment in segments], bool)
        classes = [self._class_by_id.get(category, _UNKNOWN) for category in self._categories.tolist()]
        self._classes = np.array(classes, np.int32)

    def _refuse_unknown_categories(self) -> None:
        unknown = np.flatnonzero(self._classes == _UNKNOWN).tolist()
        if unknown:
            index = int(np.searchsorted(self._starts, unknown[0], side="right")) - 1
            raise DataError(self._json, f"{self._image_names[index]}: {self._unknown_category(unknown[0])}")

    def _unknown_category(self, segment: int) -> str:
        known = sorted(self._class_by_id)
        return (
            f"segment {self._segment_ids[segment]} has category {self._categories[segment]}, which the vocabulary does "
            f"not have (it has {len(known)} ids from {known[0]} to {known[-1]})"
        )

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, index: int) -> PanopticRecord:
        """The record at `index`, its files read. Raises DataError for a file that is missing or cannot be read, or an
        unknown category."""
        image_path = self._images_dir / self._image_names[index]
        panoptic_path = self._panoptic_dir / self._panoptic_names[index]
        segments = slice(int(self._starts[index]), int(self._starts[index + 1]))
        unknown = np.flatnonzero(self._classes[segments] == _UNKNOWN)
        if len(unknown):
            raise DataError(panoptic_path, self._unknown_category(segments.start + int(unknown[0])))
        return PanopticRecord(
            image_id=int(self._image_ids[index]),
            image_name=str(image_path),
            panoptic_name=str(panoptic_path),
            image=read_file(image_path),
            panoptic=read_file(panoptic_path),
            segment_ids=self._segment_ids[segments],
            classes=self._classes[segments],
            crowd=self._crowd[segments],
        )


class TfdsPanopticSource:
    """A split of array_record files that tensorflow-datasets prepared with the features of `coco/2017_panoptic`:
    `image`, `image/filename`, `image/id`, `panoptic_image`, `panoptic_objects` (`id`, `label`, `is_crowd`).

    `directory` is the version folder (it holds `dataset_info.json`); `split` may be a slice, `train[:50%]`. Labels
    become classes of `vocabulary` by category id: through the ids that `tfds_panoptic.prepare` leaves in the metadata,
    else (COCO as tfds itself prepares it) the labels are the vocabulary's ids in rising order.

    Raises DataError for a folder that is no such data set, a missing split, and labels that do not fit the
    vocabulary. Needs tensorflow-datasets and array_record (`pip install fcclip_jax[train]`), not tensorflow.
    """

    def __init__(self, directory: str | PathLike, vocabulary: Vocabulary, split: str = "train"):
        self._directory, self._split = Path(directory), split
        self._data = None
        if not (self._directory / "dataset_info.json").is_file():
            raise DataError(
                self._directory, "no dataset_info.json; this must be the version folder of a prepared tfds data set"
            )
        self._classes = self._label_classes(vocabulary)
        self._length = len(self._open())

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self._directory)

    def _open(self) -> Any:
        # Opened anew in each process: tfds's own objects do not travel between processes.
        if self._data is None:
            import tensorflow_datasets as tfds

            builder = self._builder()
            images = [key for key, kind in builder.info.features.items() if isinstance(kind, tfds.features.Image)]
            raw = {key: tfds.decode.SkipDecoding() for key in images}
            try:
                self._data = builder.as_data_source(self._split, decoders=raw)
            except (ValueError, KeyError, NotImplementedError) as error:
                splits = ", ".join(builder.info.splits) or "none"
                raise DataError(
                    self._directory, f"cannot read the split {self._split!r} (it has: {splits}): {error}"
                ) from error
        return self._data

    def _label_classes(self, vocabulary: Vocabulary) -> np.ndarray:
        """int32 `[labels]`: the class of each label."""
        info = self._builder().info
        try:
            labels = info.features["panoptic_objects"]["label"].num_classes
        except (KeyError, TypeError, AttributeError):
            raise DataError(
                self._directory, "its features are not those of coco/2017_panoptic: no panoptic_objects with label"
            ) from None
        by_id = class_by_id(vocabulary)
        ids = (info.metadata or {}).get("category_ids")
        if ids is None:
            if labels != len(by_id):
                raise DataError(
                    self._directory, f"has {labels} labels, but the vocabulary has {len(by_id)} classes with an id"
                )
            ids = sorted(by_id)
        unknown = [id_ for id_ in ids if id_ not in by_id]
        if unknown:
            raise DataError(self._directory, f"has the category {unknown[0]}, which the vocabulary does not have")
        return np.array([by_id[id_] for id_ in ids], np.int32)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_data": None}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> PanopticRecord:
        """The record at `index`. Raises DataError when it cannot be read."""
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of {self._length}")
        try:
            example = self._open()[index]
            objects = example["panoptic_objects"]
            name = example["image/filename"]
        except DataError:
            raise
        except Exception as error:  # array_record and protobuf raise their own kinds
            raise DataError(self._directory, f"record {index} cannot be read: {error}") from error
        name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        return PanopticRecord(
            image_id=int(example["image/id"]),
            image_name=f"{self._directory}: {name}",
            panoptic_name=f"{self._directory}: panoptic map of {name}",
            image=_bytes(example["image"]),
            panoptic=_bytes(example["panoptic_image"]),
            segment_ids=np.asarray(objects["id"], np.int64).reshape(-1),
            classes=self._classes[np.asarray(objects["label"], np.int64).reshape(-1)],
            crowd=np.asarray(objects["is_crowd"], bool).reshape(-1),
        )


def class_by_id(vocabulary: Vocabulary) -> dict[int, int]:
    """Dataset id -> class index. Raises DataError when no class has an id."""
    by_id = {cls.id: index for index, cls in enumerate(vocabulary.classes) if cls.id is not None}
    if not by_id:
        raise DataError("the vocabulary", "no class has an id; write label files with `id:name,synonym,...`")
    return by_id


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else bytes(np.asarray(value).item())


def _entries(path: Path, content: Any, key: str) -> list[dict]:
    entries = json_entries(path, content, key, "a COCO panoptic file")
    if key == "annotations" and entries and "segments_info" not in entries[0]:
        raise DataError(path, "not a COCO panoptic file but another COCO one: its annotations have no `segments_info`")
    return entries
