import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.models.clip_vit import ClipViT, ViTConfig
from fcclip_jax.models.fcclip import EMOJI_VARIANTS, FCCLIPConfig
from fcclip_jax.ops.resize import resize_bilinear
from fcclip_jax.training.flops import product_flops
from tests.models.modules import filled

CONFIG = ViTConfig(width=8, heads=2, layers=2, image_size=64)


@pytest.fixture(scope="module")
def tower():
    return filled(lambda rngs: ClipViT(CONFIG, 6, rngs=rngs), scale=0.2)


def test_maps_have_the_strides_of_the_record(tower):
    features = tower(jnp.ones((1, 64, 96, 3)))
    assert [x.shape for x in (features.res2, features.res3, features.res4, features.res5)] == [
        (1, 16, 24, 8),
        (1, 8, 12, 8),
        (1, 4, 6, 8),
        (1, 2, 3, 8),
    ]
    # Of one layer: res5 is the mean of four cells of res4, and of sixteen of res3.
    for finer, times in ((features.res4, 2), (features.res3, 4)):
        cells = np.asarray(finer).reshape(1, 2, times, 3, times, 8).mean((2, 4))
        np.testing.assert_allclose(features.res5, cells, atol=1e-5)  # means of float32 of order 1


def test_positions_are_stretched_as_the_resize_does(tower):
    found = tower._positions(jnp.array([[96, 160]]), 6, 10)
    expected = resize_bilinear(tower.positional_embedding[...], 6, 10, axes=(0, 1))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)  # the same two products in another order


def test_an_image_is_the_same_in_a_larger_batch(tower):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, 64, 32, 3)).astype(np.float32)
    stored = rng.standard_normal((2, 96, 96, 3)).astype(np.float32)
    stored[:1, :64, :32] = image
    alone, among = tower(jnp.asarray(image)), tower(jnp.asarray(stored), jnp.array([[64, 32], [96, 96]]))
    np.testing.assert_allclose(among.res5[:1, :2, :1], alone.res5, atol=1e-5)  # sums over more, zero, terms
    assert not among.res5[0, 2:].any() and not among.res5[0, :, 1:].any()


def test_both_towers_cost_about_the_same():
    """Products of one image of 192 pixels, counted in the traced program; depthwise taps are no products."""
    flops = {}
    for name, config in EMOJI_VARIANTS.items():
        from flax import nnx

        from fcclip_jax.models.fcclip import Clip

        graphdef, state = nnx.split(nnx.eval_shape(lambda c=config: Clip(c, with_text=False, rngs=nnx.Rngs(0))))
        embed = lambda state, x, g=graphdef: nnx.merge(g, state).visual.embed(x)  # noqa: E731
        traced = jax.jit(embed).trace(state, jax.ShapeDtypeStruct((1, 192, 192, 3), jnp.float32))
        flops[name] = product_flops(traced.jaxpr)
    assert flops["vit_emoji"] == pytest.approx(flops["convnext_emoji"], rel=0.15)


def test_configurations_survive_json():
    for config in EMOJI_VARIANTS.values():
        assert FCCLIPConfig.from_dict(config.to_dict()) == config
