"""One image through every box of the figure: ours against the torch peer, both with the same formula weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from peers import assert_close, need

need("open_clip", "timm", "transformers")

import torch  # noqa: E402
import torch_fcclip as peer  # noqa: E402
from flax import nnx  # noqa: E402
from ours import load, run  # noqa: E402

from fcclip_jax.models.clip_text import TextConfig  # noqa: E402
from fcclip_jax.models.clip_vision import VisionConfig  # noqa: E402
from fcclip_jax.models.fcclip import FCCLIP, FCCLIPConfig  # noqa: E402
from fcclip_jax.models.pixel_decoder import PixelDecoderConfig  # noqa: E402
from fcclip_jax.models.transformer_decoder import TransformerDecoderConfig  # noqa: E402
from tests.formula_weights import fill  # noqa: E402

pytestmark = pytest.mark.parity

# float32 through 10 blocks, 2 encoder and 4 decoder layers, sums in another order (measured: 8e-7 of the largest value
# at most). The approximate GELU in the tower shows as 5e-5.
TOLERANCE = 1e-5

EMBED, CLASSES = 32, 9
CONFIG = FCCLIPConfig(
    name="convnext_atto",
    embed_dim=EMBED,
    vision=VisionConfig((2, 2, 6, 2), (40, 80, 160, 320), "mlp", 64),
    text=TextConfig(width=32, heads=2, layers=1),
    pixel_decoder=PixelDecoderConfig(width=64, layers=2, heads=4, feedforward=96),
    transformer_decoder=TransformerDecoderConfig(width=64, queries=15, layers=4, heads=4, feedforward=96),
)


def torch_model():
    visual = peer.TimmModel("convnext_atto", EMBED, image_size=64, pool="", proj="mlp")
    config = peer.mask2former_config(
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        num_attention_heads=4,
        encoder_layers=2,
        encoder_feedforward_dim=96,
        decoder_layers=5,
        dim_feedforward=96,
        num_queries=15,
    )
    model = peer.FCCLIP(visual, config, CONFIG.vision.widths, EMBED).eval()
    peer.load(model, lambda name, shape: torch.from_numpy(fill(name, shape)))
    return model


@pytest.fixture(scope="module")
def both():
    """Theirs and ours: the last masks, the class embedding's logits, and the log-probabilities of the ensemble."""
    rng = np.random.default_rng(5)
    image = rng.standard_normal((1, 3, 128, 160)).astype(np.float32)
    rows = rng.standard_normal((20, EMBED)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    row_class = np.sort(np.concatenate([np.arange(CLASSES), rng.integers(0, CLASSES, 20 - CLASSES)])).astype(np.int32)
    seen = np.arange(CLASSES) % 2 == 0

    theirs = torch_model()
    words = peer.Vocabulary(
        torch.from_numpy(rows), torch.from_numpy(row_class).long(), torch.from_numpy(seen), torch.from_numpy(seen)
    )
    with torch.inference_mode():
        features = theirs.tower(torch.from_numpy(image))
        mask_features, multi_scale = theirs.decode_pixels(features)
        queries, masks = theirs.decode_masks(mask_features, multi_scale)
        logits = theirs.in_vocabulary(queries, masks, mask_features, words)
        expected = masks, logits[-1], theirs.classify(logits[-1], features[-1], masks[-1], words)[None]

    ours = load(lambda: FCCLIP(CONFIG, rngs=nnx.Rngs(0)), "", fill)
    forward = run(ours, jnp.asarray(image.transpose(0, 2, 3, 1)))
    words = jnp.asarray(rows), jnp.asarray(row_class), jnp.asarray(seen)
    named = ours.classify(forward.predictions, *words)
    return expected, (forward.decoder.masks, named.in_vocabulary, named.class_log_probs)


def test_masks(both):
    expected, found = both
    # The masks decide by their sign where the next layer looks: none of them is zero within the rounding here.
    for layer, masks in enumerate(expected[0][:-1]):
        size = ((4, 5), (8, 10), (16, 20))[layer % 3]
        resized = torch.nn.functional.interpolate(masks, size, mode="bilinear", align_corners=False)
        assert resized.abs().min() > 2e-5
    for layer, (a, b) in enumerate(zip(found[0], expected[0], strict=True)):
        assert_close(a, b, relative=TOLERANCE, name=f"layer {layer}")


def test_classes(both):
    expected, found = both
    masks = expected[0][-1]
    coarse = torch.nn.functional.interpolate(masks, (4, 5), mode="bilinear", align_corners=False)
    # A query with a mask logit of zero within the rounding may pool one pixel more or less: left out.
    settled = torch.minimum(masks.abs().amin((-1, -2)), coarse.abs().amin((-1, -2)))[0] > 1e-5
    assert settled.float().mean() > 0.8
    for a, b, name in zip(found[1:], expected[1:], ("in-vocabulary", "ensemble"), strict=True):
        assert_close(np.asarray(a)[0][settled.numpy()], b[0][settled], relative=TOLERANCE, name=name)


def test_the_peer_is_the_same_function_with_either_library():
    model = torch_model()
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    def masks():
        with torch.inference_mode():
            return model.decode_masks(*model.decode_pixels(model.tower(image)))[1]

    stock = masks()
    peer.use_onednn(model)
    assert any(isinstance(module, peer.OneDNNLinear) for module in model.modules())
    for layer, (a, b) in enumerate(zip(masks(), stock, strict=True)):
        assert_close(a, b, relative=TOLERANCE, name=f"layer {layer}")
