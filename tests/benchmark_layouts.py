"""Small data sets in the folders of every benchmark, as they are downloaded (before `fcclip prepare`).

Each function writes under `root` and returns nothing: what is true of the pictures is drawn by the functions named
`*_truth`, pixel by pixel, and nothing of the package is used for it.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

H, W = 40, 60


def photo(path: Path, size: tuple[int, int] = (H, W), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(path)


def picture(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content))


def colours(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


# COCO: image 139 has a person (id 7), a crowd of persons (id 70000), a wall (id 300) and void; image 285 nothing.
COCO_SEGMENTS = [
    {"id": 7, "category_id": 1, "iscrowd": 0, "area": 200, "bbox": [0, 0, 20, 10]},
    {"id": 70000, "category_id": 1, "iscrowd": 1, "area": 100, "bbox": [20, 0, 10, 10]},
    {"id": 300, "category_id": 199, "iscrowd": 0, "area": 1200, "bbox": [0, 20, 60, 20]},
]


def coco_ids() -> np.ndarray:
    ids = np.zeros((H, W), np.int64)
    ids[:10, :20], ids[:10, 20:30], ids[20:] = 7, 70000, 300
    return ids


def coco_semantic() -> np.ndarray:
    """Person is the first of the 133 classes, wall (199) the one before the last; no label is 255."""
    labels = np.full((H, W), 255)
    labels[:10, :30], labels[20:] = 0, 131
    return labels


UNUSED_THINGS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of the ids 1 to 90
STUFF = (
    "92 93 95 100 107 109 112 118 119 122 125 128 130 133 138 141 144 145 147 148 149 151 154 155 156 159 161 166 168 "
    "171 175 176 177 178 180 181 184 185 186 187 188 189 190 191 192 193 194 195 196 197 198 199 200"
)


def coco_categories() -> list[dict]:
    things = [{"id": k, "name": f"thing {k}", "isthing": 1} for k in range(1, 91) if k not in UNUSED_THINGS]
    return things + [{"id": int(k), "name": f"stuff {k}", "isthing": 0} for k in STUFF.split()]


def write_coco(root: Path, split: str = "val") -> None:
    coco = root / "coco"
    categories, images = coco_categories(), []
    for id_, ids in ((139, coco_ids()), (285, np.zeros((H, W), np.int64))):
        photo(coco / f"{split}2017/{id_:012d}.jpg", seed=id_)
        picture(coco / f"panoptic_{split}2017/{id_:012d}.png", colours(ids))
        images.append({"id": id_, "file_name": f"{id_:012d}.jpg", "height": H, "width": W})
    annotations = [
        {"image_id": 139, "file_name": f"{139:012d}.png", "segments_info": COCO_SEGMENTS},
        {"image_id": 285, "file_name": f"{285:012d}.png", "segments_info": []},
    ]
    panoptic = {"images": images, "annotations": annotations, "categories": categories}
    write_json(coco / f"annotations/panoptic_{split}2017.json", panoptic)
    crowd = np.zeros((H, W), np.uint8)
    crowd[:10, 20:30] = 1
    runs = np.diff(np.flatnonzero(np.diff(crowd.ravel("F"), prepend=9, append=9)))
    instances = [
        {
            "id": 11,
            "image_id": 139,
            "category_id": 1,
            "iscrowd": 0,
            "area": 200.0,
            "segmentation": [[0, 0, 20, 0, 20, 10, 0, 10]],
        },
        {
            "id": 12,
            "image_id": 139,
            "category_id": 1,
            "iscrowd": 1,
            "area": 100,
            "segmentation": {"size": [H, W], "counts": runs.tolist()},
        },
    ]
    things = [{k: c[k] for k in ("id", "name")} for c in categories if c["isthing"]]
    write_json(
        coco / f"annotations/instances_{split}2017.json",
        {"images": images, "annotations": instances, "categories": things},
    )


# COCO-Stuff: pixels hold the category id minus 1. Of its 182 ids eleven are not used: 12 (street sign) is one.
def write_coco_stuff(root: Path) -> None:
    labels = np.full((H, W), 255, np.uint8)
    labels[:5], labels[5:9], labels[9:12] = 0, 12, 181  # person, stop sign (13), wood (182)
    photo(root / "coco/val2017/000000000139.jpg")
    picture(root / "coco/stuffthingmaps/val2017/000000000139.png", labels)


def coco_stuff_truth() -> np.ndarray:
    labels = np.full((H, W), 255)
    labels[:5], labels[5:9], labels[9:12] = 0, 11, 170
    return labels


# ADE20K: class numbers of the label maps count from 1 (0: other). Wall 1 (stuff), bed 8 and door 15 (things 1 and 5).
def ade_semantic_file() -> np.ndarray:
    labels = np.zeros((H, W), np.uint8)
    labels[:20], labels[20:30, :30], labels[30:, :10] = 1, 8, 15
    return labels


def ade_instance_file() -> np.ndarray:
    """Two beds and a door that reaches into the wall, and a bed of the semantic map that is no instance."""
    objects = np.zeros((H, W, 3), np.uint8)
    objects[20:30, :10], objects[20:30, 10:20], objects[15:35, 50:] = (1, 1, 0), (1, 2, 0), (5, 200, 0)
    return objects


def write_ade(root: Path, folder: str = "validation", prefix: str = "ADE_val") -> None:
    base = root / "ADEChallengeData2016"
    for number, empty in ((1, False), (2, True)):
        name = f"{prefix}_{number:08d}"
        photo(base / f"images/{folder}/{name}.jpg", seed=number)
        picture(base / f"annotations/{folder}/{name}.png", ade_semantic_file() * (not empty))
        picture(base / f"annotations_instance/{folder}/{name}.png", ade_instance_file() * (not empty))


# ADE20K-full: object 2978 (wall) is class 0, 165 (bed) class 7, 3148 (adding machine) class 846; 5 is no class.
ADE_FULL = ((2978, 0), (165, 7), (3148, 846), (5, 65535))


def write_ade_full(root: Path, size: tuple[int, int] = (640, 800)) -> None:
    folder = root / "ADE20K_2021_17_01/images/ADE/validation/home_or_hotel/bedroom"
    photo(folder / "ADE_val_00000001.jpg", size)
    photo(folder / "ADE_val_00000002.jpg")
    for name, (height, width) in (("ADE_val_00000001", size), ("ADE_val_00000002", (H, W))):
        objects = np.array([object_ for object_, _ in ADE_FULL])[np.arange(width) * 4 // width]
        seg = np.zeros((height, width, 3), np.uint8)
        seg[..., 0], seg[..., 1] = objects // 256 * 10, objects % 256
        seg[..., 2] = 77  # the number of the instance, which is not used
        picture(folder / f"{name}_seg.png", seg)


# Cityscapes: road 7, a car 26001, a group of cars 26, sky 23, a caravan 29003 (not evaluated), ego vehicle 1.
CITYSCAPES_STEM = "frankfurt_000000_000294"


def cityscapes_instance_file() -> np.ndarray:
    ids = np.ones((H, W), np.uint16)
    ids[30:], ids[20:30, :10], ids[20:30, 10:20], ids[:10], ids[20:30, 20:30] = 7, 26001, 26, 23, 29003
    return ids


def write_cityscapes(root: Path, split: str = "val") -> None:
    ids = cityscapes_instance_file()
    labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
    for stem in (CITYSCAPES_STEM, "munster_000001_000019"):
        city = stem.split("_")[0]
        photo(root / f"cityscapes/leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
        truth = root / f"cityscapes/gtFine/{split}/{city}/{stem}_gtFine"
        picture(Path(f"{truth}_instanceIds.png"), ids)
        picture(Path(f"{truth}_labelIds.png"), labels)


def cityscapes_semantic() -> np.ndarray:
    labels = np.full((H, W), 255)
    labels[30:], labels[20:30, :20], labels[:10] = 0, 13, 10
    return labels


# Mapillary Vistas: label maps with a palette, class number minus 1, 65 where there is no label; ids as panoptic.
def write_mapillary(root: Path) -> None:
    base, stem = root / "mapillary_vistas/validation", "-0AbC_d"
    photo(base / f"images/{stem}.jpg")
    labels = np.full((H, W), 65, np.uint8)
    labels[:10], labels[30:] = 0, 64  # bird, ego vehicle
    image = Image.fromarray(labels)
    image.putpalette(list(range(256)) * 3)
    (base / "labels").mkdir(parents=True)
    image.save(base / f"labels/{stem}.png")
    ids = np.zeros((H, W), np.int64)
    ids[:10], ids[30:] = 256, 65 * 256
    picture(base / f"panoptic/{stem}.png", colours(ids))
    segments = [
        {"id": 256, "category_id": 1, "iscrowd": 0, "area": 600, "bbox": [0, 0, W, 10]},
        {"id": 65 * 256, "category_id": 65, "iscrowd": 0, "area": 600, "bbox": [0, 30, W, 10]},
    ]
    write_json(
        base / "panoptic/panoptic_2018.json",
        {
            "images": [{"id": stem, "file_name": f"{stem}.jpg", "height": H, "width": W}],
            "annotations": [{"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments}],
            "categories": [{"id": k, "name": str(k), "isthing": 1} for k in range(1, 66)],
        },
    )


# PASCAL VOC: 0 background, 1 to 20 classes, 255 the border; label maps with a palette.
def voc_file() -> np.ndarray:
    labels = np.zeros((H, W), np.uint8)
    labels[:10, :10], labels[20:, 30:], labels[10, :10] = 1, 20, 255
    return labels


def write_voc(root: Path) -> None:
    base = root / "VOCdevkit/VOC2012"
    for split, name in (("val", "2007_000033"), ("train", "2007_000032")):
        photo(base / f"JPEGImages/{name}.jpg")
        image = Image.fromarray(voc_file())
        image.putpalette(list(range(256)) * 3)
        (base / "SegmentationClass").mkdir(exist_ok=True)
        image.save(base / f"SegmentationClass/{name}.png")
        write_text(base / f"ImageSets/Segmentation/{split}.txt", f"{name}\n")


# PASCAL Context: categories of the 459; 2 (aeroplane), 458 (wood) and 260 stand among the 59.
def _rle(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def write_context_59(root: Path) -> None:
    base = root / "VOCdevkit/VOC2010"
    images, annotations = [], []
    for id_, name, phase in ((2008000002, "2008_000002", "val"), (2008000003, "2008_000003", "train")):
        photo(base / f"JPEGImages/{name}.jpg")
        images.append({"image_id": id_, "file_name": f"{name}.jpg", "height": H, "width": W, "phase": phase})
        for category, rows in ((2, slice(0, 10)), (458, slice(20, 30)), (260, slice(28, 35))):
            mask = np.zeros((H, W), bool)
            mask[rows] = True
            annotations.append(
                {"id": len(annotations), "image_id": id_, "category_id": category, "segmentation": _rle(mask)}
            )
    content = {"images": images, "annos_segmentation": annotations, "categories": [], "parts": []}
    write_json(base / "trainval_merged.json", content)


def context_59_truth() -> np.ndarray:
    """aeroplane is the first, wood (458) the last; 260 is the 36th of the sorted numbers, drawn over wood."""
    labels = np.full((H, W), 255)
    labels[:10], labels[20:28], labels[28:35] = 0, 58, 35
    return labels


def write_context_459(root: Path) -> None:
    labels = np.zeros((H, W), np.uint16)
    labels[:10], labels[20:] = 1, 459
    matrix = root / "VOCdevkit/VOC2010/trainval/2008_000002.mat"
    matrix.parent.mkdir(parents=True)
    savemat(matrix, {"LabelMap": labels})
    photo(root / "pascal_ctx_d2/images/validation/2008_000002.jpg")


def context_459_truth() -> np.ndarray:
    labels = np.full((H, W), 65535)
    labels[:10], labels[20:] = 0, 458
    return labels
