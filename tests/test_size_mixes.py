"""Batches of random mixes of sizes, real photos among them: each photo's result is the one it has alone."""

import functools

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.segmenter import Segmenter
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from tests.conftest import SHARED
from tests.pictures import photo

MIXES = 20
# Few sizes with padding, since each is a program to compile for the photo alone; any size without.
SIZES = {"min_size": 64, "max_size": 107}
WORDS = "cup; saucer, plate; table [stuff]; person; sky [stuff]"


def crops(rng):
    """Photos of random sizes and shapes: drawn ones, and pieces of real ones where these are at hand."""
    real = [np.array(Image.open(path).convert("RGB")) for path in sorted((SHARED / "samples").glob("*.jpg"))]
    while True:
        height, width = rng.integers(40, 320, 2)
        if real and rng.random() < 0.5:
            whole = real[rng.integers(len(real))]
            y, x = rng.integers(0, whole.shape[0] - height + 1), rng.integers(0, whole.shape[1] - width + 1)
            yield np.ascontiguousarray(whole[y : y + height, x : x + width])
        else:
            yield photo(int(height), int(width), int(rng.integers(1000)))


@pytest.mark.slow
def test_random_mixes_of_sizes(tiny_model, tmp_path_factory):
    segmenter = Segmenter.from_checkpoint(tiny_model, cache_dir=tmp_path_factory.mktemp("cache"), **SIZES)
    rng = np.random.default_rng(6)
    photos = crops(rng)
    words = Vocabulary.parse(WORDS)
    name = functools.partial(segmenter.name, vocabulary=words, overlap_threshold=0.3)
    extents, segments = set(), 0
    for _ in range(MIXES):
        inputs = {}
        while not any(len(group) == 4 for group in inputs.values()):
            x = segmenter._preprocess(next(photos))
            inputs.setdefault(x.stored.shape, []).append(x)
        batch = next(group for group in inputs.values() if len(group) == 4)
        for x, together in zip(batch, segmenter._encode(batch), strict=True):
            alone = segmenter.forward(x.image, words)  # padded to multiples of 32 and no further
            h, w = (size // 4 for size in x.padded_size)
            masks = np.asarray(together.predictions.masks)[..., :h, :w]
            expected = alone["masks"][-1]
            np.testing.assert_allclose(masks, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
            found = segmenter._model.classify(together.predictions, *segmenter._text_arguments(words))
            for ours, theirs in (
                (found.in_vocabulary, alone["logits"][-1]),
                (found.out_vocabulary, alone["out_vocabulary_logits"]),
            ):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
            # The panoptic map, up to pixels where two masks tie within rounding.
            ours, theirs = name(together), name(segmenter.encode(x.image))
            assert np.mean(ours.panoptic != theirs.panoptic) <= 0.001
            assert [s.category_id for s in ours.segments] == [s.category_id for s in theirs.segments]
            extents.add(x.padded_size)
            segments += len(ours.segments)
    assert len(extents) >= 4 and segments > MIXES
