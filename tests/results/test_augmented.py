"""The semantic map of several views, against the reference's rule on whole arrays."""

import numpy as np
import pytest

from fcclip_jax.ops.resize import interpolation_matrix
from fcclip_jax.results.augmented import View, augmented_semantic
from fcclip_jax.results.results import compute_results

QUERIES = 6


def view(rng, network_size, mirrored=False, classes=5) -> View:
    padded = tuple(-(-edge // 32) * 32 for edge in network_size)
    masks = rng.normal(0, 3, (QUERIES, padded[0] // 4, padded[1] // 4)).astype(np.float32)
    logits = rng.normal(0, 2, (QUERIES, classes + 1)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return View(masks, log_probs, network_size, padded, mirrored)


def slow(views, size) -> np.ndarray:
    """Class scores `[K,H,W]`: masks to the padded input, cut, to the photo, back from the mirror; summed over views."""
    total = 0
    for v in views:
        up = [interpolation_matrix(v.masks.shape[a + 1], v.padded_size[a])[: v.network_size[a]] for a in (0, 1)]
        down = [interpolation_matrix(v.network_size[a], size[a]) for a in (0, 1)]
        rows, columns = (d.astype(np.float64) @ u for d, u in zip(down, up, strict=True))
        masks = 1 / (1 + np.exp(-np.einsum("yh,qhw,xw->qyx", rows, v.masks, columns)))
        probs = np.exp(v.class_log_probs.astype(np.float64))
        probs /= probs.sum(axis=1, keepdims=True)
        scores = np.einsum("qk,qyx->kyx", probs[:, :-1], masks)
        total = total + (scores[:, :, ::-1] if v.mirrored else scores)
    return total


@pytest.mark.parametrize("size", [(40, 61), (33, 20)])
def test_equals_the_reference_on_whole_arrays(size):
    rng = np.random.default_rng(5)
    views = [view(rng, (50, 76)), view(rng, (50, 76), mirrored=True), view(rng, (64, 97)), view(rng, (64, 97), True)]
    scores = slow(views, size)
    found = augmented_semantic(views, size)
    assert found.shape == size and found.dtype == np.uint8
    ordered = np.sort(scores, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4  # in float32 equal to about 1e-6
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], scores.argmax(axis=0)[clear])


def test_one_view_is_the_plain_map():
    rng = np.random.default_rng(6)
    v = view(rng, (50, 76))
    plain = compute_results(
        v.masks,
        v.class_log_probs,
        network_size=v.network_size,
        output_size=(40, 61),
        names=list("abcde"),
        isthing=np.ones(5, bool),
        tasks=("semantic",),
    )
    np.testing.assert_array_equal(augmented_semantic([v], (40, 61)), plain.semantic)


def test_a_mirrored_view_of_mirrored_masks_is_the_view_itself():
    """Where the photo needs no padding, so that the mirror image lies in the same cells."""
    rng = np.random.default_rng(7)
    v = view(rng, (32, 64))
    mirrored = View(v.masks[:, :, ::-1].copy(), v.class_log_probs, v.network_size, v.padded_size, mirrored=True)
    np.testing.assert_array_equal(augmented_semantic([v], (40, 61)), augmented_semantic([mirrored], (40, 61)))


def test_masks_may_lie_in_the_corner_of_larger_ones():
    rng = np.random.default_rng(8)
    v = view(rng, (50, 76), classes=300)
    stored = np.full((QUERIES, 32, 40), np.float32(9))
    stored[:, : v.masks.shape[1], : v.masks.shape[2]] = v.masks
    inside = View(stored, v.class_log_probs, v.network_size, v.padded_size, mirrored=False)
    found = augmented_semantic([inside], (40, 61))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, augmented_semantic([v], (40, 61)))
