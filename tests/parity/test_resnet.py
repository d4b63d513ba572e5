"""The ResNet towers against open_clip's, with formula weights: a tiny one, and RN50. FC-CLIP's attention pooling inside
a mask is not part of open_clip: it is put together here from open_clip's weights and PyTorch's own attention."""

import math

import numpy as np
import pytest
from peers import assert_close, need

need("open_clip", "timm")

import open_clip  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from flax import nnx  # noqa: E402
from ours import load, reader, run, towers_state  # noqa: E402

from convert.mapping import plan  # noqa: E402
from convert.name_maps import BATCH_COUNTER, OPEN_CLIP_ROWS  # noqa: E402
from fcclip_jax.models.clip_resnet import ResNetConfig  # noqa: E402
from fcclip_jax.models.clip_text import TextConfig  # noqa: E402
from fcclip_jax.models.fcclip import VARIANTS, Clip, FCCLIPConfig  # noqa: E402
from fcclip_jax.models.weights import parameter_shapes  # noqa: E402
from fcclip_jax.vocabulary import tokenize  # noqa: E402
from tests.formula_weights import fill  # noqa: E402

pytestmark = pytest.mark.parity

# float32 rounds at 6e-8; sums over up to 4600 terms in another order add up through 16 blocks: of the largest value,
# measured 1e-6, and 4e-6 behind the 12 layers of RN50's text tower.
TOLERANCE = 1e-5

PROMPTS = ["a photo of a cat.", "There is a small potted plant in the scene.", "sky", "", "a " * 74]
RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
TINY = FCCLIPConfig(
    name="tiny",
    embed_dim=32,
    vision=ResNetConfig((2, 1, 2, 3), 16, 96),
    text=TextConfig(width=32, heads=2, layers=2, activation="quick_gelu"),
)


def tiny_peer() -> open_clip.CLIP:
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    vision = {"layers": [2, 1, 2, 3], "width": 16, "image_size": 96}
    return open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=True)


def rn50_peer() -> open_clip.CLIP:
    return open_clip.CLIP(**open_clip.get_model_config("RN50"), quick_gelu=True)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((tiny_peer, TINY), id="tiny"),
        pytest.param((rn50_peer, VARIANTS["RN50"]), id="RN50"),
    ],
)
def pair(request):
    """The peer, and ours with its weights."""
    make, config = request.param
    theirs = make().eval()
    with torch.no_grad():
        for name, parameter in theirs.state_dict().items():
            if not name.endswith(BATCH_COUNTER):
                parameter.copy_(torch.from_numpy(fill(name, parameter.shape)))
    return theirs, load(lambda: Clip(config, rngs=nnx.Rngs(0)), "clip", reader(towers_state(theirs))), config


def image_of(*shape):
    return np.random.default_rng(0).standard_normal((2, 3, *shape), np.float32)


def channels_last(image):
    return image.transpose(0, 2, 3, 1)


def their_maps(visual, image):
    x, maps = torch.from_numpy(image), {}
    for n in (1, 2, 3):
        x = getattr(visual, f"act{n}")(getattr(visual, f"bn{n}")(getattr(visual, f"conv{n}")(x)))
    maps["stem"], x = x, visual.avgpool(x)
    for n in (1, 2, 3, 4):
        maps[f"res{n + 1}"] = x = getattr(visual, f"layer{n}")(x)
    return maps


def test_image_features(pair):
    theirs, ours, _ = pair
    image = image_of(64, 96)
    found = run(ours.visual, channels_last(image))
    with torch.inference_mode():
        for name, expected in their_maps(theirs.visual, image).items():
            assert_close(getattr(found, name).transpose(0, 3, 1, 2), expected, relative=TOLERANCE, name=name)


def test_image_embedding(pair):
    # Of the size CLIP was trained on: open_clip's own pooling takes no other.
    theirs, ours, config = pair
    image = image_of(config.vision.image_size, config.vision.image_size)
    found = run(ours.visual, channels_last(image), method="embed")
    with torch.inference_mode():
        assert_close(found, theirs.encode_image(torch.from_numpy(image)), relative=TOLERANCE)


def test_text_embedding(pair):
    theirs, ours, _ = pair
    tokens = tokenize(PROMPTS)
    with torch.inference_mode():
        assert_close(run(ours.text, tokens), theirs.encode_text(torch.from_numpy(tokens).long()), relative=TOLERANCE)


def inside_masks(pool, dense, masks):
    """FC-CLIP's embedding of each mask `[B,Q,h,w]` (bool): keys and values are the cells with their positions, resized
    to the map; the query is the mean of all cells with the first position."""
    channels, height, width = dense.shape[1:]
    first, grid = pool.positional_embedding[0], pool.positional_embedding[1:]
    side = math.isqrt(len(grid))
    grid = grid.T.reshape(1, channels, side, side)
    positions = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)
    cells = (dense + positions).flatten(2).transpose(1, 2)
    query = (dense.mean((2, 3)) + first)[:, None].expand(-1, masks.shape[1], -1)

    def heads(x):
        return x.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        heads(pool.q_proj(query)), heads(pool.k_proj(cells)), heads(pool.v_proj(cells)), masks.flatten(2)[:, None]
    )
    return pool.c_proj(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (7, 7), (8, 5)])
def test_embedding_inside_masks(pair, shape):
    """Maps smaller than the grid of positions, of its size, and larger; masks of one cell, of some, of all."""
    theirs, ours, config = pair
    rng = np.random.default_rng(1)
    dense = rng.standard_normal((2, config.vision.widths[-1], *shape), np.float32)
    logits = rng.standard_normal((2, 6, *shape), np.float32)
    logits[:, 0], logits[:, 1] = 1.0, -1.0
    logits[:, 1, 1, 2] = logits[:, 2:, 0, 0] = 0.5
    found, valid = run(ours.visual, channels_last(dense), logits, method="pool")
    found = run(ours.visual, found, method="project")
    masks = torch.from_numpy(logits) > 0
    np.testing.assert_array_equal(valid, masks.flatten(2).any(2))
    with torch.inference_mode():
        expected = inside_masks(theirs.visual.attnpool, torch.from_numpy(dense), masks)
    assert valid.all()
    assert_close(found, expected, relative=TOLERANCE)


@pytest.mark.parametrize("name", RESNETS)
def test_names_and_shapes_of_every_size(name):
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip.get_model_config(name), quick_gelu=True)
    expected = {k: tuple(v.shape) for k, v in theirs.state_dict().items() if not k.endswith(BATCH_COUNTER)}
    steps = plan(OPEN_CLIP_ROWS, parameter_shapes(VARIANTS[name], towers_only=True))
    assert {step.source: step.shapes[0] for step in steps} == expected
    config = open_clip.get_model_config(name)
    assert VARIANTS[name].text.heads == config["text_cfg"]["heads"]
    assert VARIANTS[name].vision.image_size == config["vision_cfg"]["image_size"]
    assert VARIANTS[name].vision.heads == theirs.visual.attnpool.num_heads
