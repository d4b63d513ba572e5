"""Convolution against transformer as the picture grows: things named right under true masks, by the towers alone.

    python -m tools.emoji.tower_sizes --towers runs/conv/towers runs/vit/towers --sprites emoji_scenes/sprites

The same scenes of 256 pixels, enlarged; a mask keeps its place. The paper's reason for a convolutional CLIP is that a
transformer's features get worse on pictures larger than those it was trained on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from fcclip_jax.models import weights
from fcclip_jax.models.fcclip import Clip
from fcclip_jax.models.text_classifier import TextClassifier
from fcclip_jax.pretraining import mask_pooled_pieces
from fcclip_jax.training.train_step import normalize_images
from fcclip_jax.world.names import THINGS, vocabulary
from fcclip_jax.world.scenes import Recipe, Scene, draw_scene
from fcclip_jax.world.sprites import Sprites

SIZES = (1.0, 1.5, 2.0, 3.0)
_SEED, _BATCH = (1 << 30) + 7, 10  # a seed that nothing else draws from


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
    params = jax.tree.map(jnp.asarray, weights.state_from_parameters(like, own))

    @jax.jit
    def embed(params, images, cover):
        visual = nnx.merge(graphdef, params).visual
        total = jnp.einsum("bphw,bhwc->bpc", cover, visual(normalize_images(images)).res5)
        return visual.project(total / jnp.maximum(cover.sum((2, 3)), 1e-6)[..., None]).astype(jnp.float32)

    words = vocabulary()
    encode = jax.jit(lambda params, tokens: nnx.merge(graphdef, params).text(tokens))
    rows = TextClassifier(lambda tokens: encode(params, tokens), embed_dim=card.config.embed_dim).rows(words)
    shares = []
    for size in sizes:
        edge = round(scenes[0].rows.shape[0] * size / 32) * 32
        pieces = mask_pooled_pieces([enlarged(scene, edge) for scene in scenes])
        parts = range(0, len(scenes), _BATCH)
        embeddings = np.concatenate(
            [np.asarray(embed(params, pieces.images[n : n + _BATCH], pieces.cover[n : n + _BATCH])) for n in parts]
        )
        of_rows = embeddings @ rows.T
        logits = np.stack([of_rows[..., words.synonym_to_class == k].max(-1) for k in range(len(THINGS))], axis=-1)
        thing = (pieces.classes >= 0) & (pieces.classes < len(THINGS))
        shares.append(100 * float((logits.argmax(-1) == pieces.classes)[thing].mean()))
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
