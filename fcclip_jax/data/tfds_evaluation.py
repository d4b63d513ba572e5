"""Prepared benchmarks as array_record by tensorflow-datasets, without tensorflow, and reading them back.

The features of panoptic truth are those of `coco/2017_panoptic`, so that what is written can be trained on, too. Needs
tensorflow-datasets and array_record (the extra `train`).
"""

import io
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fcclip_jax.data.annotation_maps import decode_ids
from fcclip_jax.data.benchmarks import relabelled
from fcclip_jax.data.evaluation_record import (
    CityscapesTruth,
    EvaluationRecord,
    InstanceTruth,
    PanopticTruth,
    SemanticTruth,
)
from fcclip_jax.data.evaluation_sources import EvaluationSource, ignore_label, label_table
from fcclip_jax.data.records import DataError, PanopticRecord
from fcclip_jax.data.tfds_panoptic import panoptic_features, panoptic_objects
from fcclip_jax.vocabulary import Vocabulary


def write_records(
    data_dir: str | PathLike, name: str, splits: Mapping[str, EvaluationSource], skip_bad: bool = False
) -> tuple[Path, list[str]]:
    """Writes `splits` (`{"val": source, ...}`) to `data_dir/name/1.0.0`, for `TfdsEvaluationSource`. What is there
    already is left as it is; what is not finished is written to a folder aside, then renamed.

    Returns the version folder, and the messages of the bad records that were skipped.

    Raises:
        DataError: a record cannot be used, unless `skip_bad`.
        ValueError: no split, or splits of different vocabularies.
    """
    if not splits or len({source.vocabulary for source in splits.values()}) != 1:
        raise ValueError("the splits to write must be at least one, all of one vocabulary")
    builder = EvaluationFolder(data_dir=Path(data_dir), name=name, splits=splits, skip_bad=skip_bad)
    builder.download_and_prepare()
    return Path(builder.data_dir), builder.bad


