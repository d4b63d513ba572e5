import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.models.clip_vision import ClipVision, VisionConfig
from fcclip_jax.training.contrastive import ContrastiveConfig, contrastive_loss, embed_parts
from fcclip_jax.training.optimizer import NO_DECAY, group_of
from tests.models.modules import filled

CONFIG = ContrastiveConfig(names_weight=0.7, captions_weight=0.4)


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def batch():
    """Six places: 0 and 3 show the same thing over other stuff, 2 shows nothing (no picture), 4 two things."""
    rng = np.random.default_rng(0)
    present = np.zeros((6, 5), np.float32)
    present[0, [0, 4]] = 0.8, 0.2
    present[1, 1] = 1
    present[3, [0, 3]] = 0.8, 0.2
    present[4, [1, 2]] = 0.5
    present[5, 2] = 1
    return unit(rng, 6, 8), unit(rng, 6, 8), present, unit(rng, 5, 8)


def reference(images, captions, present, names, scale):
    """Picture by picture, in float64."""
    real = [n for n in range(len(present)) if present[n].any()]
    alike = {n: [m for m in real if m == n or {n, m} == {0, 3}] for n in real}

    def softmax_loss(logits, targets):
        logits = np.asarray(logits, np.float64)
        log_p = logits - np.log(np.exp(logits).sum())
        return -sum(share * log_p[place] for place, share in targets)

    to_captions = to_images = to_names = 0
    for n in real:
        places = [(real.index(m), 1 / len(alike[n])) for m in alike[n]]
        to_captions += softmax_loss([scale * images[n] @ captions[m] for m in real], places)
        to_images += softmax_loss([scale * captions[n] @ images[m] for m in real], places)
        to_names += softmax_loss(scale * names @ images[n], list(enumerate(present[n])))
    count = len(real)
    return (to_captions + to_images) / 2 / count, to_names / count


def test_loss_is_its_definition(batch):
    images, captions, present, names = batch
    scale = np.log(np.float32(5.0))
    total, terms = contrastive_loss(*map(jnp.asarray, batch), jnp.asarray(scale), CONFIG)
    of_captions, of_names = reference(images, captions, present, names, 5.0)
    # float32 sums of a dozen terms of order 1
    assert float(terms["loss_captions"]) == pytest.approx(of_captions, rel=1e-5)
    assert float(terms["loss_names"]) == pytest.approx(of_names, rel=1e-5)
    assert float(total) == pytest.approx(0.4 * of_captions + 0.7 * of_names, rel=1e-5)


def test_a_place_without_a_picture_counts_for_nothing(batch):
    images, captions, present, names = map(jnp.asarray, batch)

    def loss(images, captions):
        return contrastive_loss(images, captions, present, names, jnp.float32(1.0), CONFIG)[0]

    gradients = jax.grad(loss, argnums=(0, 1))(images, captions)
    for gradient in gradients:
        assert not gradient[2].any() and all(gradient[n].any() for n in (0, 1, 3, 4, 5))


def test_named_counts_pictures_whose_nearest_name_is_there(batch):
    _, captions, present, names = map(jnp.asarray, batch)
    images = names[
        jnp.array([0, 1, 2, 3, 1, 0])
    ]  # right, right, no picture, the stuff: right, one of two: right, wrong
    terms = contrastive_loss(images, captions, present, names, jnp.float32(1.0), CONFIG)[1]
    assert float(terms["named"]) == pytest.approx(4 / 5)


def test_a_part_is_the_mean_of_its_own_cells():
    visual = filled(lambda rngs: ClipVision(VisionConfig((1, 1, 1, 1), (4, 4, 4, 8), "linear", 64), 6, rngs=rngs))
    dense = np.random.default_rng(1).standard_normal((2, 2, 3, 8)).astype(np.float32)
    parts = np.array([[[0, 0, 1], [0, 0, 1]], [[2, 1, 0], [2, 1, 0]]])
    found = embed_parts(visual, jnp.asarray(dense), jnp.asarray(parts), 3)
    for image, part in np.ndindex(2, 3):
        cells = dense[image][parts[image] == part]
        if len(cells):
            expected = visual.project(jnp.asarray(cells.mean(0)))
            # one mean and two small products in float32
            np.testing.assert_allclose(found[image, part], expected, atol=1e-5)


def test_words_that_do_not_come_up_are_not_decayed():
    assert group_of("text.token_embedding") == group_of("logit_scale") == NO_DECAY
    assert group_of("visual.stages.0.blocks.0.gamma") == NO_DECAY
