"""ADE20K (SceneParse150): label maps that count from 0, panoptic maps, and instances as COCO has them."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from pycocotools import mask as coco_mask

from fcclip_jax.data.annotation_maps import decode_labels, id_to_rgb
from fcclip_jax.data.benchmarks import SPLITS
from fcclip_jax.data.files import list_files, read_file
from fcclip_jax.data.records import DataError
from fcclip_jax.prepare.conversion import Conversion, Job, write_image
from fcclip_jax.prepare.segments import bounding_box, check_size, segment_info, stored_rgb, stored_size
from fcclip_jax.vocabulary import Vocabulary

CLASSES = 150
IGNORED = 255
LAYOUT = """expected for `fcclip prepare ade20k_150` is:
    ADEChallengeData2016/images/{validation,training}/*.jpg
    ADEChallengeData2016/annotations/{validation,training}/*.png
    ADEChallengeData2016/annotations_instance/{validation,training}/*.png (annotations_instance.tar of 2017)"""

# The data set's colours, as hexadecimal R G B; the panoptic ids are made of them.
_COLOURS = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652
8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0
ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff
8c8cc8 fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff
00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff
ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff
00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500
0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff
b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""


def _categories() -> list[dict]:
    """COCO's `categories`: the ids count from 0."""
    classes, colours = Vocabulary.builtin("ade20k_150").classes, _COLOURS.split()
    return [
        {"id": cls.id, "name": cls.name, "isthing": int(cls.isthing), "color": list(bytes.fromhex(colour))}
        for cls, colour in zip(classes, colours, strict=True)
    ]


def ade20k_150(root: Path, split: str) -> list[Job]:
    """The three derived annotations of FC-CLIP's scripts; category ids count from 0 in all of them."""
    base, folder = root / "ADEChallengeData2016", SPLITS[split]
    images = list_files(base / "images" / folder, "*.jpg", LAYOUT)
    return [
        _semantic_job(base, folder),
        _panoptic_job(base, folder, split, images),
        _instance_job(base, folder, split, images),
    ]


def _semantic_job(base: Path, folder: str) -> Job:
    """`annotations_detectron2`: 0 (other) becomes 255, the rest one less."""
    made = base / "annotations_detectron2" / folder
    conversions = [
        Conversion(path.name, (made / path.name,), partial(_semantic, path, made / path.name))
        for path in list_files(base / "annotations" / folder, "*.png", LAYOUT)
    ]
    return Job(f"ADE20K semantic, {folder}", conversions)


def _read_semantic(path: Path) -> UInt8[np.ndarray, "H W"]:
    labels = decode_labels(read_file(path), str(path))
    if labels.dtype != np.uint8 or labels.max() > CLASSES:
        raise DataError(path, f"holds the label {labels.max()}; ADE20K-150 has 0 (other) to {CLASSES}, in 8 bits")
    return labels - np.uint8(1)


def _semantic(source: Path, output: Path) -> None:
    write_image(output, _read_semantic(source))


def _panoptic_job(base: Path, folder: str, split: str, images: list[Path]) -> Job:
    """`ade20k_panoptic_val`: stuff from the semantic map, things from the instance map pasted over it."""
    categories, made = _categories(), base / f"ade20k_panoptic_{split}"
    conversions = []
    for image in images:
        name = f"{image.stem}.png"
        sources = image, base / "annotations" / folder / name, base / "annotations_instance" / folder / name
        conversions.append(
            Conversion(image.stem, (made / name,), partial(_panoptic, *sources, made / name, categories))
        )
    list_files(base / "annotations_instance" / folder, "*.png", LAYOUT)

    def summarise(notes: list[dict]) -> dict:
        return {
            "images": [note["image"] for note in notes],
            "annotations": [note["annotation"] for note in notes],
            "categories": categories,
        }

    return Job(f"ADE20K panoptic, {folder}", conversions, made.with_suffix(".json"), summarise)


def _panoptic(image: Path, semantic: Path, instance: Path, output: Path, categories: list[dict]) -> dict:
    size = stored_size(image)
    labels, objects = _read_semantic(semantic), stored_rgb(instance)
    check_size(semantic, labels, image, size)
    check_size(instance, objects, image, size)
    ids, segments = np.zeros(size, np.int32), []
    free = _FreeIds(categories)
    for label in np.unique(labels).tolist():
        if label != IGNORED and not categories[label]["isthing"]:
            mask, id_ = labels == label, free.take(label)
            ids[mask] = id_
            # Counted before things are pasted over it, as in the scripts: the area may be more than the map shows.
            segments.append(segment_info(id_, label, mask))
    for category, mask in _things(objects, instance, categories):
        id_ = free.take(category)
        ids[mask] = id_
        segments.append(segment_info(id_, category, mask))
    write_image(output, id_to_rgb(ids))
    return {
        "image": {"id": image.stem, "file_name": image.name, "width": size[1], "height": size[0]},
        "annotation": {"image_id": image.stem, "file_name": output.name, "segments_info": segments},
    }


class _FreeIds:
    """Ids of one image: the colour of the class, and the next free numbers for its further things.

    The scripts draw these at random near the colour; nothing depends on them.
    """

    def __init__(self, categories: list[dict]):
        self._first = [c["color"][0] + 256 * c["color"][1] + 65536 * c["color"][2] for c in categories]
        self._taken = {id_ for id_, c in zip(self._first, categories, strict=True) if not c["isthing"]} | {0}
        self._stuff = [not c["isthing"] for c in categories]

    def take(self, category: int) -> int:
        id_ = self._first[category]
        if self._stuff[category]:
            return id_
        while id_ in self._taken:
            id_ = (id_ + 1) % (1 << 24)
        self._taken.add(id_)
        return id_


def _things(
    objects: UInt8[np.ndarray, "H W 3"], path: Path, categories: list[dict]
) -> Iterator[tuple[int, Bool[np.ndarray, "H W"]]]:
    """Category and mask of each instance, by its number. Red holds the class, 1 to 100; green the number in the image,
    0 where no instance is."""
    things = [c["id"] for c in categories if c["isthing"]]  # the classes of the instance maps, in their order
    classes, numbers = objects[..., 0], objects[..., 1]
    for number in np.unique(numbers).tolist():
        if number:
            mask = numbers == number
            found = np.unique(classes[mask]).tolist()
            if len(found) > 1 or not 1 <= found[0] <= len(things):
                raise DataError(
                    path,
                    f"instance {number} has the class {', '.join(map(str, found))}; it is one of 1 to {len(things)}",
                )
            yield things[found[0] - 1], mask


def _instance_job(base: Path, folder: str, split: str, images: list[Path]) -> Job:
    """`ade20k_instance_val.json`: annotations numbered from 1, masks run-length encoded."""
    categories = _categories()
    conversions = [
        Conversion(
            image.stem,
            (),
            partial(_instances, image, base / "annotations_instance" / folder / f"{image.stem}.png", categories),
        )
        for image in images
    ]

    def summarise(notes: list[Mapping]) -> dict:
        annotations = [annotation for note in notes for annotation in note["annotations"]]
        return {
            "images": [note["image"] for note in notes],
            "categories": [{"id": c["id"], "name": c["name"]} for c in categories if c["isthing"]],
            "annotations": [{"id": number} | annotation for number, annotation in enumerate(annotations, start=1)],
        }

    return Job(f"ADE20K instances, {folder}", conversions, base / f"ade20k_instance_{split}.json", summarise)


def _instances(image: Path, source: Path, categories: list[dict]) -> dict:
    size = stored_size(image)
    objects = stored_rgb(source)
    check_size(source, objects, image, size)
    annotations = []
    for category, mask in _things(objects, source, categories):
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        annotations.append(
            {
                "image_id": image.stem,
                "iscrowd": 0,
                "category_id": category,
                "bbox": bounding_box(mask),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                "area": int(mask.sum()),
            }
        )
    return {
        "image": {"id": image.stem, "file_name": image.name, "width": size[1], "height": size[0]},
        "annotations": annotations,
    }
