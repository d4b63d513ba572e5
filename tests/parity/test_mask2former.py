"""Pixel decoder and transformer decoder against transformers' Mask2Former, with formula weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from peers import assert_close, need

need("open_clip", "timm", "transformers")

import mask2former_names as names  # noqa: E402
import torch  # noqa: E402
import torch_fcclip as peer  # noqa: E402
from flax import nnx  # noqa: E402
from ours import load, reader, run  # noqa: E402

from fcclip_jax.models.pixel_decoder import PixelDecoder, PixelDecoderConfig  # noqa: E402
from fcclip_jax.models.transformer_decoder import TransformerDecoder, TransformerDecoderConfig  # noqa: E402
from fcclip_jax.structures import Features, PixelDecoderOutput  # noqa: E402
from tests.formula_weights import fill  # noqa: E402

pytestmark = pytest.mark.parity

# float32 rounds at 6e-8; each layer adds a few roundings of sums over 64 to 256 terms (measured: 9e-7 of the largest
# value at most). An epsilon of 1e-3 for 1e-6 in the position encoding shows as 2e-5.
TOLERANCE = 5e-6

CHANNELS = (40, 80, 160, 320)
PIXELS = PixelDecoderConfig(width=64, layers=3, heads=4, feedforward=96)
# Five layers: the three scales, and the first two again.
DECODER = TransformerDecoderConfig(width=64, queries=12, layers=5, heads=4, feedforward=160)
EMBED = 32


def config():
    """The same sizes in transformers' words; it counts the prediction before the first layer as a layer."""
    return peer.mask2former_config(
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        num_attention_heads=4,
        encoder_layers=3,
        encoder_feedforward_dim=96,
        decoder_layers=6,
        dim_feedforward=160,
        num_queries=12,
    )


def formula(name, shape):
    return torch.from_numpy(fill(name, shape))


def arrays(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def maps(channels, height=96, width=128, strides=(4, 8, 16, 32)):
    rng = np.random.default_rng(3)
    return [
        rng.standard_normal((2, c, height // s, width // s), np.float32) for c, s in zip(channels, strides, strict=True)
    ]


def test_the_name_table_is_strict():
    with pytest.raises(KeyError, match=r"fc9\.weight: 0 rows"):
        names.released_name("encoder.layers.0.fc9.weight", names.PIXEL_DECODER_ROWS, names.PIXEL_DECODER)


def test_pixel_decoder():
    theirs = peer.Mask2FormerPixelDecoder(config(), feature_channels=list(CHANNELS)).eval()
    peer.fill(theirs, lambda n: names.released_name(n, names.PIXEL_DECODER_ROWS, names.PIXEL_DECODER), formula)
    state = names.to_released(arrays(theirs), names.PIXEL_DECODER_ROWS, names.PIXEL_DECODER)
    ours = load(lambda: PixelDecoder(PIXELS, CHANNELS, rngs=nnx.Rngs(0)), "pixel_decoder", reader(state))
    features = maps(CHANNELS)
    found = run(ours, Features(nhwc(features[0]), *map(nhwc, features)))
    with torch.inference_mode():
        expected = theirs([torch.from_numpy(x) for x in features], output_hidden_states=False, return_dict=True)
    assert_close(nchw(found.mask_features), expected.mask_features, relative=TOLERANCE, name="mask_features")
    for i, scale in enumerate(expected.multi_scale_features):
        assert_close(nchw(found.multi_scale[i]), scale, relative=TOLERANCE, name=f"scale {i}")


@pytest.fixture(scope="module")
def decoders():
    """The queries and masks of every layer, theirs and ours, on the same random pixel decoder output."""
    theirs = peer.Mask2FormerTransformerModule(in_features=64, config=config()).eval()
    head = peer.ClassHead(64, EMBED).eval()
    peer.fill(theirs, lambda n: names.released_name(n, names.DECODER_ROWS, names.PREDICTOR), formula)
    peer.fill(head, lambda n: (names.PREDICTOR + n, None), formula)
    state = names.to_released(arrays(theirs), names.DECODER_ROWS, names.PREDICTOR)
    state |= {names.PREDICTOR + name: value for name, value in arrays(head).items()}
    ours = load(lambda: TransformerDecoder(DECODER, EMBED, rngs=nnx.Rngs(0)), "transformer_decoder", reader(state))
    mask_features, *multi_scale = maps([64] * 4, strides=(4, 32, 16, 8))
    pixels = PixelDecoderOutput(nhwc(mask_features), tuple(map(nhwc, multi_scale)), (), ())
    with torch.inference_mode():
        expected = theirs(
            [torch.from_numpy(x) for x in multi_scale], torch.from_numpy(mask_features), output_hidden_states=True
        )
    return expected, run(ours, pixels), head, torch.from_numpy(mask_features)


def test_no_attention_hangs_on_a_rounding(decoders):
    """The masks decide by their sign where the next layer may look. Were a logit zero within the rounding, a
    flipped pixel would be as right as the other; these weights leave a margin, so the comparisons below are fair."""
    expected = decoders[0]
    sizes = [(3, 4), (6, 8), (12, 16)]
    for layer, masks in enumerate(expected.masks_queries_logits[:-1]):
        resized = torch.nn.functional.interpolate(masks, sizes[layer % 3], mode="bilinear", align_corners=False)
        assert resized.abs().min() > 2e-5
        assert 0.05 < (resized < 0).float().mean() < 0.99


@pytest.mark.parametrize("layer", range(6))
def test_decoder_queries(decoders, layer):
    expected, found, _, _ = decoders
    theirs = expected.hidden_states[layer].transpose(0, 1)
    assert_close(found.queries[layer], theirs, relative=TOLERANCE, name=f"layer {layer}")


@pytest.mark.parametrize("layer", range(6))
def test_decoder_masks(decoders, layer):
    expected, found, _, _ = decoders
    assert_close(found.masks[layer], expected.masks_queries_logits[layer], relative=TOLERANCE, name=f"layer {layer}")


@pytest.mark.parametrize("layer", range(6))
def test_class_embeddings(decoders, layer):
    """FC-CLIP's own head, which transformers lacks: against the torch peer's, on transformers' queries and masks."""
    expected, found, head, mask_features = decoders
    masks = expected.masks_queries_logits[layer]
    with torch.inference_mode():
        queries = expected.intermediate_hidden_states[layer].transpose(0, 1)
        theirs = torch.cat([head(queries[i : i + 1], masks[i : i + 1], mask_features[i : i + 1]) for i in range(2)])
    # A query with a mask logit of zero within the rounding may pool one pixel more or less: left out.
    settled = (masks.abs().amin((-1, -2)) > 1e-5).numpy()
    assert settled.mean() > 0.8
    assert_close(np.asarray(found.class_embeds[layer])[settled], theirs[settled], relative=TOLERANCE)
