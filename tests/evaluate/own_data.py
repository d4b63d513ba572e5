"""A small data set of one's own, whose truth is what the tiny model finds, disturbed: so all figures have something to
count. Void, crowds, missed and false segments, wrong classes and a segment of one pixel are in it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from fcclip_jax.segmenter import Segmenter
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from tests.pictures import photo

# Of the words tried, those that the formula weights call the most different things by.
LABELS = """3:shelf,shelves
5:sky [stuff]
6:sand [stuff]
9:tree
40:car,cars
41:clock
"""
# All photos are padded to 64 x 64 in the network: one program to compile.
SIZES = [(48, 64), (64, 48), (60, 80), (40, 64), (64, 64), (90, 120), (50, 70)]
OPTIONS = {"min_size": 64, "max_size": 64, "overlap_threshold": 0.3}


def make(folder: Path, model: Path, cache: Path) -> Path:
    """Writes images, panoptic maps, label maps, the JSON files and labels.txt."""
    folder.mkdir()
    (folder / "labels.txt").write_text(LABELS, encoding="utf-8")
    vocabulary = Vocabulary.from_file(folder / "labels.txt")
    segmenter = Segmenter.from_checkpoint(model, min_size=64, max_size=64, cache_dir=cache)
    ids = [cls.id for cls in vocabulary.classes]
    categories = [{"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in vocabulary.classes]
    for name in ("images", "panoptic", "semantic"):
        (folder / name).mkdir()
    images, annotations, instances = [], [], []
    for k, size in enumerate(SIZES):
        rng = np.random.default_rng(k)
        image = np.roll(photo(*size), 7 * k, axis=(0, 1))
        result = segmenter(image, vocabulary, overlap_threshold=OPTIONS["overlap_threshold"])
        image_id, stem = 100 - 3 * k, f"photo_{k}"
        images.append({"id": image_id, "file_name": f"{stem}.png", "height": size[0], "width": size[1]})
        Image.fromarray(image).save(folder / "images" / f"{stem}.png")
        segments, panoptic = _panoptic(rng, result, ids)
        rgb = np.stack([panoptic & 255, panoptic >> 8 & 255, panoptic >> 16], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / "panoptic" / f"{stem}.png")
        annotations.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments})
        semantic = np.array(ids, np.uint8)[np.roll(result.semantic, 2, axis=1)]
        for id_ in ids:
            y, x = rng.integers(0, 30, 2)
            semantic[y : y + 9, x : x + 12] = id_
        semantic[:3] = 255
        Image.fromarray(semantic).save(folder / "semantic" / f"{stem}.png")
        instances += _instances(rng, result, ids, image_id)
    for number, instance in enumerate(instances, start=1):
        instance["id"] = number
    things = [c for c in categories if c["isthing"]]
    for name, content in (
        ("panoptic", {"annotations": annotations, "categories": categories}),
        ("instances", {"annotations": instances, "categories": things}),
    ):
        (folder / f"{name}.json").write_text(json.dumps({"images": images, **content}), encoding="utf-8")
    return folder


def _panoptic(rng: np.random.Generator, result, ids: list[int]) -> tuple[list[dict], np.ndarray]:
    panoptic = np.roll(np.asarray(result.panoptic), 1, axis=0) * 1000
    panoptic[-2:] = 0
    segments = []
    for place, segment in enumerate(result.segments):
        area = int((panoptic == segment.id * 1000).sum())
        wrong = place % 4 == 3
        category = int(rng.choice(ids)) if wrong else ids[segment.category_id]
        if area:
            entry = {"id": segment.id * 1000, "category_id": category, "area": area, "iscrowd": int(place % 5 == 4)}
            segments.append(entry)
    panoptic[5, 5] = 77
    segments = [s | {"area": int((panoptic == s["id"]).sum())} for s in segments]
    return [*segments, {"id": 77, "category_id": ids[0], "area": 1, "iscrowd": 0}], panoptic


def _instances(rng: np.random.Generator, result, ids: list[int], image_id: int) -> list[dict]:
    found = []
    for place, instance in enumerate(result.instances[:6]):
        mask = instance.mask
        mask[: rng.integers(1, 6)] = False
        if not mask.any():
            continue
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        found.append(
            {
                "image_id": image_id,
                "category_id": ids[instance.category_id],
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                "area": int(mask.sum()),
                "iscrowd": int(place == 4),
            }
        )
    return found
