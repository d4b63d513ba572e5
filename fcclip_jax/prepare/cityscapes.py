"""Cityscapes: label maps with the numbers of the 19 classes, and panoptic maps, both from the PNGs of gtFine."""

from functools import partial
from pathlib import Path

import numpy as np

from fcclip_jax.data.annotation_maps import decode_labels, id_to_rgb
from fcclip_jax.data.evaluation_record import CROWD_BELOW, look_up
from fcclip_jax.data.files import list_files, read_file
from fcclip_jax.data.records import DataError
from fcclip_jax.prepare.conversion import Conversion, Job, write_image
from fcclip_jax.prepare.segments import regions
from fcclip_jax.vocabulary import Vocabulary

IGNORED = 255
LABELS = 34
"""Label ids are 0 to 33 (and -1, number plates, which are not drawn)."""
LAYOUT = """expected for `fcclip prepare cityscapes` is:
    cityscapes/gtFine/{val,train}/CITY/*_gtFine_labelIds.png
    cityscapes/gtFine/{val,train}/CITY/*_gtFine_instanceIds.png"""

# The 19 classes as the data set's own scripts list them: label id, name, group, colour.
_CLASSES = """
7 road flat 804080/8 sidewalk flat f423e8/11 building construction 464646/12 wall construction 66669c
13 fence construction be9999/17 pole object 999999/19 traffic_light object faaa1e/20 traffic_sign object dcdc00
21 vegetation nature 6b8e23/22 terrain nature 98fb98/23 sky sky 4682b4/24 person human dc143c/25 rider human ff0000
26 car vehicle 00008e/27 truck vehicle 000046/28 bus vehicle 003c64/31 train vehicle 005064
32 motorcycle vehicle 0000e6/33 bicycle vehicle 770b20
"""


def _categories() -> list[dict]:
    things = {cls.id: cls.isthing for cls in Vocabulary.builtin("cityscapes_19").classes}
    rows = (row.split() for row in _CLASSES.strip().replace("\n", "/").split("/"))
    return [
        {
            "id": int(id_),
            "name": name.replace("_", " "),
            "color": list(bytes.fromhex(colour)),
            "supercategory": group,
            "isthing": int(things[int(id_)]),
        }
        for id_, name, group, colour in rows
    ]


def cityscapes(root: Path, split: str) -> list[Job]:
    """`*_gtFine_labelTrainIds.png` beside the label maps, and `gtFine/cityscapes_panoptic_val` with its JSON."""
    truth = root / "cityscapes/gtFine"
    return [_semantic_job(truth, split), _panoptic_job(truth, split)]


def _semantic_job(truth: Path, split: str) -> Job:
    table = np.full(LABELS, IGNORED, np.int32)
    for place, category in enumerate(_categories()):
        table[category["id"]] = place
    conversions = []
    for path in list_files(truth / split, "*/*_gtFine_labelIds.png", LAYOUT):
        output = path.with_name(path.name.replace("_labelIds.png", "_labelTrainIds.png"))
        conversions.append(Conversion(output.name, (output,), partial(_semantic, path, output, table)))
    return Job(f"Cityscapes semantic, {split}", conversions)


def _semantic(source: Path, output: Path, table: np.ndarray) -> None:
    labels = decode_labels(read_file(source), str(source))
    write_image(output, look_up(table, labels, str(source)).astype(np.uint8))


def _panoptic_job(truth: Path, split: str) -> Job:
    categories, made = _categories(), truth / f"cityscapes_panoptic_{split}"
    conversions = []
    for path in list_files(truth / split, "*/*_gtFine_instanceIds.png", LAYOUT):
        output = made / path.name.replace("_instanceIds.png", "_panoptic.png")
        conversions.append(Conversion(path.name, (output,), partial(_panoptic, path, output, categories)))

    def summarise(notes: list[dict]) -> dict:
        return {
            "images": [note["image"] for note in notes],
            "annotations": [note["annotation"] for note in notes],
            "categories": categories,
        }

    return Job(f"Cityscapes panoptic, {split}", conversions, made.with_suffix(".json"), summarise)


def _panoptic(source: Path, output: Path, categories: list[dict]) -> dict:
    """Segment ids are the instance ids; regions of things that are not parted are crowds; the rest is void."""
    ids = decode_labels(read_file(source), str(source)).astype(np.int32)
    isthing = {category["id"]: category["isthing"] for category in categories}
    segments = []
    for id_, region in regions(ids).items():
        label = id_ if id_ < CROWD_BELOW else id_ // CROWD_BELOW
        if not 0 <= label < LABELS:
            raise DataError(source, f"holds the instance id {id_}, whose label {label} Cityscapes does not have")
        if label in isthing:
            crowd = int(id_ < CROWD_BELOW and isthing[label])
            segments.append({"id": id_, "category_id": label} | region | {"iscrowd": crowd})
    # 16 bits hold all instance ids.
    kept = np.zeros(1 << 16, np.int32)
    kept[[segment["id"] for segment in segments]] = [segment["id"] for segment in segments]
    write_image(output, id_to_rgb(kept[ids]))
    stem = source.name.removesuffix("_gtFine_instanceIds.png")
    size = {"width": ids.shape[1], "height": ids.shape[0]}
    return {
        # The file name of the image is the one that the official script writes, which no image has.
        "image": {"id": stem, "file_name": f"{stem}_gtFine_leftImg8bit.png"} | size,
        "annotation": {"image_id": stem, "file_name": output.name, "segments_info": segments},
    }
