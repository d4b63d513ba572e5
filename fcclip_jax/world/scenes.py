"""Scenes: regions of stuff, and things pasted on them at random size, angle, light and place.

A scene is a pure function of its recipe, the seed and its number.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from fcclip_jax.world.names import STUFF, THINGS, TRAINED_STYLES
from fcclip_jax.world.sprites import EDGE, Sprites
from fcclip_jax.world.textures import draw_stuff, smooth_noise

SEEN = tuple(index for index, thing in enumerate(THINGS) if thing.seen)
ALL = tuple(range(len(THINGS)))

# What of a thing must stay visible of what is drawn of it, and how often a place is sought before it is given up.
_VISIBLE = 0.6
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is drawn. Sizes are those of a thing's longer side in pixels; ranges hold both ends."""

    height: int = 256
    width: int = 256
    things: tuple[int, ...] = ALL
    styles: tuple[str, ...] = TRAINED_STYLES
    count: tuple[int, int] = (2, 5)
    size: tuple[int, int] = (48, 128)
    regions: tuple[int, int] = (1, 3)
    outside: float = 0.15  # how far a thing may stick out, of its size
    tilt: float = 25.0  # degrees, the widest


@dataclasses.dataclass(frozen=True)
class Piece:
    """One thing (`kind` of THINGS) or one region of stuff (`kind` of STUFF) in a scene. `style`: "" for stuff."""

    isthing: bool
    kind: int
    style: str = ""


@dataclasses.dataclass(frozen=True)
class Scene:
    """`picture` uint8 `[H,W,3]`; `pieces`; `rows` int32 `[H,W]`: the piece that a pixel belongs to."""

    picture: UInt8[np.ndarray, "H W 3"]
    rows: Int32[np.ndarray, "H W"]
    pieces: tuple[Piece, ...]


def draw_scene(sprites: Sprites, recipe: Recipe, seed: int, number: int) -> Scene:
    """The scene of that seed and number. Pieces that nothing is left of are not in it."""
    rng = np.random.default_rng([seed, number])
    canvas, rows, pieces = _regions(rng, recipe)
    drawn: list[int] = []
    for _ in range(rng.integers(recipe.count[0], recipe.count[1] + 1)):
        kind = int(recipe.things[rng.integers(len(recipe.things))])
        style = recipe.styles[rng.integers(len(recipe.styles))]
        if _paste(rng, sprites, recipe, canvas, rows, drawn, len(pieces), kind, style):
            pieces.append(Piece(True, kind, style))
    left = np.bincount(rows.ravel(), minlength=len(pieces)) > 0
    renumbered = np.cumsum(left) - 1
    kept = tuple(piece for piece, some in zip(pieces, left, strict=True) if some)
    return Scene(canvas, renumbered[rows].astype(np.int32), kept)


def _regions(rng: np.random.Generator, recipe: Recipe) -> tuple[np.ndarray, np.ndarray, list[Piece]]:
    """Stuff all over, parted by lines that are not quite straight."""
    height, width = recipe.height, recipe.width
    count = int(rng.integers(recipe.regions[0], recipe.regions[1] + 1))
    kinds = rng.permutation(len(STUFF))[:count]
    canvas = draw_stuff(rng, int(kinds[0]), height, width)
    rows = np.zeros((height, width), np.int32)
    for row, kind in enumerate(kinds[1:], start=1):
        angle = rng.normal(0, 0.25) if rng.random() < 0.8 else rng.uniform(0, math.pi)
        y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        border = 0.06 * smooth_noise(rng, max(height, width), 40)[0, :width]
        inside = y * math.cos(angle) + x * math.sin(angle) > rng.uniform(-0.3, 0.6) + border
        np.copyto(canvas, draw_stuff(rng, int(kind), height, width), where=inside[..., None])
        rows[inside] = row
    return canvas, rows, [Piece(False, int(kind)) for kind in kinds]


def _paste(rng, sprites, recipe, canvas, rows, drawn: list[int], row: int, kind: int, style: str) -> bool:
    """Draws one thing where it hides little of the others; False where no such place was found.

    `drawn` holds the pixels that each thing was drawn with, whatever hides them now; its own number is appended.
    """
    size = math.exp(rng.uniform(math.log(recipe.size[0]), math.log(recipe.size[1])))
    patch = turned(rng, sprites, kind, style, size, recipe.tilt)
    height, width = patch.shape[:2]
    solid = patch[..., 3] > 127
    first_thing = row - len(drawn)
    for _ in range(_TRIES):
        spread = recipe.outside * size
        top = round(rng.uniform(-spread, max(recipe.height - height + spread, -spread)))
        left = round(rng.uniform(-spread, max(recipe.width - width + spread, -spread)))
        down, right = min(top + height, recipe.height), min(left + width, recipe.width)
        above, before = max(top, 0), max(left, 0)
        inside = (slice(above, down), slice(before, right))
        cut = (slice(above - top, down - top), slice(before - left, right - left))
        shown = solid[cut]
        if shown.sum() < 0.7 * solid.sum():
            continue
        hidden = np.bincount(rows[inside][shown], minlength=row)
        if all(_still_visible(rows, first_thing + n, hidden, count) for n, count in enumerate(drawn)):
            part = patch[cut]
            rest = 255 - part[..., 3:].astype(np.uint16)
            canvas[inside] = np.minimum(part[..., :3] + canvas[inside] * rest // 255, 255)
            rows[inside][shown] = row
            drawn.append(int(shown.sum()))
            return True
    return False


def _still_visible(rows: np.ndarray, row: int, hidden: np.ndarray, drawn: int) -> bool:
    return bool(hidden[row] == 0 or (rows == row).sum() - hidden[row] >= _VISIBLE * drawn)


def turned(
    rng: np.random.Generator, sprites: Sprites, kind: int, style: str, size: float, tilt: float
) -> UInt8[np.ndarray, "h w 4"]:
    """A thing's picture, premultiplied, of about `size` pixels, turned, mirrored or not, squeezed a little, in another
    light each time."""
    half = size < 0.6 * EDGE
    sprite = (sprites.half if half else sprites.picture)(style, kind)
    angle = math.radians(rng.uniform(-tilt, tilt))
    stretch = math.exp(rng.normal(0, 0.06))
    scale = size / (EDGE / 2 if half else EDGE)
    across, along = scale * stretch, scale / stretch
    flip = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    h, w = sprite.shape[:2]
    width = math.ceil(abs(cos) * w * across + abs(sin) * h * along)
    height = math.ceil(abs(sin) * w * across + abs(cos) * h * along)
    # From a pixel of the patch to one of the sprite: turn back, shrink back, mirror back.
    a, b = flip * cos / across, flip * sin / across
    d, e = -sin / along, cos / along
    shift = (w / 2 - a * width / 2 - b * height / 2, h / 2 - d * width / 2 - e * height / 2)
    # RGBa is Pillow's name for premultiplied colours, which numpy does not know.
    picture = Image.frombytes("RGBa", (w, h), sprite.tobytes()).transform(
        (width, height), Image.Transform.AFFINE, (a, b, shift[0], d, e, shift[1]), Image.Resampling.BILINEAR
    )
    patch = np.frombuffer(picture.tobytes(), np.uint8).reshape(height, width, 4).copy()
    light = rng.uniform(0.75, 1.0) * rng.uniform(0.92, 1.0, 3)
    patch[..., :3] = (patch[..., :3] * (light * 256).astype(np.uint16)) >> 8
    return patch
