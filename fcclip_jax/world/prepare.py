"""`fcclip prepare emoji_scenes`: the pictures, and the fixed splits as COCO panoptic folders."""

import json
import shutil
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

from fcclip_jax.data.sources import CocoPanopticSource
from fcclip_jax.vocabulary import Vocabulary
from fcclip_jax.world.names import HELD_OUT_STYLE, STUFF, THINGS, stuff_id, thing_id, vocabulary
from fcclip_jax.world.scenes import Piece, Recipe, Scene, draw_scene
from fcclip_jax.world.source import id_colours
from fcclip_jax.world.sprites import Sprites, prepare_sprites

# What is drawn for each split. Training draws its scenes as it goes, from seeds far below these.
SPLITS: dict[str, tuple[Recipe, int, int]] = {
    "val": (Recipe(), 1 << 30, 300),
    "test": (Recipe(), (1 << 30) + 1, 500),
    "test_held_out": (Recipe(styles=(HELD_OUT_STYLE,)), (1 << 30) + 2, 300),
}


def prepare_emoji_scenes(
    folder: str | PathLike, *, images: int = 0, progress: Callable[[str], None] = lambda message: None
) -> Path:
    """Writes `folder/sprites`, `folder/SPLIT/{images,panoptic,panoptic.json}` for each of SPLITS, and the label files
    `labels.txt` (all names) and `labels_seen.txt` (those that masks are trained on).

    What is complete is kept, so that an interrupted preparation goes on; a split is written aside and renamed.

    Args:
        images: only the first so many of each split; 0 for all.
        progress: told what was done.

    Raises:
        SpriteError: the pictures cannot be fetched or rendered.
        FileExistsError: a split's folder holds something else.
    """
    folder = Path(folder)
    prepare_sprites(folder / "sprites")
    progress(f"{len(THINGS)} things in {len(Recipe().styles) + 1} styles: {folder / 'sprites'}")
    sprites = Sprites(folder / "sprites")
    for name, words in (("labels.txt", vocabulary()), ("labels_seen.txt", vocabulary(seen_only=True))):
        (folder / name).write_text(label_lines(words), encoding="utf-8")
    for split, (recipe, seed, count) in SPLITS.items():
        count = min(count, images) if images else count
        made = write_split(folder / split, sprites, recipe, seed, count)
        progress(f"{split}: {count} scenes {'drawn' if made else 'there already'}")
    return folder


def open_split(folder: Path, words: Vocabulary) -> CocoPanopticSource:
    """The scenes that `write_split` wrote."""
    return CocoPanopticSource(folder / "images", folder / "panoptic", folder / "panoptic.json", words)


def label_lines(words: Vocabulary) -> str:
    """A label file, as `Vocabulary.from_file` reads it."""
    return "".join(f"{cls.id}:{','.join(cls.names)}{'' if cls.isthing else ' [stuff]'}\n" for cls in words.classes)


def write_split(folder: Path, sprites: Sprites, recipe: Recipe, seed: int, count: int) -> bool:
    """Draws scenes 0 to `count` of a seed into a COCO panoptic folder; False where that has been done before.

    Raises FileExistsError when `folder` holds something else.
    """
    made_of = {"seed": seed, "count": count, "height": recipe.height, "width": recipe.width}
    made_of |= {"styles": list(recipe.styles), "things": len(recipe.things)}
    if folder.exists():
        try:
            found = json.loads((folder / "panoptic.json").read_text(encoding="utf-8"))["info"]["scenes"]
        except (OSError, ValueError, KeyError, TypeError):
            found = None
        if found != made_of:
            raise FileExistsError(f"{folder} holds other scenes, or something else: delete it or give another folder")
        return False
    write_scenes(folder, (draw_scene(sprites, recipe, seed, n) for n in range(count)), made_of)
    return True


def write_scenes(folder: Path, scenes: Iterable[Scene], made_of: dict) -> None:
    """Writes scenes as a COCO panoptic folder, which must not be there: aside, then renamed. `made_of` goes into the
    annotation file's `info`."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        (aside / "images").mkdir(parents=True)
        (aside / "panoptic").mkdir()
        written = [_write_scene(aside, scene, number) for number, scene in enumerate(scenes)]
        content = {
            "info": {"scenes": made_of},
            "images": [image for image, _ in written],
            "annotations": [annotation for _, annotation in written],
            "categories": categories(),
        }
        (aside / "panoptic.json").write_text(json.dumps(content), encoding="utf-8")
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def categories() -> list[dict]:
    """All classes, as COCO's annotation files list them."""
    things = [{"id": thing_id(n), "name": thing.names[0], "isthing": 1} for n, thing in enumerate(THINGS)]
    return things + [{"id": stuff_id(n), "name": names[0], "isthing": 0} for n, names in enumerate(STUFF)]


def _write_scene(folder: Path, scene: Scene, number: int) -> tuple[dict, dict]:
    """Its two PNG files; returns its entries among `images` and `annotations`."""
    name = f"{number:06d}.png"
    Image.fromarray(scene.picture).save(folder / "images" / name)
    Image.fromarray(id_colours(scene)).save(folder / "panoptic" / name)
    height, width = scene.rows.shape
    image = {"id": number, "file_name": name, "height": height, "width": width}
    segments = [_segment_info(row, piece, scene.rows == row) for row, piece in enumerate(scene.pieces)]
    return image, {"image_id": number, "file_name": name, "segments_info": segments}


def _segment_info(row: int, piece: Piece, mask: np.ndarray) -> dict:
    down, right = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(down[0]), int(right[0])
    return {
        "id": row + 1,
        "category_id": thing_id(piece.kind) if piece.isthing else stuff_id(piece.kind),
        "area": int(mask.sum()),
        "bbox": [left, top, int(right[-1]) + 1 - left, int(down[-1]) + 1 - top],
        "iscrowd": 0,
    }
