"""The semantic map from several views of one photo: the mean of their class scores (the reference's
`SemanticSegmentorWithTTA`, which keeps K x H x W scores; here again a run of pixels at a time)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from fcclip_jax.results.pixels import MaskSampler, best_class, run_length
from fcclip_jax.results.results import softmax
from fcclip_jax.results.upsample import STRIDE, Upsampling, to_image


@dataclasses.dataclass(frozen=True)
class View:
    """What the network says of one view: `masks` `[Q,h,w]` logits, `class_log_probs` `[Q,K+1]`, void last,
    `network_size` and `padded_size` `(height, width)` without and with padding, `mirrored`: left and right are
    exchanged. The masks may be stored in the corner of larger ones."""

    masks: Float[Array, "Q h w"] | Float[np.ndarray, "Q h w"]
    class_log_probs: Float[np.ndarray, "Q K1"]
    network_size: tuple[int, int]
    padded_size: tuple[int, int]
    mirrored: bool = False


@jax.jit
def _scores(probabilities: Float[Array, "P Q"], class_probs: Float[Array, "Q K"]) -> Float[Array, "P K"]:
    return jnp.dot(probabilities, class_probs, precision=lax.Precision.HIGHEST)


def augmented_semantic(views: Sequence[View], output_size: tuple[int, int]) -> Integer[np.ndarray, "H W"]:
    """The class of each pixel of a photo of `output_size`, by the sum over views of its scores.

    Returns:
        class indices, uint8, or uint16 when there are more than 255 classes.
    """
    samplers, walks, class_probs = [], [], []
    queries, classes = views[0].class_log_probs.shape[0], views[0].class_log_probs.shape[1] - 1
    length = run_length(max(queries, classes))
    for view in views:
        cells = tuple(size // STRIDE for size in view.padded_size)
        upsampling = Upsampling(cells, view.network_size, output_size, row_length=view.masks.shape[2])
        upsampling = upsampling.mirrored() if view.mirrored else upsampling
        samplers.append(MaskSampler(jnp.asarray(view.masks), np.arange(queries), upsampling))
        walks.append(upsampling.runs(length))
        class_probs.append(softmax(np.asarray(view.class_log_probs, np.float32))[:, :-1])
    found = np.empty(output_size[0] * output_size[1], np.uint8 if classes <= 255 else np.uint16)
    for runs in zip(*walks, strict=True):
        total = None
        for run, sampler, probs in zip(runs, samplers, class_probs, strict=True):
            scores = _scores(sampler.probabilities(run), probs)
            total = scores if total is None else total + scores
        found[runs[0].places] = np.asarray(best_class(total))[: runs[0].count]
    return to_image(found, output_size)