class EvaluationFolder(tfds.core.GeneratorBasedBuilder):
    """The tfds builder behind `write_records`. In a module of its own, since loader processes must be able to import
    it."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_dir: Path, name: str, splits: Mapping[str, EvaluationSource], skip_bad: bool):
        self.name = name
        self.bad: list[str] = []
        self._splits, self._skip_bad = splits, skip_bad
        first = next(iter(splits.values()))
        self._vocabulary, self._truths = first.vocabulary, first.truths
        self._label_type = np.uint8 if first.ignore_label <= 255 else np.uint16
        self._cityscapes = "instance" in self._truths and isinstance(first[0].instance_truth, CityscapesTruth)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3))
        features = {
            "image": image,
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "image/stem": tfds.features.Text(),
        }
        metadata = {
            "vocabulary": self._vocabulary.to_dict(),
            "truths": sorted(self._truths),
            "cityscapes": self._cityscapes,
            "ids": {name: [] for name in self._splits},  # filled while the records are written, in their order
        }
        if "panoptic" in self._truths:
            panoptic, ids = panoptic_features(self._vocabulary)
            features |= panoptic
            metadata["category_ids"] = ids
        if "semantic" in self._truths:
            features["semantic_image"] = tfds.features.Image(shape=(None, None, 1), dtype=self._label_type)
        if "instance" in self._truths:
            features["instances"] = tfds.features.Text()  # bytes: COCO's annotations, or Cityscapes' PNG
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images with the truth that FC-CLIP is evaluated on.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(metadata),
        )

    def _split_generators(self, _: tfds.download.DownloadManager) -> dict:
        return {name: self._generate_examples(name, source) for name, source in self._splits.items()}

    def _generate_examples(self, name: str, source: EvaluationSource) -> Iterator[tuple[int, dict]]:
        ids = source.ids()
        for index in range(len(source)):
            try:
                example = self._example(source[index], index)
            except DataError as error:
                if not self._skip_bad:
                    raise
                self.bad.append(str(error))
                continue
            self.info.metadata["ids"][name].append(ids[index])
            yield index, example

    def _example(self, record: EvaluationRecord, index: int) -> dict:
        record.size()  # that it is an image
        example = {
            "image": record.image,
            "image/filename": Path(record.image_name).name,
            "image/id": record.image_id if isinstance(record.image_id, int) else index,
            "image/stem": record.file_stem,
        }
        if record.panoptic_truth is not None:
            example |= _panoptic_example(record, self._vocabulary)
        if record.semantic_truth is not None:
            buffer = io.BytesIO()
            Image.fromarray(record.semantic().astype(self._label_type)).save(buffer, format="PNG")
            example["semantic_image"] = buffer.getvalue()
        if record.instance_truth is not None:
            record.instances()  # that they can be read
            example["instances"] = record.instance_truth.data
        return example


def _panoptic_example(record: EvaluationRecord, vocabulary: Vocabulary) -> dict:
    record.panoptic()  # that it fits together
    truth = record.panoptic_truth
    plain = PanopticRecord(
        image_id=0,
        image_name=record.image_name,
        panoptic_name=truth.name,
        image=record.image,
        panoptic=truth.data,
        segment_ids=truth.ids,
        classes=truth.classes,
        crowd=truth.crowd,
    )
    objects = panoptic_objects(plain, decode_ids(truth.data, truth.name), vocabulary)
    for entry, area in zip(objects, truth.areas.tolist(), strict=True):
        entry["area"] = area if area >= 0 else entry["area"]
    return {
        "panoptic_image": truth.data,
        "panoptic_image/filename": Path(truth.name).name,
        "panoptic_objects": objects,
    }


class TfdsEvaluationSource:
    """A split of what `write_records` wrote. `directory` is the version folder; `labels` as for `open_benchmark`.

    Raises DataError for a folder that is no such data set, a missing split, and a vocabulary of another size.
    """

    def __init__(self, directory: str | PathLike, split: str = "val", labels: Vocabulary | None = None):
        self._directory, self._split, self._data = Path(directory), split, None
        if not (self._directory / "dataset_info.json").is_file():
            raise DataError(
                self._directory, "no dataset_info.json; this must be the version folder of a prepared tfds data set"
            )
        metadata = tfds.builder_from_directory(self._directory).info.metadata or {}
        if "ids" not in metadata:
            raise DataError(self._directory, "was not written by `fcclip prepare --tfds`: its metadata have no ids")
        if split not in metadata["ids"]:
            raise DataError(self._directory, f"has no split {split!r}; it has: {', '.join(metadata['ids'])}")
        own = Vocabulary.from_dict(metadata["vocabulary"])
        self.vocabulary = own if labels is None else relabelled(own, labels, str(self._directory))
        self.truths: frozenset[str] = frozenset(metadata["truths"])
        self.ignore_label = ignore_label(self.vocabulary)
        self._ids = metadata["ids"][split]
        self._cityscapes = metadata["cityscapes"]
        classes = self.vocabulary.classes
        class_of = {cls.id: k for k, cls in enumerate(classes) if cls.id is not None}
        self._label_classes = np.array([class_of[id_] for id_ in sorted(class_of)], np.int32)
        self._thing_of = {id_: k for id_, k in class_of.items() if classes[k].isthing}
        self._table = label_table({k: k for k in range(len(classes))}, self.ignore_label, self.vocabulary)

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> list[int | str]:
        return list(self._ids)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_data": None}

    def _open(self) -> Any:
        # Opened anew in each process: tfds's own objects do not travel between processes.
        if self._data is None:
            builder = tfds.builder_from_directory(self._directory)
            images = [key for key, kind in builder.info.features.items() if isinstance(kind, tfds.features.Image)]
            raw = {key: tfds.decode.SkipDecoding() for key in images}
            self._data = builder.as_data_source(self._split, decoders=raw)
        return self._data

    def __getitem__(self, index: int) -> EvaluationRecord:
        """The record at `index`. Raises DataError when it cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            example = self._open()[index]
            name, stem = (_bytes(example[key]).decode() for key in ("image/filename", "image/stem"))
            where = f"{self._directory}: {name}"
            truth = {
                "panoptic_truth": self._panoptic(example, where) if "panoptic" in self.truths else None,
                "semantic_truth": self._semantic(example, where) if "semantic" in self.truths else None,
                "instance_truth": self._instance(example, where) if "instance" in self.truths else None,
            }
        except Exception as error:  # array_record and protobuf raise their own kinds
            raise DataError(self._directory, f"record {index} cannot be read: {error}") from error
        return EvaluationRecord(self._ids[index], where, stem, _bytes(example["image"]), **truth)

    def _panoptic(self, example: Mapping, where: str) -> PanopticTruth:
        objects = example["panoptic_objects"]
        ids, labels, areas = (np.asarray(objects[key], np.int64).reshape(-1) for key in ("id", "label", "area"))
        crowd = np.asarray(objects["is_crowd"], bool).reshape(-1)
        data = _bytes(example["panoptic_image"])
        return PanopticTruth(f"{where}, panoptic map", data, ids, self._label_classes[labels], crowd, areas)

    def _semantic(self, example: Mapping, where: str) -> SemanticTruth:
        return SemanticTruth(f"{where}, label map", _bytes(example["semantic_image"]), self._table)

    def _instance(self, example: Mapping, where: str) -> InstanceTruth | CityscapesTruth:
        kind = CityscapesTruth if self._cityscapes else InstanceTruth
        return kind(f"{where}, instances", _bytes(example["instances"]), self._thing_of)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else bytes(np.asarray(value).item())
