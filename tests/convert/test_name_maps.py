"""The name maps: complete both ways for every variant, and every array in the layout it should have."""

import dataclasses
import functools
import re

import numpy as np
import pytest
from checkpoints import GOLDEN, MANIFESTS
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.mapping import plan
from convert.name_maps import (
    EMPTY_WEIGHT,
    FCCLIP_IGNORED,
    FCCLIP_PREFIX,
    FCCLIP_ROWS,
    OPEN_CLIP_IGNORED,
    OPEN_CLIP_ROWS,
)
from convert.transforms import TRANSFORMS
from fcclip_jax.models.fcclip import VARIANTS
from fcclip_jax.models.weights import parameter_shapes
from tests.formula_weights import fill, read_manifest

FCCLIP = {
    "convnext_tiny_test": GOLDEN / "manifest_tiny.json",
    "convnext_base_w_320": MANIFESTS / "fcclip_convnext_base_w_320.json.gz",
    "convnext_large_d_320": MANIFESTS / "fcclip_convnext_large_d_320.json.gz",
    "RN50": MANIFESTS / "fcclip_RN50.json.gz",
}
# Image size is not in the shapes: the other variant has the same arrays.
OPEN_CLIP = {
    "convnext_base_w": MANIFESTS / "openclip_convnext_base_w_320.json.gz",
    "convnext_base_w_320": MANIFESTS / "openclip_convnext_base_w_320.json.gz",
    "convnext_large_d": MANIFESTS / "openclip_convnext_large_d.json.gz",
    "convnext_large_d_320": MANIFESTS / "openclip_convnext_large_d.json.gz",
    "convnext_xxlarge": MANIFESTS / "openclip_convnext_xxlarge.json.gz",
    "RN50": MANIFESTS / "openclip_RN50.json.gz",
}


@functools.cache
def all_shapes(name):
    return parameter_shapes(VARIANTS[name])


def tower_shapes(name):
    return {target: shape for target, shape in all_shapes(name).items() if target.startswith("clip.")}


def parameters_of(manifest):
    """Without what counts the batches of a BatchNorm, which no row has."""
    entries = read_manifest(manifest).items()
    return {key: shape for key, (shape, dtype) in entries if dtype == "float32"}


def sources(steps):
    return [(step.source, step.shapes[0]) for step in steps]


