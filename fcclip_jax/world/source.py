"""Scenes as a training source: drawn when they are asked for, as many as a run wants."""

import dataclasses
from functools import cached_property
from os import PathLike

import numpy as np
from PIL import Image

from fcclip_jax.data.records import PanopticRecord
from fcclip_jax.world.names import THINGS, stuff_id, thing_id, vocabulary
from fcclip_jax.world.scenes import SEEN, Recipe, Scene, draw_scene
from fcclip_jax.world.sprites import Sprites

# A training of any length here ends before the scenes repeat.
ENDLESS = 1 << 20


@dataclasses.dataclass(frozen=True)
class SceneRecord(PanopticRecord):
    """A record that was never a file: `scene` is what `decode` gives."""

    scene: Scene

    def decode(self) -> tuple[Image.Image, Image.Image]:
        return Image.fromarray(self.scene.picture), Image.fromarray(id_colours(self.scene))


def id_colours(scene: Scene) -> np.ndarray:
    """uint8 `[H,W,3]`: the panoptic map of a scene as COCO colours it; the id of piece n is n + 1."""
    ids = scene.rows + 1
    return np.stack([ids & 255, ids >> 8, np.zeros_like(ids)], axis=-1).astype(np.uint8)


class SceneSource:
    """A `data.sources.PanopticSource` of drawn scenes: number n is a function of recipe, seed and n.

    With `seen_only` no unseen thing stands in any scene, and classes are rows of the vocabulary of seen names; else of
    the whole. What travels to loader processes is the folder of the sprites, not the sprites.
    """

    def __init__(
        self, sprites: str | PathLike, recipe: Recipe, *, seed: int, count: int = ENDLESS, seen_only: bool = False
    ):
        self._folder, self._seed, self._count = str(sprites), seed, count
        self._recipe = dataclasses.replace(recipe, things=SEEN) if seen_only else recipe
        classes = vocabulary(seen_only=seen_only).classes
        self._class_by_id = {cls.id: row for row, cls in enumerate(classes)}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> SceneRecord:
        scene = draw_scene(self._sprites, self._recipe, self._seed, index)
        ids = [thing_id(piece.kind) if piece.isthing else stuff_id(piece.kind) for piece in scene.pieces]
        name = f"scene {index} of seed {self._seed}"
        return SceneRecord(
            image_id=index,
            image_name=name,
            panoptic_name=name,
            image=b"",
            panoptic=b"",
            segment_ids=np.arange(1, len(ids) + 1),
            classes=np.array([self._class_by_id[id_] for id_ in ids], np.int32),
            crowd=np.zeros(len(ids), bool),
            scene=scene,
        )

    @cached_property
    def _sprites(self) -> Sprites:
        return Sprites(self._folder, self._recipe.styles)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_sprites"}


def names_of(scene: Scene) -> list[str]:
    """The shown names of the things in a scene, as they lie, back to front."""
    return [THINGS[piece.kind].names[0] for piece in scene.pieces if piece.isthing]
