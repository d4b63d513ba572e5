"""Convolution against transformer as the picture grows: things named right under true masks, by the towers alone.

    python -m tools.emoji.tower_sizes --towers runs/conv/towers runs/vit/towers --sprites emoji_scenes/sprites

The paper's reason for a convolutional CLIP is that a transformer's features get worse on pictures larger than those it
was trained on. A picture grows in two ways, and both are measured: the same scenes of 256 pixels *enlarged*, so that
things grow too; and *wider* scenes, where there are more things, of the sizes that were trained on.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

from fcclip_jax.models import weights
from fcclip_jax.models.fcclip import Clip
from fcclip_jax.tower_probe import MaskNamer, Pieces, mask_pooled_pieces, right_things
from fcclip_jax.world.scenes import Recipe, Scene, draw_scene
from fcclip_jax.world.sprites import Sprites
from fcclip_jax.world.textures import LARGEST

SIZES = (1.0, 1.5, 2.0, 3.0)
_SEED = (1 << 30) + 7  # nothing else draws from it


def enlarged(scene: Scene, edge: int) -> Scene:
    picture = Image.fromarray(scene.picture).resize((edge, edge), Image.Resampling.BILINEAR)
    rows = Image.fromarray(scene.rows.astype(np.uint8)).resize((edge, edge), Image.Resampling.NEAREST)
    return Scene(np.asarray(picture), np.asarray(rows).astype(np.int32), scene.pieces)


def wider(sprites: Sprites, number: int, times: float) -> Scene:
    """That many times the edge, as densely filled as scenes of 256 pixels; of several scenes side by side where one
    cannot be drawn as large."""
    edge = round(256 * times / 32) * 32
    across = -(-edge // LARGEST)
    side = edge // across
    count = tuple(round(end * (side / 256) ** 2) for end in Recipe().count)
    recipe = dataclasses.replace(Recipe(), height=side, width=side, count=count)
    scenes = [draw_scene(sprites, recipe, _SEED, number * across**2 + n) for n in range(across**2)]
    starts = np.cumsum([0, *(len(scene.pieces) for scene in scenes)])

    def tiled(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.concatenate(arrays[n : n + across], 1) for n in range(0, len(arrays), across)])

    rows = [scene.rows + start for scene, start in zip(scenes, starts[:-1], strict=True)]
    pieces = tuple(piece for scene in scenes for piece in scene.pieces)
    return Scene(tiled([scene.picture for scene in scenes]), tiled(rows).astype(np.int32), pieces)


def named_right(towers: str, sets: Sequence[Pieces]) -> list[float]:
    """Percent of things, in each set."""
    card = weights.read_card(towers)
    found = weights.load_parameters(towers, weights.TOWERS)
    graphdef, like = nnx.split(nnx.eval_shape(lambda: Clip(card.config, rngs=nnx.Rngs(0))))
    own = {name.removeprefix(weights.TOWERS): array for name, array in found.items()}
    logits = MaskNamer(card.config, graphdef).logits(weights.state_from_parameters(like, own), sets)
    shares = []
    for pieces, of_pieces in zip(sets, logits, strict=True):
        right, thing = right_things(of_pieces, pieces)
        shares.append(100 * float(right[thing].mean()))
    return shares


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--towers", nargs="+", required=True, metavar="DIR")
    options.add_argument("--sprites", required=True, type=Path, metavar="DIR")
    options.add_argument("--images", type=int, default=200, help="scenes (default: %(default)s)")
    given = options.parse_args()
    sprites = Sprites(given.sprites)
    scenes = [draw_scene(sprites, Recipe(), _SEED, n) for n in range(given.images)]
    edges = [round(256 * size / 32) * 32 for size in SIZES]
    kinds = {
        "enlarged": [mask_pooled_pieces([enlarged(scene, edge) for scene in scenes]) for edge in edges],
        "wider": [
            mask_pooled_pieces([wider(sprites, n, size) for n in range(round(given.images / size))]) for size in SIZES
        ],
    }
    print(f"| towers | pictures | {' | '.join(f'{size:g}x' for size in SIZES)} |\n|{'---|' * (len(SIZES) + 2)}")
    for towers in given.towers:
        for kind, sets in kinds.items():
            shares = named_right(towers, sets)
            print(f"| {towers} | {kind} | {' | '.join(f'{share:.1f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
