import jax.numpy as jnp
import numpy as np
import pytest
import results_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.results.pixels import MaskSampler
from fcclip_jax.results.upsample import STRIDE, TAPS, Upsampling, axis_stencil, to_image


def dense(cells, network, pixels):
    """The stencil as a matrix `[pixels, cells]`."""
    start, weights = axis_stencil(cells, network, pixels)
    matrix = np.zeros((pixels, cells))
    for i in range(pixels):
        matrix[i, start[i] : start[i] + weights.shape[1]] += weights[i]
    return matrix


def test_two_cells_without_padding_by_hand():
    # Pixel centres at (x + .5) / 4 - .5 cells: -.375, -.125 (clamped to 0), .125, .375, .625, .875, 1.125 ...
    right = [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
    np.testing.assert_array_equal(dense(2, 8, 8), np.stack([1 - np.array(right), right], axis=1))


def test_padding_is_cut_before_the_second_resize():
    # Of 8 network pixels the first 4 are the image; one output pixel lies between the second and the third.
    np.testing.assert_array_equal(dense(2, 4, 1), [[1 - 0.0625, 0.0625]])
    # Enlarged to 8, the last pixel is clamped to network pixel 3, not mixed with the padding.
    np.testing.assert_array_equal(dense(2, 4, 8)[-1], [0.625, 0.375])


@given(st.integers(1, 12), st.integers(1, 48), st.integers(1, 60))
@settings(deadline=None, max_examples=150)
def test_stencil_is_the_two_resizes(cells, network, pixels):
    network = min(network, STRIDE * cells)
    expected = results_reference.resize(np.eye(cells), STRIDE * cells, cells)[:network]
    expected = results_reference.resize(expected, pixels, cells)
    # 1e-6: the weights are float32, each resize rounds them once.
    np.testing.assert_allclose(dense(cells, network, pixels), expected, atol=1e-6)


@given(st.integers(1, 400), st.data(), st.integers(1, 3000))
@settings(deadline=None, max_examples=100)
def test_stencil_leaves_out_no_weight(cells, data, pixels):
    """TAPS cells are enough at any ratio: the weights of a pixel add up to 1, within the map."""
    network = data.draw(st.integers(1, STRIDE * cells))
    start, weights = axis_stencil(cells, network, pixels)
    assert weights.shape == (pixels, min(TAPS, cells))
    assert start.min() >= 0 and start.max() + weights.shape[1] <= cells
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=5e-7)  # float32 weights
    assert weights.min() >= 0


@pytest.mark.parametrize("length", [1, 7, 12, 100])
def test_runs_cover_the_photo_once_and_agree_for_any_length(length):
    rng = np.random.default_rng(0)
    masks = rng.normal(size=(3, 2, 3)).astype(np.float32)
    network_size, output_size = (7, 10), (3, 4)
    upsampling = Upsampling(masks.shape[1:], network_size, output_size)
    sampler = MaskSampler(jnp.asarray(masks), np.array([2, 0]), upsampling)
    flat, seen = np.zeros((2, 12)), np.zeros(12, int)
    for run in upsampling.runs(length):
        assert len(run.cell) == length
        logits = np.asarray(sampler.logits(run))
        flat[:, run.places] = logits[: run.count].T
        seen[run.places] += 1
        # logistic functions of different programs agree to float32 rounding
        np.testing.assert_allclose(sampler.probabilities(run), results_reference.sigmoid(np.float64(logits)), rtol=1e-6)
    assert (seen == 1).all()
    expected = results_reference.upsample(masks[[2, 0]], network_size, output_size)
    for got, want in zip(flat, expected, strict=True):
        np.testing.assert_allclose(to_image(got, output_size), want, atol=1e-6)  # float32 sums of 9 terms


def test_reference_upsampling(golden):
    """All of the reference's logits that the golden holds: padded input, enlarged photo."""
    masks = golden["mask_logits.pad"][:4]
    size = tuple(golden["output_size.pad"].tolist())
    upsampling = Upsampling(masks.shape[1:], tuple(golden["network_size.pad"].tolist()), size)
    sampler = MaskSampler(jnp.asarray(masks), np.arange(4), upsampling)
    flat = np.concatenate([np.asarray(sampler.logits(run))[: run.count] for run in upsampling.runs(8192)])
    got = np.stack([to_image(q, size)[::4, ::4] for q in flat.T])
    # 1e-5 of the largest logit: the reference computes pixel positions in float32.
    scale = np.abs(golden["upsampled.s4.pad"]).max()
    np.testing.assert_allclose(got, golden["upsampled.s4.pad"], atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((2, 2), (9, 8), (4, 4)), "9 pixels does not fit 2 mask cells"),
        (((2, 2), (8, 0), (4, 4)), "0 pixels does not fit"),
        (((2, 2), (8, 8), (0, 4)), "at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        Upsampling(*sizes)
