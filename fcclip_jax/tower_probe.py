"""How well two towers name what lies under true masks: what the small world asks of them before masks are learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from fcclip_jax.models.fcclip import Clip, FCCLIPConfig
from fcclip_jax.models.text_classifier import TextClassifier
from fcclip_jax.training.train_step import normalize_images
from fcclip_jax.world.names import HELD_OUT_STYLE, THINGS, TRAINED_STYLES, vocabulary
from fcclip_jax.world.scenes import Recipe, Scene, draw_scene
from fcclip_jax.world.sprites import Sprites

_SCENES, _SCENE_SEED = 150, 1 << 20  # of each kind, to measure on; no training seed comes near
_BATCH = 30


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Of scenes side by side: `images` uint8 `[B,H,W,3]`, `cover` float `[B,P,h,w]`, the share of each cell of the
    dense map that a piece covers, `classes` `[B,P]` its row in the vocabulary, -1 for none."""

    images: np.ndarray
    cover: np.ndarray
    classes: np.ndarray


def mask_pooled_pieces(scenes: list[Scene], stride: int = 32) -> Pieces:
    """Scenes of one size with their true masks, laid over the cells of a map of `stride`."""
    most = max(len(scene.pieces) for scene in scenes)
    height, width = (edge // stride for edge in scenes[0].rows.shape)
    cover = np.zeros((len(scenes), most, height, width), np.float32)
    classes = np.full((len(scenes), most), -1)
    for n, scene in enumerate(scenes):
        cells = scene.rows.reshape(height, stride, width, stride)
        for row, piece in enumerate(scene.pieces):
            cover[n, row] = (cells == row).mean((1, 3))
            classes[n, row] = piece.kind if piece.isthing else len(THINGS) + piece.kind
    return Pieces(np.stack([scene.picture for scene in scenes]), cover, classes)


class MaskNamer:
    """Two towers that name pieces of scenes with all words of the small world."""

    def __init__(self, model: FCCLIPConfig, graphdef: nnx.GraphDef):
        """`graphdef`: of `Clip`."""
        self._embed_dim = model.embed_dim

        def embed(params: nnx.State, images: jax.Array, cover: jax.Array) -> jax.Array:
            clip: Clip = nnx.merge(graphdef, params)
            dense = clip.visual(normalize_images(images)).res5
            total = jnp.einsum("bphw,bhwc->bpc", cover, dense)
            return clip.visual.project(total / jnp.maximum(cover.sum((2, 3)), 1e-6)[..., None]).astype(jnp.float32)

        self._embed = jax.jit(embed)
        self._encode = jax.jit(lambda params, tokens: nnx.merge(graphdef, params).text(tokens))

    def logits(self, params: nnx.State, sets: list[Pieces]) -> list[Float[np.ndarray, "B P K"]]:
        """Of every piece and class, not scaled, for each of `sets`: the best of the class's names."""
        params = jax.tree.map(jnp.asarray, params)
        words = vocabulary()
        classifier = TextClassifier(lambda tokens: self._encode(params, tokens), embed_dim=self._embed_dim)
        rows, owner = classifier.rows(words), words.synonym_to_class
        found = []
        for pieces in sets:
            parts = range(0, len(pieces.images), _BATCH)
            embeddings = np.concatenate(
                [
                    np.asarray(self._embed(params, pieces.images[n : n + _BATCH], pieces.cover[n : n + _BATCH]))
                    for n in parts
                ]
            )
            of_rows = embeddings @ rows.T
            found.append(np.stack([of_rows[..., owner == k].max(-1) for k in range(words.num_classes)], axis=-1))
        return found


def right_things(logits: Float[np.ndarray, "B P K"], pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """`(right, thing)`, bool `[B,P]`: named right among all things; a thing at all."""
    count = len(THINGS)
    return logits[..., :count].argmax(-1) == pieces.classes, (pieces.classes >= 0) & (pieces.classes < count)


class Probe:
    """The towers measured on scenes of 256 pixels that are never trained on, in both kinds of style."""

    def __init__(self, model: FCCLIPConfig, graphdef: nnx.GraphDef, sprites: Sprites):
        self._namer = MaskNamer(model, graphdef)
        recipes = {"": Recipe(styles=TRAINED_STYLES), "_held_out": Recipe(styles=(HELD_OUT_STYLE,))}
        self._sets = {
            suffix: mask_pooled_pieces([draw_scene(sprites, recipe, _SCENE_SEED, n) for n in range(_SCENES)])
            for suffix, recipe in recipes.items()
        }

    def measure(self, params: nnx.State) -> dict[str, float]:
        """Percent, of the pieces of a kind, of those whose nearest name is theirs: `things` among all things' names,
        `seen` and `unseen` of these; `stuff` among stuff; `_held_out` in the style that is never trained on."""
        seen = np.array([thing.seen for thing in THINGS])
        scores = {}
        found = self._namer.logits(params, list(self._sets.values()))
        for (suffix, pieces), logits in zip(self._sets.items(), found, strict=True):
            classes = pieces.classes
            right, thing = right_things(logits, pieces)
            stuff = classes >= len(THINGS)
            right_stuff = logits[..., len(THINGS) :].argmax(-1) + len(THINGS) == classes
            known = thing & seen[np.clip(classes, 0, len(THINGS) - 1)]
            chosen = {"things": (right, thing), "stuff": (right_stuff, stuff)}
            chosen |= {"seen": (right, known), "unseen": (right, thing & ~known)}
            scores |= {name + suffix: 100 * float(hit[of].mean()) for name, (hit, of) in chosen.items()}
        return scores
