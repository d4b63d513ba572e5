"""Shape letters, and the records that travel between the boxes of the figure.

Letters, upper case in signatures, lower case in einsums, the same everywhere:

    B batch            H W image or map size      h w   a second, smaller map size
    C CLIP channels    D decoder width            E     joint image-text embedding
    Q queries          N ground-truth segments    K     classes (without void)
    S synonym rows     T prompts, or positions    L     feature levels
    P sampling points  M attention heads

Images and feature maps are NHWC. Masks are logits `[B,Q,h,w]` unless a name says otherwise.
"""

import dataclasses

import jax
import numpy as np


def _record(cls):
    """A frozen dataclass that jax.jit takes and returns."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_record
class Features:
    """What the frozen image tower gives: the outputs of its four stages, float `[B,H/s,W/s,C_s]`.

    `res5` is also the dense map of the out-vocabulary classifier (no norm follows). The stem's stride is 4 in a
    ConvNeXt and 2 in a ResNet.
    """

    stem: jax.Array
    res2: jax.Array
    res3: jax.Array
    res4: jax.Array
    res5: jax.Array


@_record
class PixelDecoderOutput:
    """`mask_features` `[B,H/4,W/4,D]`; `multi_scale`: three maps `[B,H/s,W/s,D]`, s = 32, 16, 8;
    `encoder_layers`: the token sequence `[B,T,D]` after each deformable layer; `input_proj`: the projected inputs."""

    mask_features: jax.Array
    multi_scale: tuple[jax.Array, ...]
    encoder_layers: tuple[jax.Array, ...]
    input_proj: tuple[jax.Array, ...]


@_record
class MaskPredictions:
    """What one image says before any word is known.

    `masks` `[B,Q,H/4,W/4]` logits; `class_embed` `[B,Q,E]` in-vocabulary embedding; `clip_embed` `[B,Q,E]`
    out-vocabulary embedding (mask-pooled CLIP); neither embedding is normalised. `valid` `[B,Q]`: the mask
    covers at least one cell of the dense map.
    """

    masks: jax.Array
    class_embed: jax.Array
    clip_embed: jax.Array
    valid: jax.Array


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map. `id` is its value in the map, `category_id` its row in the vocabulary,
    `score` the class probability of its (best) query, in [0, 1], `area` its number of pixels."""

    id: int
    category_id: int
    name: str
    isthing: bool
    score: float
    area: int


@dataclasses.dataclass(frozen=True)
class Instance:
    """One thing. `rle`: COCO run-length encoding, `{"size": [H, W], "counts": bytes}`; `score` in [0, 1]."""

    category_id: int
    name: str
    score: float
    rle: dict

    @property
    def mask(self) -> np.ndarray:
        """bool `[H,W]`, decoded on each call."""
        from pycocotools import mask as coco_mask

        return coco_mask.decode(self.rle).astype(bool)
