"""A small COCO panoptic folder, drawn here and now: for tests, and to try training without a download.

Discs, squares and triangles (things) lie over two textured regions (stuff). Masks are exact: the same arithmetic
draws picture and map.
"""

import colorsys
import json
import os
import shutil
import tempfile
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

# (category id, label line, thing?, hue); ids with gaps, as in COCO.
_CATEGORIES = (
    (1, "disc,circle", True, 0.0),
    (2, "square,box", True, 0.62),
    (4, "triangle", True, 0.14),
    (92, "sky,skies", False, 0.55),
    (93, "grass,lawn,meadow", False, 0.32),
    (95, "brick,brick wall", False, 0.05),
    (100, "sand,beach", False, 0.11),
)
_FEWEST_PIXELS = 12  # of a thing hidden further than that nothing is left to learn


def draw_dataset(folder: str | PathLike, images: int = 16, size: tuple[int, int] = (128, 160), seed: int = 0) -> Path:
    """Draws `images` pictures of `size` (height, width) and returns `folder`, in the layout of COCO panoptic:
    `images/*.png`, `panoptic/*.png`, `panoptic.json`, and the vocabulary in `labels.txt`.

    The same arguments give the same pictures. A folder that this drew before is left as it is. Written aside and
    renamed, so that several processes may ask for one folder at once.

    Raises ValueError for `images` below 1 or edges below 16, and FileExistsError when `folder` holds something else.
    """
    folder = Path(folder)
    height, width = size
    if images < 1 or min(size) < 16:
        raise ValueError(f"at least 1 image of at least 16 x 16 pixels is drawn, not {images} of {height} x {width}")
    recipe = {"images": images, "height": height, "width": width, "seed": seed}
    if _drawn_before(folder, recipe):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(aside, recipe)
        aside.chmod(0o755)  # mkdtemp's own is for its owner alone
        try:
            os.rename(aside, folder)  # noqa: PTH104 (Path.rename would be the same call)
        except OSError:
            if not _drawn_before(folder, recipe):  # else another process was first, with the same pictures
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _drawn_before(folder: Path, recipe: dict) -> bool:
    """Whether `folder` is this data set. FileExistsError for another one; an empty folder may be drawn into."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "panoptic.json").read_text())["info"]["drawn"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != recipe:
        what = "other drawn images" if found else "something else"
        raise FileExistsError(f"{folder} holds {what}; delete it or give another folder")
    return True


def _write(folder: Path, recipe: dict) -> None:
    (folder / "images").mkdir()
    (folder / "panoptic").mkdir()
    listed, annotations = [], []
    for number in range(1, recipe["images"] + 1):
        rng = np.random.default_rng([recipe["seed"], number])
        picture, ids, segments = _scene(rng, recipe["height"], recipe["width"])
        name = f"{number:012d}.png"
        Image.fromarray(picture).save(folder / "images" / name)
        colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(folder / "panoptic" / name)
        listed.append({"id": number, "file_name": name, "height": recipe["height"], "width": recipe["width"]})
        annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
    categories = [{"id": id_, "name": line.split(",")[0], "isthing": int(thing)} for id_, line, thing, _ in _CATEGORIES]
    content = {"info": {"drawn": recipe}, "images": listed, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content, indent=1))
    lines = [f"{id_}:{line}{'' if thing else ' [stuff]'}\n" for id_, line, thing, _ in _CATEGORIES]
    (folder / "labels.txt").write_text("".join(lines))


def _scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """A picture uint8 `[H,W,3]`, its segment ids `[H,W]` and their `segments_info`."""
    y, x = np.mgrid[:height, :width]
    things = [category for category in _CATEGORIES if category[2]]
    stuff = [category for category in _CATEGORIES if not category[2]]
    upper, lower = rng.permutation(len(stuff))[:2]
    horizon = height * rng.uniform(0.35, 0.65) + (x - width / 2) * rng.uniform(-0.3, 0.3)
    layers = [(stuff[upper], y < horizon), (stuff[lower], y >= horizon)]
    for _ in range(rng.integers(2, 6)):
        radius = rng.uniform(0.1, 0.25) * min(height, width)
        centre = rng.uniform(0, height), rng.uniform(0, width)
        category = things[rng.integers(len(things))]
        layers.append((category, _shape(category[0], y - centre[0], x - centre[1], radius)))

    picture = np.zeros((height, width, 3), np.uint8)
    ids = np.zeros((height, width), np.int64)
    colour_ids = rng.permutation(1 << 12)[: len(layers)] * 4001 + 1  # three bytes long, all different
    for id_, (category, mask) in zip(colour_ids, layers, strict=True):
        picture[mask] = _texture(rng, category, y, x)[mask]
        ids[mask] = id_
    segments = []
    for id_, (category, _) in zip(colour_ids, layers, strict=True):
        mask = ids == id_
        if category[2] and mask.sum() < _FEWEST_PIXELS:
            ids[mask] = 0
        elif mask.any():
            segments.append(_segment_info(int(id_), category[0], mask))
    return picture, ids, segments


def _shape(category_id: int, y: np.ndarray, x: np.ndarray, radius: float) -> Bool[np.ndarray, "H W"]:
    if category_id == 1:
        return y**2 + x**2 < radius**2
    if category_id == 2:
        return np.maximum(abs(y), abs(x)) < 0.9 * radius
    return (y < 0.7 * radius) & (y > 2 * abs(x) - 1.1 * radius)


def _texture(rng: np.random.Generator, category: tuple, y: np.ndarray, x: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """Of the category's hue; things are plain, each kind of stuff has its own pattern."""
    id_, _, thing, hue = category
    hue = (hue + rng.uniform(-0.03, 0.03)) % 1
    base = np.array(colorsys.hsv_to_rgb(hue, 0.85 if thing else 0.5, rng.uniform(0.7, 0.95))) * 255
    if thing:
        light = 1 + 0 * x
    elif id_ == 92:
        light = 0.75 + 0.25 * y / y.shape[0]
    elif id_ == 93:
        light = 0.8 + 0.2 * np.sin(2.1 * x + 0.7 * y)
    elif id_ == 95:
        light = np.where((y % 8 < 1) | ((x + 8 * (y // 8 % 2)) % 16 < 1), 0.6, 1.0)
    else:
        light = 0.9 + 0.1 * rng.uniform(-1, 1, y.shape)
    return np.clip(base * light[..., None] + rng.normal(0, 3, (*y.shape, 3)), 0, 255).astype(np.uint8)


def _segment_info(id_: int, category_id: int, mask: Bool[np.ndarray, "H W"]) -> dict:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    return {"id": id_, "category_id": category_id, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
