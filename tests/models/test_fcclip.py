"""The spine and the table of variants: every size without allocating it, and the configuration on its way to disk."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.models import weights
from fcclip_jax.models.clip_resnet import ResNetConfig
from fcclip_jax.models.clip_text import TextConfig
from fcclip_jax.models.clip_vision import ClipVision, VisionConfig
from fcclip_jax.models.fcclip import VARIANTS, FCCLIPConfig
from fcclip_jax.models.pixel_decoder import PixelDecoderConfig, _pixel_centres, _ring_offsets
from fcclip_jax.models.transformer_decoder import TransformerDecoderConfig
from tests.formula_weights import read_manifest
from tests.models.modules import filled

# Arrays and numbers in them. In the original's format query, key and value are one array, and there is one more entry,
# the 134 loss weights of its criterion; the numbers are otherwise the same.
SIZES = {
    "convnext_base_w": (915, 199_828_162),
    "convnext_base_w_320": (915, 199_828_162),
    "convnext_large_d": (981, 372_494_210),
    "convnext_large_d_320": (981, 372_494_210),
    "convnext_xxlarge": (1143, 1_222_101_314),
    "RN50": (856, 123_093_794),
    "RN101": (1111, 140_694_818),
    "RN50x4": (1006, 199_590_458),
    "RN50x16": (1216, 312_632_018),
    "RN50x64": (1576, 645_685_378),
    "convnext_tiny_test": (259, 2_240_434),
}
LOSS_WEIGHTS = 134


# The others differ from one of these in the size of CLIP's training images alone.
RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
SHAPES_APART = ("convnext_base_w_320", "convnext_large_d_320", "convnext_xxlarge", "convnext_tiny_test", *RESNETS)


@functools.cache
def parameter_shapes(name):
    return weights.parameter_shapes(VARIANTS[name])


def numbers_in(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


def test_every_variant_is_in_these_tables():
    assert SIZES.keys() == VARIANTS.keys()
    assert all(config.name == name for name, config in VARIANTS.items())

    def arrays(config):
        return dataclasses.replace(config, name="", vision=dataclasses.replace(config.vision, image_size=0))

    assert {arrays(VARIANTS[name]) for name in SHAPES_APART} == {arrays(config) for config in VARIANTS.values()}


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name):
    shapes = parameter_shapes(name)
    assert (len(shapes), numbers_in(shapes)) == SIZES[name]


@pytest.mark.parametrize("name", ["convnext_base_w_320", "convnext_large_d_320", "RN50"])
def test_parameters_of_the_released_checkpoints(name, golden):
    manifest = read_manifest(golden / "manifests" / f"fcclip_{name}.json.gz")
    # Apart from what counts the batches of a BatchNorm.
    released = {key: shape for key, (shape, dtype) in manifest.items() if dtype == "float32"}
    assert numbers_in(released) - LOSS_WEIGHTS == SIZES[name][1]


@pytest.mark.parametrize("name", ["convnext_base_w_320", "convnext_large_d", "convnext_xxlarge", "RN50"])
def test_parameters_of_open_clip(name, golden):
    manifest = read_manifest(golden / "manifests" / f"openclip_{name}.json.gz")
    towers = {key: shape for key, shape in parameter_shapes(name).items() if key.startswith("clip.")}
    theirs = {key: shape for key, (shape, dtype) in manifest.items() if dtype == "float32"}
    assert numbers_in(theirs) == numbers_in(towers)


def plain(record):
    """A record as dictionaries: its own class refuses shapes in place of arrays while the tests run."""
    return {key: plain(value) if dataclasses.is_dataclass(value) else value for key, value in vars(record).items()}


def shapes_of(config, size, *, words=(5, 3), dtype=jnp.float32):
    """What a forward pass and a classification give, as shapes; `words` are synonyms and classes."""
    graphdef, state = weights._abstract(config, dtype)

    def run(state, images, *words):
        model = nnx.merge(graphdef, state)
        out = model(images)
        return plain(out) | plain(model.classify(out.predictions, *words))

    inputs = [(1, *size, 3), (words[0], config.embed_dim), (words[0],), (words[1],)]
    types = [jnp.float32, jnp.float32, jnp.int32, bool]
    return jax.eval_shape(run, state, *map(jax.ShapeDtypeStruct, inputs, types))


# The other ResNets are of the same parts, and each takes seconds to trace.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("RN101", "RN50x4", "RN50x16") else name
        for name in SHAPES_APART
    ],
)
def test_shapes_of_a_forward_pass(name):
    config = VARIANTS[name]
    queries, width, embed = config.transformer_decoder.queries, config.pixel_decoder.width, config.embed_dim
    out = shapes_of(config, (800, 1216))
    for stage, (key, channels) in enumerate(zip(("res2", "res3", "res4", "res5"), config.vision.widths, strict=True)):
        stride = 4 * 2**stage
        assert out["features"][key].shape == (1, 800 // stride, 1216 // stride, channels)
    assert out["pixels"]["mask_features"].shape == (1, 200, 304, width)
    scales = [x.shape for x in out["pixels"]["multi_scale"]]
    assert scales == [(1, 25, 38, width), (1, 50, 76, width), (1, 100, 152, width)]
    found = out["predictions"]
    assert found["masks"].shape == (1, queries, 200, 304)
    assert found["class_embed"].shape == found["clip_embed"].shape == (1, queries, embed)
    assert found["valid"].shape == (1, queries) and found["valid"].dtype == bool
    assert len(out["decoder"]["masks"]) == config.transformer_decoder.layers + 1
    for key in ("in_vocabulary", "out_vocabulary", "class_log_probs"):
        assert out[key].shape == (1, queries, 3 + 1)


def test_half_precision_keeps_results_in_float32():
    out = shapes_of(VARIANTS["convnext_tiny_test"], (64, 64), dtype=jnp.bfloat16)
    assert out["features"]["res5"].dtype == out["decoder"]["queries"][-1].dtype == jnp.bfloat16
    found = out["predictions"]
    kept = (out["pixels"]["mask_features"], found["masks"], found["class_embed"], found["clip_embed"])
    assert all(x.dtype == jnp.float32 for x in (*kept, out["class_log_probs"]))


@pytest.mark.parametrize("height, width", [(63, 64), (64, 48)])
def test_sizes_that_are_no_multiples_of_32_are_refused(height, width):
    with pytest.raises(ValueError, match=f"{height} x {width}: both must be multiples of 32"):
        shapes_of(VARIANTS["convnext_tiny_test"], (height, width))


def test_the_training_step_goes_without_the_text_tower():
    from fcclip_jax.models.fcclip import FCCLIP

    model = nnx.eval_shape(lambda: FCCLIP(VARIANTS["convnext_tiny_test"], with_text=False, rngs=nnx.Rngs(0)))
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))}
    whole = set(parameter_shapes("convnext_tiny_test"))
    assert whole - names == {name for name in whole if name.startswith("clip.text.")} != set()


# ------------------------------------------------------------------------------------------------ configuration

whole = st.integers(1, 10**6)
share = st.floats(0, 1)
configs = st.builds(
    FCCLIPConfig,
    name=st.text(max_size=30),
    embed_dim=whole,
    vision=st.one_of(
        st.builds(
            VisionConfig,
            st.tuples(*[whole] * 4),
            st.tuples(*[whole] * 4),
            st.sampled_from(["mlp", "linear"]),
            whole,
            st.floats(1e-12, 1),
        ),
        st.builds(ResNetConfig, st.tuples(*[whole] * 4), whole, whole),
    ),
    text=st.builds(TextConfig, whole, whole, whole, whole, whole, st.sampled_from(["gelu", "quick_gelu"])),
    pixel_decoder=st.builds(PixelDecoderConfig, whole, whole, whole, whole, whole),
    transformer_decoder=st.builds(TransformerDecoderConfig, whole, whole, whole, whole, whole),
    alpha=share,
    beta=share,
    ensemble_on_valid_mask=st.booleans(),
)


@settings(deadline=None, max_examples=50)
@given(configs)
def test_a_configuration_survives_json(config):
    again = FCCLIPConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_survives_json(name):
    assert FCCLIPConfig.from_dict(json.loads(json.dumps(VARIANTS[name].to_dict()))) == VARIANTS[name]


def test_a_configuration_of_before_there_were_resnets():
    values = VARIANTS["convnext_tiny_test"].to_dict()
    assert values["text"].pop("activation") == "gelu"
    assert FCCLIPConfig.from_dict(values) == VARIANTS["convnext_tiny_test"]


def _without_depths(values):
    del values["vision"]["depths"]


@pytest.mark.parametrize(
    "damage",
    [
        _without_depths,
        lambda values: values.pop("name"),
        lambda values: values.pop("text"),
        lambda values: values.update(gamma=1),
        lambda values: values["vision"].update(patch=16),
        lambda values: values["vision"].update(width=16),
        lambda values: values["text"].update(tokens=3),
        lambda values: values.update(pixel_decoder=None),
        lambda values: values.update(transformer_decoder=[1, 2]),
    ],
)
def test_a_configuration_with_a_wrong_field_is_refused(damage):
    values = VARIANTS["convnext_tiny_test"].to_dict()
    damage(values)
    with pytest.raises(ValueError, match="not an FC-CLIP configuration"):
        FCCLIPConfig.from_dict(values)


# --------------------------------------------------------------------------------------------- towers, pieces


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_the_image_embedding_is_the_projected_mean_of_the_last_stage(head):
    config = VisionConfig((0, 0, 0, 0), (4, 4, 8, 8), head, 32)
    tower = filled(lambda rngs: ClipVision(config, 6, rngs=rngs))
    images = jax.random.normal(jax.random.key(0), (2, 32, 64, 3))
    features, embedded = jax.jit(lambda x: (tower(x), tower.embed(x)))(images)
    assert features.res5.shape == (2, 1, 2, 8)
    pooled = np.asarray(features.res5, np.float64).mean((1, 2))
    normed = (pooled - pooled.mean(-1, keepdims=True)) / np.sqrt(pooled.var(-1, keepdims=True) + 1e-6)
    normed = normed * np.asarray(tower.head_norm.scale[...]) + np.asarray(tower.head_norm.bias[...])
    if head == "mlp":
        hidden = normed @ np.asarray(tower.head_fc1.kernel[...]) + np.asarray(tower.head_fc1.bias[...])
        gelu = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        expected = gelu @ np.asarray(tower.head_fc2.kernel[...])
        assert tower.head_fc2.bias is None
    else:
        expected = normed @ np.asarray(tower.head_linear.kernel[...])
    # Normalising divides by the spread of the pooled vector, which amplifies float32's rounding.
    np.testing.assert_allclose(embedded, expected, atol=1e-4)


def test_pixel_centres_by_hand():
    expected = [[0.25, 1 / 6], [0.75, 1 / 6], [0.25, 0.5], [0.75, 0.5], [0.25, 5 / 6], [0.75, 5 / 6]]
    np.testing.assert_allclose(_pixel_centres(3, 2), expected, rtol=1e-6)


def test_sampling_begins_on_a_ring():
    offsets = _ring_offsets(4, 2).reshape(4, 3, 2, 2)
    # Four heads look right, down, left, up; point p at p + 1 pixels; the same on each of the three levels.
    for head, direction in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for level in range(3):
            np.testing.assert_allclose(offsets[head, level], [direction, np.multiply(2, direction)], atol=1e-6)
    # Diagonals reach as far along both axes.
    np.testing.assert_allclose(_ring_offsets(8, 1).reshape(8, 3, 2)[1, 0], [1, 1], rtol=1e-6)
