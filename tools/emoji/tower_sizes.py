"""Convolution against transformer as the picture grows: things named right under true masks, by the towers alone.

    python -m tools.emoji.tower_sizes --towers runs/conv/towers runs/vit/towers --sprites emoji_scenes/sprites

The same scenes of 256 pixels, enlarged; a mask keeps its place. The paper's reason for a convolutional CLIP is that a
transformer's features get worse on pictures larger than those it was trained on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

from fcclip_jax.models import weights
from fcclip_jax.models.fcclip import Clip
from fcclip_jax.tower_probe import MaskNamer, mask_pooled_pieces, right_things
from fcclip_jax.world.scenes import Recipe, Scene, draw_scene
from fcclip_jax.world.sprites import Sprites

SIZES = (1.0, 1.5, 2.0, 3.0)
_SEED = (1 << 30) + 7  # nothing else draws from it


def enlarged(scene: Scene, edge: int) -> Scene:
    picture = Image.fromarray(scene.picture).resize((edge, edge), Image.Resampling.BILINEAR)
    rows = Image.fromarray(scene.rows.astype(np.uint8)).resize((edge, edge), Image.Resampling.NEAREST)
    return Scene(np.asarray(picture), np.asarray(rows).astype(np.int32), scene.pieces)


def named_right(towers: str, scenes: Sequence[Scene], sizes: Sequence[float]) -> list[float]:
    """Percent of things, at each size."""
    card = weights.read_card(towers)
    found = weights.load_parameters(towers, weights.TOWERS)
    graphdef, like = nnx.split(nnx.eval_shape(lambda: Clip(card.config, rngs=nnx.Rngs(0))))
    own = {name.removeprefix(weights.TOWERS): array for name, array in found.items()}
    sets = []
    for size in sizes:
        edge = round(scenes[0].rows.shape[0] * size / 32) * 32
        sets.append(mask_pooled_pieces([enlarged(scene, edge) for scene in scenes]))
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
    print(f"| towers | {' | '.join(f'{size:g}x' for size in SIZES)} |\n|{'---|' * (len(SIZES) + 1)}")
    for towers in given.towers:
        shares = named_right(towers, scenes, SIZES)
        print(f"| {towers} | {' | '.join(f'{share:.1f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
