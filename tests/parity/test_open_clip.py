"""Both frozen towers against open_clip's, with formula weights: a tiny model, and the real base size."""

import numpy as np
import pytest
from peers import assert_close, need

need("open_clip", "timm")

import open_clip  # noqa: E402
import torch  # noqa: E402
from flax import nnx  # noqa: E402
from ours import load, reader, run, towers_state  # noqa: E402

from fcclip_jax.models.clip_text import TextConfig  # noqa: E402
from fcclip_jax.models.clip_vision import VisionConfig  # noqa: E402
from fcclip_jax.models.fcclip import VARIANTS, Clip, FCCLIPConfig  # noqa: E402
from fcclip_jax.vocabulary import tokenize  # noqa: E402
from tests.formula_weights import fill  # noqa: E402

pytestmark = pytest.mark.parity

# float32 rounds at 6e-8; sums over up to 4096 terms in another order, through the depth of the towers, add up: of the
# largest value, measured 1e-6 (tiny) and 3e-6 (base, 36 blocks). In the tiny one a LayerNorm epsilon of 1e-5 for 1e-6
# shows as 1e-5, the approximate GELU as 5e-5.
TINY_TOLERANCE, BASE_TOLERANCE = 5e-6, 1e-5

PROMPTS = ["a photo of a cat.", "There is a small potted plant in the scene.", "sky", "", "a " * 74]

TINY = FCCLIPConfig(
    name="convnext_atto",
    embed_dim=32,
    vision=VisionConfig((2, 2, 6, 2), (40, 80, 160, 320), "mlp", 64),
    text=TextConfig(width=32, heads=2, layers=2),
)


def tiny_peer() -> open_clip.CLIP:
    return open_clip.CLIP(
        embed_dim=32,
        vision_cfg={
            "timm_model_name": "convnext_atto",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "mlp",
            "image_size": 64,
        },
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    )


def base_peer() -> open_clip.CLIP:
    return open_clip.CLIP(**open_clip.get_model_config("convnext_base_w"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((tiny_peer, TINY, (64, 96), TINY_TOLERANCE), id="tiny"),
        pytest.param(
            (base_peer, VARIANTS["convnext_base_w"], (128, 128), BASE_TOLERANCE), id="base_w", marks=pytest.mark.slow
        ),
    ],
)
def pair(request):
    """The peer, ours with its weights, an input image `[2,3,H,W]`, and the tolerance."""
    make, config, size, tolerance = request.param
    theirs = make().eval()
    with torch.no_grad():
        for name, parameter in theirs.state_dict().items():
            parameter.copy_(torch.from_numpy(fill(name, parameter.shape)))
    ours = load(lambda: Clip(config, rngs=nnx.Rngs(0)), "clip", reader(towers_state(theirs)))
    return theirs, ours, np.random.default_rng(0).standard_normal((2, 3, *size), np.float32), tolerance


def test_image_features(pair):
    theirs, ours, image, tolerance = pair
    found = run(ours.visual, image.transpose(0, 2, 3, 1))
    trunk = theirs.visual.trunk
    with torch.inference_mode():
        x = trunk.stem(torch.from_numpy(image))
        assert_close(found.stem.transpose(0, 3, 1, 2), x, relative=tolerance, name="stem")
        for stage, name in zip(trunk.stages, ("res2", "res3", "res4", "res5"), strict=True):
            x = stage(x)
            assert_close(getattr(found, name).transpose(0, 3, 1, 2), x, relative=tolerance, name=name)
        # FC-CLIP's dense map is what comes out of the trunk: no norm follows the last stage.
        np.testing.assert_array_equal(trunk.norm_pre(x), x)


def test_image_embedding(pair):
    theirs, ours, image, tolerance = pair
    found = run(ours.visual, image.transpose(0, 2, 3, 1), method="embed")
    with torch.inference_mode():
        expected = theirs.encode_image(torch.from_numpy(image))
    assert_close(found, expected, relative=tolerance)


def test_text_embedding(pair):
    theirs, ours, _, tolerance = pair
    tokens = tokenize(PROMPTS)
    with torch.inference_mode():
        expected = theirs.encode_text(torch.from_numpy(tokens).long())
    assert_close(run(ours.text, tokens), expected, relative=tolerance)
    # Cut behind the longest prompt of a batch: nothing changes, attention being causal.
    assert_close(run(ours.text, tokens[:4, :16]), expected[:4], relative=tolerance, name="cut")


def test_logit_scale(pair):
    theirs, ours, _, _ = pair
    assert float(ours.logit_scale[...]) == theirs.logit_scale.item()
