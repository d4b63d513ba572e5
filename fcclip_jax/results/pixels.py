"""What is compiled: everything that touches queries x pixels, for one run of P pixels.

The shapes depend on the number of queries, classes and pixels of a run, and on the mask cells rounded up to
a bucket, never on the photo's size: photos of any sizes share the compiled functions. Queries are the last
axis, so that a pixel's stencil is a sum of contiguous rows (for a 427 x 640 photo on CPU several times faster
than resizing by a dense matrix product).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.results.upsample import PixelRun, Upsampling

_CELL_BUCKET = 16384
_RUN_ELEMENTS_CPU = 2**21
_RUN_ELEMENTS_ACCELERATOR = 2**25


def run_length(width: int) -> int:
    """P for arrays of `width` queries or classes per pixel.

    On CPU an array of a run stays within 8 MiB: larger ones leave the cache, and above 32 MiB the allocator
    gives fresh pages at each call (sampling measured 10 times slower per pixel at 128 MiB). Accelerators want
    fewer, larger calls.
    """
    elements = _RUN_ELEMENTS_CPU if jax.default_backend() == "cpu" else _RUN_ELEMENTS_ACCELERATOR
    return max(elements // (1 << (width - 1).bit_length()), 256)


def query_bucket(count: int, queries: int) -> int:
    """Queries to compile for when `count` of `queries` matter: a power of two from 16, or all of them."""
    return min(max(16, 1 << (count - 1).bit_length()), queries)


@jax.jit
def finite_masks(masks: Float[Array, "Q h w"]) -> Bool[Array, " Q"]:
    """Which masks hold neither NaN nor infinity."""
    return jnp.isfinite(masks).all(axis=(1, 2))


def _bucketed(cells: int) -> int:
    return -(-cells // _CELL_BUCKET) * _CELL_BUCKET


@jax.jit
def _cells_by_query(masks: Float[Array, "Q h w"], queries: Int[Array, " q"]) -> Float[Array, "N q"]:
    cells = masks[queries].reshape(queries.shape[0], -1).T
    return jnp.pad(cells, ((0, _bucketed(cells.shape[0]) - cells.shape[0]), (0, 0)))


def _sample(
    cells: Float[Array, "N q"],
    offsets: Int[Array, "ty tx"],
    first: Int[Array, " P"],
    weights_y: Float[Array, "P ty"],
    weights_x: Float[Array, "P tx"],
) -> Float[Array, "P q"]:
    total = jnp.zeros((), cells.dtype)
    for i in range(offsets.shape[0]):
        row = jnp.zeros((), cells.dtype)
        for j in range(offsets.shape[1]):
            tap = cells.at[first + offsets[i, j]].get(mode="promise_in_bounds")
            row = row + tap * weights_x[:, j, None]
        total = total + row * weights_y[:, i, None]
    return total


_sample_logits = jax.jit(_sample)


@jax.jit
def _sample_probabilities(
    cells: Float[Array, "N q"],
    offsets: Int[Array, "ty tx"],
    first: Int[Array, " P"],
    weights_y: Float[Array, "P ty"],
    weights_x: Float[Array, "P tx"],
) -> Float[Array, "P q"]:
    return jax.nn.sigmoid(_sample(cells, offsets, first, weights_y, weights_x))


class MaskSampler:
    """Some queries' masks, laid out so that any run of pixels can be read.

    Args:
        masks: logits `[Q,h,w]`.
        queries: which of them, in the order wanted; may repeat.
        upsampling: from these masks to the photo.
    """

    def __init__(self, masks: Float[Array, "Q h w"], queries: Int[np.ndarray, " q"], upsampling: Upsampling):
        self._cells = _cells_by_query(masks, queries.astype(np.int32))
        self._offsets = upsampling.offsets

    def logits(self, run: PixelRun) -> Float[Array, "P q"]:
        """The masks' logits at the run's pixels."""
        return _sample_logits(self._cells, self._offsets, run.cell, run.weights_y, run.weights_x)

    def probabilities(self, run: PixelRun) -> Float[Array, "P q"]:
        """The masks' sigmoids at the run's pixels."""
        return _sample_probabilities(self._cells, self._offsets, run.cell, run.weights_y, run.weights_x)


def _first_maximum(x: Float[Array, "P n"]) -> Int[Array, " P"]:
    """`jnp.argmax(x, -1)` as two plain maxima, which CPUs vectorise (measured 3 to 9 times faster).

    The comparison needs both passes to read equal numbers, so `x` must come from a matrix product or be an
    elementary function (exactly rounded) of an input of the jitted function: XLA may compute a sigmoid twice.
    """
    count = x.shape[-1]
    from_the_end = count - jnp.arange(count, dtype=jnp.float32)
    is_maximum = x == x.max(-1, keepdims=True)
    return count - jnp.where(is_maximum, from_the_end, 1.0).max(-1).astype(jnp.int32)


def _is_photo(length: int, count: Int[Array, ""]) -> Float[Array, " P"]:
    return (jnp.arange(length) < count).astype(jnp.float32)


@jax.jit
def panoptic_run(
    probabilities: Float[Array, "P q"], scores: Float[Array, " q"], count: Int[Array, ""]
) -> tuple[Int[Array, " P"], Float[Array, " q"]]:
    """Which query wins each pixel, and how large each query's mask is.

    Args:
        probabilities: the masks' sigmoids.
        scores: the queries' class probabilities; -1 for one that must not win.
        count: the run's pixels that are in the photo.

    Returns:
        the first query with the largest score x sigmoid, plus q where its sigmoid is at least 0.5; and the
        number of the photo's pixels with sigmoid >= 0.5 for each query (exact: below 2^24).
    """
    winner = _first_maximum(probabilities * scores)
    inside = jnp.take_along_axis(probabilities, winner[:, None], axis=1)[:, 0] >= 0.5
    covered = (probabilities >= 0.5).astype(jnp.float32)
    sizes = jnp.dot(_is_photo(len(covered), count), covered, precision=lax.Precision.HIGHEST)
    return winner + jnp.where(inside, scores.shape[0], 0), sizes


@jax.jit
def semantic_run(probabilities: Float[Array, "P Q"], class_probs: Float[Array, "Q K"]) -> Int[Array, " P"]:
    """The first class with the largest `sum_q class_probs[q,k] sigmoid(mask)[q]`."""
    return _first_maximum(jnp.dot(probabilities, class_probs, precision=lax.Precision.HIGHEST))


@jax.jit
def best_class(scores: Float[Array, "P K"]) -> Int[Array, " P"]:
    """The first class with the largest score."""
    return _first_maximum(scores)


@jax.jit
def instance_run(logits: Float[Array, "P q"], count: Int[Array, ""]) -> tuple[Bool[Array, "q P"], Float[Array, " q"]]:
    """Where each mask's logit is positive, and the sum of its sigmoid there, over the photo's pixels."""
    inside = logits > 0
    probabilities = jnp.where(inside, jax.nn.sigmoid(logits), 0.0)
    totals = jnp.dot(_is_photo(len(logits), count), probabilities, precision=lax.Precision.HIGHEST)
    return inside.T, totals
