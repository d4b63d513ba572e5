"""Predictions and targets of many kinds for the loss tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fcclip_jax.losses.criterion import CriterionConfig, Targets, criterion, match, random_draw
from fcclip_jax.ops.linear_assignment import linear_assignment

CONFIG = CriterionConfig(points=16, oversample=3.0, important=0.75)
WEIGHTS = (CONFIG.class_weight, CONFIG.mask_weight, CONFIG.dice_weight)
LAYERS = 2


@dataclasses.dataclass(frozen=True)
class Shape:
    """Images, queries, room for segments, classes, sizes of predicted masks and of the id map."""

    images: int
    queries: int
    room: int
    classes: int
    mask: tuple[int, int]
    ids: tuple[int, int]


# Few shapes, because each is compiled: usual, more segments than queries, one of everything.
SHAPES = {
    "usual": Shape(3, 6, 4, 3, (5, 4), (9, 7)),
    "more segments than queries": Shape(2, 3, 6, 2, (3, 6), (4, 8)),
    "one of everything": Shape(1, 1, 1, 1, (1, 1), (2, 3)),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    logits: list[np.ndarray]
    masks: list[np.ndarray]
    targets: Targets
    key: jax.Array


def make(shape: Shape, seed: int, counts: list[int]) -> Scene:
    """Random numbers of the size that training sees; image b has `counts[b]` segments, some of them without a pixel,
    and classes repeat."""
    rng = np.random.default_rng(seed)
    ids = np.full((shape.images, *shape.ids), -1, np.int32)
    labels = np.zeros((shape.images, shape.room), np.int32)
    valid = np.zeros((shape.images, shape.room), bool)
    for b, count in enumerate(counts):
        ids[b] = rng.integers(-1, count, shape.ids)
        labels[b, :count] = rng.integers(0, shape.classes, count)
        valid[b, :count] = True
    logits = rng.normal(0, 2, (LAYERS, shape.images, shape.queries, shape.classes + 1)).astype(np.float32)
    masks = rng.normal(0, 3, (LAYERS, shape.images, shape.queries, *shape.mask)).astype(np.float32)
    targets = Targets(jnp.asarray(ids), jnp.asarray(labels), jnp.asarray(valid))
    return Scene(list(logits), list(masks), targets, jax.random.key(seed))


assign = functools.partial(linear_assignment, solver="host")  # compiled in no time; ops tests compare the solvers
# Compiling is nearly all that these tests do.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@quick
def matched(scene_logits, scene_masks, targets, key, numbers):
    return match(scene_logits, scene_masks, targets, random_draw(key, numbers), assign, CONFIG)


def _losses(logits, masks, targets, key, numbers, normalizer=None, config=CONFIG):
    return criterion(logits, masks, targets, random_draw(key, numbers), assign, config, normalizer)


losses = functools.partial(quick, static_argnames="config")(_losses)
# ((total, terms), gradients with respect to logits and masks)
gradients = quick(jax.value_and_grad(_losses, argnums=(0, 1), has_aux=True))


def drawn(scene: Scene, layer: int, purpose: str, count: int, per_segment: bool = True) -> np.ndarray:
    """The points that the loss draws for this purpose, as numpy."""
    images, room = scene.targets.labels.shape
    shape = (images, room, count, 2) if per_segment else (images, count, 2)
    return np.asarray(random_draw(scene.key, jnp.arange(images))(layer, purpose, shape))
