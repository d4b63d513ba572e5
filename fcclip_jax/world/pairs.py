"""Captioned pictures for contrastive training, laid side by side on canvases.

A canvas of 192 x 192 pixels holds 9 pictures of 64, 4 of 96 or 1 of 192, each with a caption of its own. A picture is
embedded by the mean over its own part of the map alone, so that cells learn not to speak of what lies beside them, and
the outer taps of the last convolutions meet something. What is in a picture is known; where is not.
"""

import dataclasses

import numpy as np

from fcclip_jax.vocabulary.tokenizer import tokenize
from fcclip_jax.world.captions import caption, one_name
from fcclip_jax.world.names import STUFF, THINGS
from fcclip_jax.world.scenes import Piece, Recipe, draw_scene
from fcclip_jax.world.sprites import Sprites

CANVAS, CELL, PARTS = 192, 32, 9
TOKENS = 24
CLASSES = len(THINGS) + len(STUFF)

# What a thing counts in the target of a picture, against 1 for all of its things.
_STUFF_SHARE = 0.2

_EMPTY = 0.1  # of the pictures show nothing but stuff

# Pictures an edge, things in one, their size; and how many canvases of sixteen are such.
_LAYOUTS = (
    (3, Recipe(64, 64, count=(1, 1), size=(40, 62), regions=(1, 2), outside=0.1), 9),
    (2, Recipe(96, 96, count=(1, 2), size=(44, 92), regions=(1, 2), outside=0.15), 5),
    (1, Recipe(192, 192, count=(2, 4), size=(48, 128), regions=(1, 3), outside=0.15), 2),
)

Batch = dict[str, np.ndarray]
"""`image` uint8 `[B,192,192,3]`; `parts` int8 `[B,6,6]`, which picture of the canvas a cell belongs to; `tokens`
int32 `[B,9,24]`, the captions; `present` float32 `[B,9,K]`, what each shows, adding up to 1, or all 0 where a canvas
has fewer pictures; `names` int32 `[B,n,24]`, this row's share of one sentence of each class, B * n = at least K;
`image_id`."""


@dataclasses.dataclass(frozen=True)
class PairBatches:
    """This process's share of every global batch: `batches[k]` is that of step k, a pure function of seed and k."""

    sprites: str
    batch_size: int
    seed: int
    process_index: int = 0
    process_count: int = 1
    first_step: int = 0

    @property
    def order(self) -> dict[str, int]:
        """What the batches depend on."""
        return {"seed": self.seed, "batch_size": self.batch_size}

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, step: int) -> Batch:
        share = self.batch_size // self.process_count
        start = self.process_index * share
        rows = [self._row(self.first_step + step, start + row) for row in range(share)]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _row(self, step: int, place: int) -> Batch:
        """The canvas at `place` in the global batch of `step`."""
        number = step * self.batch_size + place
        rng = np.random.default_rng([self.seed, number])
        edge, recipe = _layout(place, self.batch_size)
        image = np.empty((CANVAS, CANVAS, 3), np.uint8)
        cells = CANVAS // CELL
        parts = np.arange(cells) * edge // cells
        present = np.zeros((PARTS, CLASSES), np.float32)
        texts = [""] * PARTS
        for part in range(edge * edge):
            drawn = dataclasses.replace(recipe, count=(0, 0)) if rng.random() < _EMPTY else recipe
            scene = draw_scene(_sprites(self.sprites), drawn, self.seed, number * PARTS + part)
            y, x = (n * recipe.height for n in divmod(part, edge))
            image[y : y + recipe.height, x : x + recipe.width] = scene.picture
            present[part] = shares(scene.pieces)
            texts[part] = caption(rng, scene.pieces)
        classes = name_rows(place, self.batch_size)
        names = [one_name(rng, _NAMES[k]) for k in classes]
        return {
            "image": image,
            "parts": (parts[:, None] * edge + parts).astype(np.int8),
            "tokens": tokenize(texts, TOKENS),
            "present": present,
            "names": tokenize(names, TOKENS),
            "image_id": np.int64(number),
        }


_NAMES = [*(thing.names for thing in THINGS), *STUFF]


def name_rows(place: int, batch_size: int) -> np.ndarray:
    """The classes that the row at `place` brings a sentence of: all in turn, the first ones again at the end."""
    each = -(-CLASSES // batch_size)
    return np.arange(place * each, (place + 1) * each) % CLASSES


def shares(pieces: tuple[Piece, ...]) -> np.ndarray:
    """Float `[K]`, adding up to 1: what a picture shows, things before stuff."""
    things = {piece.kind for piece in pieces if piece.isthing}
    stuff = {piece.kind for piece in pieces if not piece.isthing}
    row = np.zeros(CLASSES, np.float32)
    for kind in things:
        row[kind] = (1 - _STUFF_SHARE) / len(things)
    for kind in stuff:
        row[len(THINGS) + kind] = (_STUFF_SHARE if things else 1) / len(stuff)
    return row


def _layout(place: int, batch_size: int) -> tuple[int, Recipe]:
    sixteenth = place * 16 // batch_size
    for edge, recipe, count in _LAYOUTS:
        if sixteenth < count:
            return edge, recipe
        sixteenth -= count
    raise AssertionError("the layouts make sixteen")


_LOADED: dict[str, Sprites] = {}


def _sprites(folder: str) -> Sprites:
    """Read once a process; they do not travel to loader processes."""
    if folder not in _LOADED:
        _LOADED[folder] = Sprites(folder)
    return _LOADED[folder]
