"""The whole forward pass of the tiny model, stage by stage, against the original program (weights by formula)."""

import jax
import numpy as np
import pytest

from fcclip_jax.segmenter import Segmenter
from tests.reference_stages import compare

# Two float32 programs that add in different orders; the original differs as much from itself in float64. Measured
# here: at most 2e-6.
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def reference(golden):
    return np.load(golden / "forward.npz")


@pytest.fixture(scope="module")
def segmenter(tiny_model):
    return Segmenter.from_checkpoint(tiny_model)


def text(reference, name):
    counts = reference[f"{name}/num_templates"]
    classes = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return reference[f"{name}/text_classifier"], classes, reference[f"{name}/category_overlapping_mask"].astype(bool)


@pytest.mark.parametrize("vocabulary", ["ade", "coco"])
def test_every_stage(segmenter, reference, vocabulary):
    images = reference["ade/images"].transpose(0, 2, 3, 1)
    ours = segmenter.intermediates(images, *text(reference, vocabulary))
    errors = {error.stage: error for error in compare(ours, reference, f"{vocabulary}/")}
    expected = {key.split("/")[1] for key in reference.files if key.startswith(f"{vocabulary}/")}
    expected -= {"images", "text_classifier", "num_templates", "category_overlapping_mask"}
    assert errors.keys() == expected
    assert [e for e in errors.values() if e.relative > RELATIVE or e.largest > RELATIVE] == []


def test_a_padded_image(segmenter, reference):
    images = reference["ade.pad/images"].transpose(0, 2, 3, 1)
    ours = segmenter.intermediates(images, *text(reference, "ade"))
    errors = compare(ours, reference, "ade.pad/")
    assert {e.stage for e in errors} == {"dec.pred_logits2", "dec.pred_masks2", "post.mask_cls"}
    assert max(e.relative for e in errors) < RELATIVE


def test_a_batch_gives_what_each_image_gives_alone(segmenter, reference):
    images = np.concatenate([reference[f"{key}/images"] for key in ("ade", "ade.pad")]).transpose(0, 2, 3, 1)
    arguments = text(reference, "coco")
    together = segmenter.intermediates(images, *arguments)
    for i in range(2):
        alone = segmenter.intermediates(images[i : i + 1], *arguments)
        for key in ("logits", "masks"):
            # The batch changes how matrix products are cut, and so the order of sums.
            np.testing.assert_allclose(together[key][-1][i], alone[key][-1][0], atol=2e-5)


def test_text_tower(tiny_model, reference):
    from flax import nnx

    from fcclip_jax.models.weights import load_model

    _, graphdef, state = load_model(tiny_model)
    encode = jax.jit(lambda state, tokens: nnx.merge(graphdef, state).clip.text(tokens))
    tokens = reference["text/tokens"].astype(np.int32)
    expected = reference["text/emb"]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(encode(state, tokens), expected, atol=RELATIVE * scale)
    # Cutting the context behind the longest prompt is the same function.
    longest = tokens.argmax(axis=1).max() + 1
    np.testing.assert_allclose(encode(state, tokens[:, :longest]), expected, atol=RELATIVE * scale)
