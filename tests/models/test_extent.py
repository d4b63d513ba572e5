"""Images of several sizes in one batch: each gets what it would get alone, at every stage."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcclip_jax.models.clip_resnet import ClipResNet
from fcclip_jax.models.fcclip import FCCLIP, VARIANTS
from tests.models.modules import filled
from tests.models.tiny_resnet import TINY_RESNET

CONFIG = VARIANTS["convnext_tiny_test"]
BUCKET = (96, 160)
# One fills the bucket, one is short in one direction, one in both; each size is a program to compile.
SIZES = [(96, 160), (32, 64), (64, 160), (32, 64), (64, 160)]


@pytest.fixture(scope="module")
def run():
    """A forward pass, compiled once a shape; the parameters are random, norms and biases too."""
    graphdef, state = nnx.split(filled(lambda rngs: FCCLIP(CONFIG, with_text=False, rngs=rngs), scale=0.2))
    forward = jax.jit(lambda state, *args: nnx.merge(graphdef, state)(*args))
    return functools.partial(forward, state)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return [rng.standard_normal((*size, 3)).astype(np.float32) for size in SIZES]


@pytest.fixture(scope="module")
def alone(run, images):
    return [run(image[None]) for image in images]


def batched(images, filling=0.0, order=None):
    batch = np.full((len(images), *BUCKET, 3), filling, np.float32)
    for i, image in enumerate(images):
        batch[i, : image.shape[0], : image.shape[1]] = image
    extent = np.array([image.shape[:2] for image in images], np.int32)
    return jnp.asarray(batch), jnp.asarray(extent)


def own(x, index, size, stride, channels_last=True):
    """What of a batched map is one image's own."""
    h, w = size[0] // stride, size[1] // stride
    return x[index : index + 1, :h, :w] if channels_last else x[index : index + 1, :, :h, :w]


def check(together, index, size, expected):
    """float32 keeps seven digits; sums run in another order in a batch. Parameters and inputs are of unit scale, and
    so are all values but the logits (up to 100)."""
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    for name, stride in (("res2", 4), ("res3", 8), ("res4", 16), ("res5", 32)):
        close(own(getattr(together.features, name), index, size, stride), getattr(expected.features, name))
    for level, stride in enumerate((32, 16, 8)):
        close(own(together.pixels.input_proj[level], index, size, stride), expected.pixels.input_proj[level])
        close(own(together.pixels.multi_scale[level], index, size, stride), expected.pixels.multi_scale[level])
    close(own(together.pixels.mask_features, index, size, 4), expected.pixels.mask_features)
    for ours, theirs in zip(together.decoder.queries, expected.decoder.queries, strict=True):
        close(ours[index : index + 1], theirs)
    close(own(together.predictions.masks, index, size, 4, False), expected.predictions.masks)
    close(together.predictions.class_embed[index], expected.predictions.class_embed[0])
    close(together.predictions.clip_embed[index], expected.predictions.clip_embed[0])
    np.testing.assert_array_equal(together.predictions.valid[index], expected.predictions.valid[0])


def test_every_stage_is_that_of_the_image_alone(run, images, alone):
    together = run(*batched(images))
    for index, (size, expected) in enumerate(zip(SIZES, alone, strict=True)):
        check(together, index, size, expected)


def test_neither_the_filling_nor_the_place_in_the_batch_matters(run, images, alone):
    order = [3, 2, 1, 0, 4]
    together = run(*batched([images[i] for i in order], filling=50.0))
    for index, i in enumerate(order):
        check(together, index, SIZES[i], alone[i])


def test_the_other_image_tower(images):
    """A ResNet and its attention in masks, where the whole image counts too; what follows a tower is the same."""
    config, queries = TINY_RESNET, 4
    graphdef, state = nnx.split(filled(lambda rngs: ClipResNet(config.vision, config.embed_dim, rngs=rngs), scale=0.2))

    @jax.jit
    def run(state, images, masks, extent=None):
        tower = nnx.merge(graphdef, state)
        features = tower(images, extent)
        pooled, valid = tower.pool(features.res5, masks, extent)
        return vars(features) | {"pooled": pooled, "valid": valid}

    rng = np.random.default_rng(2)
    masks = rng.standard_normal((len(SIZES), queries, BUCKET[0] // 32, BUCKET[1] // 32)).astype(np.float32)
    # Of every image one mask lies outside alone, unless it fills the bucket.
    masks[:, 0] = -1
    masks[1:, 0, -1, -1] = 1
    batch, extent = batched(images, filling=50.0)
    together = run(state, batch, masks, extent)
    # float32 keeps seven digits; sums over up to 256 terms run in another order in a batch.
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    for index, size in enumerate(SIZES):
        inside = masks[index : index + 1, :, : size[0] // 32, : size[1] // 32]
        alone = run(state, images[index][None], inside)
        for name, stride in (("stem", 2), ("res2", 4), ("res3", 8), ("res4", 16), ("res5", 32)):
            close(own(together[name], index, size, stride), alone[name])
        close(together["pooled"][index], alone["pooled"][0])
        np.testing.assert_array_equal(together["valid"][index], alone["valid"][0])
    assert not together["valid"][:, 0].any() and together["valid"].any()
