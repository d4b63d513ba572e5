"""COCO: semantic maps from the panoptic ones, and COCO-Stuff's label maps with the numbers of its 171 classes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fcclip_jax.data.annotation_maps import decode_ids, decode_labels, runs
from fcclip_jax.data.evaluation_record import look_up
from fcclip_jax.data.files import expect_folder, json_entries, list_files, plain_name, read_file, read_json
from fcclip_jax.data.records import DataError
from fcclip_jax.prepare.conversion import Conversion, Job, write_image
from fcclip_jax.vocabulary import Vocabulary

IGNORED = 255
PANOPTIC_LAYOUT = """expected for `fcclip prepare coco_panoptic` is:
    coco/annotations/panoptic_{val,train}2017.json
    coco/panoptic_{val,train}2017/*.png"""
STUFF_LAYOUT = """expected for `fcclip prepare coco_stuff_171` is (stuffthingmaps_trainval2017.zip unpacked):
    coco/stuffthingmaps/{val,train}2017/*.png"""


def semantic_from_panoptic(root: Path, split: str) -> list[Job]:
    """`coco/panoptic_semseg_val2017/*.png`: places in the list of 133 classes, 255 elsewhere (crowds count)."""
    annotations = root / f"coco/annotations/panoptic_{split}2017.json"
    maps = expect_folder(root / f"coco/panoptic_{split}2017", PANOPTIC_LAYOUT)
    class_of = {cls.id: place for place, cls in enumerate(Vocabulary.builtin("coco_panoptic").classes)}
    conversions = []
    for entry in json_entries(annotations, read_json(annotations, PANOPTIC_LAYOUT), "annotations"):
        try:
            name = plain_name(entry["file_name"], annotations)
            segments = tuple((segment["id"], segment["category_id"]) for segment in entry["segments_info"])
        except (KeyError, TypeError) as error:
            raise DataError(annotations, f"not a COCO panoptic file: {type(error).__name__} {error}") from error
        output = root / f"coco/panoptic_semseg_{split}2017" / name
        conversions.append(Conversion(name, (output,), partial(_semantic, maps / name, output, segments, class_of)))
    return [Job(f"COCO semantic, {split}2017", conversions)]


def _semantic(source: Path, output: Path, segments: Sequence[tuple[int, int]], class_of: dict[int, int]) -> None:
    ids = decode_ids(read_file(source), str(source))
    places = {id_: class_of.get(category) for id_, category in segments}
    if None in places.values():
        id_, category = next(segment for segment in segments if segment[1] not in class_of)
        raise DataError(source, f"segment {id_} has the category {category}, which COCO panoptic does not have")
    values, lengths = runs(ids)
    present, run = np.unique(values, return_inverse=True)
    unlisted = [id_ for id_ in present.tolist() if id_ and id_ not in places]
    if unlisted:
        raise DataError(source, f"holds segment id {unlisted[0]}, which its annotation does not list")
    classes = np.array([places.get(id_, IGNORED) for id_ in present.tolist()], np.uint8)
    write_image(output, np.repeat(classes[run], lengths).reshape(ids.shape))


def stuff_171(root: Path, split: str) -> list[Job]:
    """`coco/stuffthingmaps_detectron2/val2017/*.png`: places in the list of 171 classes, 255 for no label.

    COCO-Stuff's own maps hold the category id minus 1.
    """
    table = np.full(256, -1, np.int32)
    table[IGNORED] = IGNORED
    for place, cls in enumerate(Vocabulary.builtin("coco_stuff_171").classes):
        table[cls.id - 1] = place
    folder = root / f"coco/stuffthingmaps_detectron2/{split}2017"
    conversions = [
        Conversion(path.name, (folder / path.name,), partial(_relabel, path, folder / path.name, table))
        for path in list_files(root / f"coco/stuffthingmaps/{split}2017", "*.png", STUFF_LAYOUT)
    ]
    return [Job(f"COCO-Stuff, {split}2017", conversions)]


def _relabel(source: Path, output: Path, table: np.ndarray) -> None:
    labels = decode_labels(read_file(source), str(source))
    write_image(output, look_up(table, labels, str(source)).astype(np.uint8))
