"""COCO panoptic folders prepared as array_record by tensorflow-datasets, without tensorflow.

The features are those of `coco/2017_panoptic`. Needs tensorflow-datasets and array_record (the extra `train`).
"""

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int32

from fcclip_jax.data.annotation_maps import rgb_to_id
from fcclip_jax.data.records import PanopticRecord, decode_image
from fcclip_jax.data.sources import PanopticSource, class_by_id
from fcclip_jax.vocabulary import Vocabulary


def prepare(data_dir: str | PathLike, splits: Mapping[str, PanopticSource], vocabulary: Vocabulary) -> Path:
    """Writes `splits` (`{"train": source, ...}`) under `data_dir` and returns the version folder, for
    `TfdsPanopticSource`. Image bytes go in as they are. What is there already is left as it is.

    `vocabulary` is the one that the sources were made with. Raises DataError for a record that cannot be used.
    """
    builder = PanopticFolder(data_dir=Path(data_dir), splits=splits, vocabulary=vocabulary)
    builder.download_and_prepare()  # written to a folder aside, then renamed
    return Path(builder.data_dir)


class PanopticFolder(tfds.core.GeneratorBasedBuilder):
    """The tfds builder behind `prepare`. In a module of its own, since loader processes must be able to import it."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_dir: Path, splits: Mapping[str, PanopticSource], vocabulary: Vocabulary):
        self._splits, self._vocabulary = splits, vocabulary
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        panoptic, ids = panoptic_features(self._vocabulary)
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
        } | panoptic
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images with panoptic maps, from a COCO panoptic folder.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(category_ids=ids),
        )

    def _split_generators(self, _: tfds.download.DownloadManager) -> dict:
        return {name: self._generate_examples(source) for name, source in self._splits.items()}

    def _generate_examples(self, source: PanopticSource) -> Iterator[tuple[int, dict]]:
        for index in range(len(source)):
            record = source[index]
            yield (
                index,
                {
                    "image": record.image,
                    "image/filename": Path(record.image_name).name,
                    "image/id": record.image_id,
                    "panoptic_image": record.panoptic,
                    "panoptic_image/filename": Path(record.panoptic_name).name,
                    "panoptic_objects": panoptic_objects(
                        record,
                        rgb_to_id(np.asarray(decode_image(record.panoptic, record.panoptic_name))),
                        self._vocabulary,
                    ),
                },
            )


def panoptic_features(vocabulary: Vocabulary) -> tuple[dict, list[int]]:
    """The features of a panoptic map, and the category id of each label (in rising order)."""
    class_ids = sorted(class_by_id(vocabulary).items())  # label -> (category id, class)
    shown = [vocabulary.classes[index].name for _, index in class_ids]
    # Labels must differ, where two classes may share the shown name as long as their ids differ.
    names = [
        name if shown.count(name) == 1 else f"{name} ({id_})" for name, (id_, _) in zip(shown, class_ids, strict=True)
    ]
    objects = {
        "id": np.int64,
        "area": np.int64,
        "bbox": tfds.features.BBoxFeature(),
        "label": tfds.features.ClassLabel(names=names),
        "is_crowd": np.bool_,
    }
    features = {
        "panoptic_image": tfds.features.Image(shape=(None, None, 3)),
        "panoptic_image/filename": tfds.features.Text(),
        "panoptic_objects": tfds.features.Sequence(objects),
    }
    return features, [id_ for id_, _ in class_ids]


def panoptic_objects(record: PanopticRecord, panoptic: Int32[np.ndarray, "H W"], vocabulary: Vocabulary) -> list[dict]:
    """What `panoptic_objects` holds for a record, whose panoptic map has these ids."""
    label_by_class = {index: label for label, (_, index) in enumerate(sorted(class_by_id(vocabulary).items()))}
    height, width = panoptic.shape
    objects = []
    for id_, cls, crowd in zip(record.segment_ids, record.classes, record.crowd, strict=True):
        mask = panoptic == id_
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        empty = not len(rows)
        box = (0, 0, 0, 0) if empty else (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
        ymin, xmin, ymax, xmax = np.array(box) / (height, width, height, width)
        objects.append(
            {
                "id": int(id_),
                "area": int(mask.sum()),
                "bbox": tfds.features.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax),
                "label": label_by_class[int(cls)],
                "is_crowd": bool(crowd),
            }
        )
    return objects