@pytest.mark.parametrize("name", FCCLIP)
def test_fcclip_map_is_the_state_dict_in_its_order(name):
    manifest = parameters_of(FCCLIP[name])
    manifest.pop(EMPTY_WEIGHT)
    assert sources(plan(FCCLIP_ROWS, all_shapes(name))) == list(manifest.items())


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip_map_is_the_state_dict_in_its_order(name):
    manifest = parameters_of(OPEN_CLIP[name])
    assert sources(plan(OPEN_CLIP_ROWS, tower_shapes(name))) == list(manifest.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_of_every_variant_is_filled_once(name):
    shapes = all_shapes(name)
    steps = plan(FCCLIP_ROWS, shapes)
    filled = [target for step in steps for target in step.targets]
    assert sorted(filled) == sorted(shapes)
    assert len({step.source for step in steps}) == len(steps)


@pytest.mark.parametrize(
    ("path", "rows", "ignored"),
    [*((path, FCCLIP_ROWS, FCCLIP_IGNORED) for path in FCCLIP.values())]
    + [(path, OPEN_CLIP_ROWS, OPEN_CLIP_IGNORED) for path in {*OPEN_CLIP.values()}],
)
def test_every_source_name_matches_exactly_one_row(path, rows, ignored):
    names = [theirs for theirs, _, _ in rows] + [row.name for row in ignored] + [EMPTY_WEIGHT]
    patterns = [re.sub(r"\\{[ij]\\}", "[0-9]+", re.escape(name)) for name in names]
    for name in read_manifest(path):
        assert sum(bool(re.fullmatch(pattern, name)) for pattern in patterns) == 1, name


def test_rows_are_well_formed():
    for rows in (FCCLIP_ROWS, OPEN_CLIP_ROWS):
        assert len({theirs for theirs, _, _ in rows}) == len({ours for _, ours, _ in rows}) == len(rows)
        for theirs, ours, kind in rows:
            assert kind in TRANSFORMS
            assert re.findall(r"{\w}", theirs) == re.findall(r"{\w}", ours)
            assert ("*" in ours) == kind.startswith("qkv")


def test_a_map_that_does_not_fit_the_model_is_an_error():
    shapes = all_shapes("convnext_tiny_test")
    with pytest.raises(ValueError, match=r"not exactly one row of the map for: void_embedding \(0 rows\)"):
        plan(FCCLIP_ROWS[:-1], shapes)
    with pytest.raises(ValueError, match=r"void_embedding \(2 rows\)"):
        plan([*FCCLIP_ROWS, ("another", "void_embedding", "identity")], shapes)
    without = {name: shape for name, shape in shapes.items() if not name.endswith("0.self_attention.key.bias")}
    with pytest.raises(ValueError, match="needs the parameter transformer_decoder"):
        plan(FCCLIP_ROWS, without)


def test_numbers_are_counted_not_spelled():
    """With eleven layers, layer 10 comes behind layer 9, not behind layer 1."""
    config = VARIANTS["convnext_tiny_test"]
    config = dataclasses.replace(config, transformer_decoder=dataclasses.replace(config.transformer_decoder, layers=11))
    steps = plan(FCCLIP_ROWS, parameter_shapes(config))
    layers = [int(m[1]) for step in steps if (m := re.search(r"ffn_layers\.(\d+)\.norm\.bias", step.source))]
    assert layers == list(range(11))


# Ours from theirs, by hand: the meaning of an axis is what a wrong pair of inverses would still get wrong.
BY_HAND = {
    "clip.visual.stem.kernel": (
        FCCLIP_PREFIX + "visual.trunk.stem.0.weight",
        lambda a: np.einsum("oihw->hwio", a),
    ),
    "clip.visual.stages.3.downsample.kernel": (
        FCCLIP_PREFIX + "visual.trunk.stages.3.downsample.1.weight",
        lambda a: np.einsum("oihw->hwio", a),
    ),
    "clip.visual.stages.2.blocks.1.depthwise.kernel": (
        FCCLIP_PREFIX + "visual.trunk.stages.2.blocks.1.conv_dw.weight",
        lambda a: np.einsum("cxhw->hwc", a),
    ),
    "clip.visual.stages.2.blocks.1.fc1.kernel": (
        FCCLIP_PREFIX + "visual.trunk.stages.2.blocks.1.mlp.fc1.weight",
        lambda a: np.einsum("oi->io", a),
    ),
    "clip.text.blocks.1.attention.query.kernel": (
        FCCLIP_PREFIX + "transformer.resblocks.1.attn.in_proj_weight",
        lambda a: np.einsum("oi->io", a[:32]),
    ),
    "clip.text.blocks.1.attention.key.kernel": (
        FCCLIP_PREFIX + "transformer.resblocks.1.attn.in_proj_weight",
        lambda a: np.einsum("oi->io", a[32:64]),
    ),
    "clip.text.blocks.0.attention.value.bias": (
        FCCLIP_PREFIX + "transformer.resblocks.0.attn.in_proj_bias",
        lambda a: a[64:],
    ),
    "clip.text.text_projection": (FCCLIP_PREFIX + "text_projection", lambda a: a),
    "clip.logit_scale": (FCCLIP_PREFIX + "logit_scale", lambda a: a),
    "pixel_decoder.input_proj.0.kernel": (
        "sem_seg_head.pixel_decoder.input_proj.0.0.weight",
        lambda a: np.einsum("oixy->io", a),
    ),
    "pixel_decoder.lateral.kernel": ("sem_seg_head.pixel_decoder.adapter_1.weight", lambda a: a[:, :, 0, 0].T),
    "pixel_decoder.output.kernel": (
        "sem_seg_head.pixel_decoder.layer_1.weight",
        lambda a: np.einsum("oihw->hwio", a),
    ),
    "transformer_decoder.layers.1.cross_attention.value.kernel": (
        "sem_seg_head.predictor.transformer_cross_attention_layers.1.multihead_attn.in_proj_weight",
        lambda a: np.einsum("oi->io", a[64:]),
    ),
    "transformer_decoder.pool_norm.scale": ("sem_seg_head.predictor._mask_pooling_proj.0.weight", lambda a: a),
    "transformer_decoder.query_embed": ("sem_seg_head.predictor.query_embed.weight", lambda a: a),
}


@pytest.mark.parametrize("target", BY_HAND)
def test_layouts_by_hand(target):
    source, by_hand = BY_HAND[target]
    steps = {t: (step, i) for step in plan(FCCLIP_ROWS, TINY) for i, t in enumerate(step.targets)}
    step, part = steps[target]
    assert step.source == source
    theirs = fill(source, step.shapes[0])
    ours = step.transform.to_ours(theirs)[part]
    assert ours.shape == TINY[target]
    np.testing.assert_array_equal(ours, by_hand(theirs), strict=True)


TINY = all_shapes("convnext_tiny_test")

SHAPES = {
    "identity": "abc",
    "scalar": "",
    "linear": "ab",
    "conv": "abcd",
    "depthwise": "abc",
    "pointwise": "ab",
    "qkv_weight": "ab",
    "qkv_bias": "a",
}


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(sorted(TRANSFORMS)), sizes=st.tuples(*[st.integers(1, 5)] * 4), seed=st.integers(0, 99))
def test_transforms_and_their_inverses(kind, sizes, seed):
    """Both ways give the same bits, and the announced shapes are the true ones."""
    transform = TRANSFORMS[kind]
    shape = sizes[: len(SHAPES[kind])]
    parts = 3 if kind.startswith("qkv") else 1
    ours = [np.random.default_rng([seed, i]).random(shape, np.float32) for i in range(parts)]
    theirs = transform.to_theirs(*ours)
    assert theirs.shape == transform.their_shapes(*[shape] * parts)[0]
    for mine, back in zip(ours, transform.to_ours(theirs), strict=True):
        np.testing.assert_array_equal(back, mine, strict=True)


def test_a_scalar_may_have_an_axis():
    transform = TRANSFORMS["scalar"]
    assert transform.their_shapes(()) == ((), (1,))
    (ours,) = transform.to_ours(np.array([4.5], np.float32))
    assert ours.shape == () and ours == np.float32(4.5)
