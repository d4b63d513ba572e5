"""The spine: FC-CLIP calls the boxes of the figure in the figure's order. Below it, the table of variants.

Nothing expensive depends on words. One forward pass turns an image into masks with two embeddings each
(`MaskPredictions`); naming them with any vocabulary is a small product afterwards (`FCCLIP.classify`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.models.clip_resnet import ClipResNet, ResNetConfig
from fcclip_jax.models.clip_text import ClipText, TextConfig
from fcclip_jax.models.clip_vision import ClipVision, VisionConfig
from fcclip_jax.models.clip_vit import ClipViT, ViTConfig
from fcclip_jax.models.mask_classifier import Classification, class_logits, geometric_ensemble
from fcclip_jax.models.pixel_decoder import PixelDecoder, PixelDecoderConfig
from fcclip_jax.models.transformer_decoder import DecoderOutput, TransformerDecoder, TransformerDecoderConfig
from fcclip_jax.ops.extent import cells_inside
from fcclip_jax.ops.resize import resize_bilinear
from fcclip_jax.structures import Features, MaskPredictions, PixelDecoderOutput


@dataclasses.dataclass(frozen=True)
class FCCLIPConfig:
    """Everything that fixes the function but the weights. `name` is the open_clip name of the frozen towers;
    `alpha` and `beta` are the out-vocabulary shares of seen and unseen classes."""

    name: str
    embed_dim: int
    vision: VisionConfig | ResNetConfig | ViTConfig
    text: TextConfig
    pixel_decoder: PixelDecoderConfig = dataclasses.field(default_factory=PixelDecoderConfig)
    transformer_decoder: TransformerDecoderConfig = dataclasses.field(default_factory=TransformerDecoderConfig)
    alpha: float = 0.4
    beta: float = 0.8
    ensemble_on_valid_mask: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FCCLIPConfig":
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ValueError: a field is missing or unknown.
        """
        values = dict(values)
        try:
            parts = {
                "vision": _vision_part(values["vision"]),
                "text": TextConfig,
                "pixel_decoder": PixelDecoderConfig,
                "transformer_decoder": TransformerDecoderConfig,
            }
            for key, part in parts.items():
                fields = {k: tuple(v) if isinstance(v, list) else v for k, v in values[key].items()}
                values[key] = part(**fields)
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is not an FC-CLIP configuration: {error}") from None


def _vision_part(fields: dict[str, Any]) -> type:
    """The kind of image tower, by the fields that only one of them has."""
    if "patch" in fields:
        return ViTConfig
    return ResNetConfig if "width" in fields else VisionConfig


def _convnext(name, widths, depths, head, image_size, embed_dim, text, norm_eps=1e-6) -> FCCLIPConfig:
    vision = VisionConfig(depths, widths, head, image_size, norm_eps)
    return FCCLIPConfig(name, embed_dim, vision, TextConfig(*text))


def _resnet(name, depths, width, image_size, embed_dim, text) -> FCCLIPConfig:
    """With OpenAI's weights, whose text towers have QuickGELU; FC-CLIP trusts these towers on valid masks only."""
    text = TextConfig(*text, activation="quick_gelu")
    return FCCLIPConfig(name, embed_dim, ResNetConfig(depths, width, image_size), text, ensemble_on_valid_mask=True)


def _emoji(name: str, vision: VisionConfig | ViTConfig) -> FCCLIPConfig:
    return FCCLIPConfig(
        name=name,
        embed_dim=128,
        vision=vision,
        text=TextConfig(width=64, heads=4, layers=1),
        pixel_decoder=PixelDecoderConfig(width=64, layers=2, heads=4, feedforward=256),
        transformer_decoder=TransformerDecoderConfig(width=64, queries=20, layers=3, heads=4, feedforward=256),
    )


_BASE, _LARGE, _XXLARGE = (128, 256, 512, 1024), (192, 384, 768, 1536), (384, 768, 1536, 3072)
_D, _DX = (3, 3, 27, 3), (3, 4, 30, 3)

VARIANTS: dict[str, FCCLIPConfig] = {
    config.name: config
    for config in (
        _convnext("convnext_base_w", _BASE, _D, "linear", 256, 640, (640, 10, 12)),
        _convnext("convnext_base_w_320", _BASE, _D, "linear", 320, 640, (640, 10, 12)),
        _convnext("convnext_large_d", _LARGE, _D, "mlp", 256, 768, (768, 12, 16)),
        _convnext("convnext_large_d_320", _LARGE, _D, "mlp", 320, 768, (768, 12, 16)),
        _convnext("convnext_xxlarge", _XXLARGE, _DX, "linear", 256, 1024, (1024, 16, 24), norm_eps=1e-5),
        _resnet("RN50", (3, 4, 6, 3), 64, 224, 1024, (512, 8, 12)),
        _resnet("RN101", (3, 4, 23, 3), 64, 224, 512, (512, 8, 12)),
        _resnet("RN50x4", (4, 6, 10, 6), 80, 288, 640, (640, 10, 12)),
        _resnet("RN50x16", (6, 8, 18, 8), 96, 384, 768, (768, 12, 12)),
        _resnet("RN50x64", (3, 15, 36, 10), 128, 448, 1024, (1024, 16, 12)),
        # Small enough for tests and for a first look; not a published model.
        FCCLIPConfig(
            name="convnext_tiny_test",
            embed_dim=32,
            vision=VisionConfig((2, 2, 2, 2), (16, 32, 64, 128), "mlp", 128),
            text=TextConfig(width=32, heads=4, layers=2),
            pixel_decoder=PixelDecoderConfig(width=32, layers=2, heads=4),
            transformer_decoder=TransformerDecoderConfig(width=32, queries=10, layers=2, heads=4, feedforward=64),
        ),
    )
}

# Of the small world (fcclip_jax/world), trained here from scratch, so that nothing is converted into them; the two
# image towers cost about the same.
EMOJI_VARIANTS: dict[str, FCCLIPConfig] = {
    config.name: config
    for config in (
        _emoji("convnext_emoji", VisionConfig((1, 1, 3, 2), (32, 64, 128, 256), "linear", 192, layer_scale=1.0)),
        _emoji("vit_emoji", ViTConfig(width=120, heads=4, layers=4, image_size=192)),
    )
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forward:
    """All named intermediates of one pass. A compiled function that returns only some of them computes only those."""

    features: Features
    pixels: PixelDecoderOutput
    decoder: DecoderOutput
    pooled: jax.Array
    predictions: MaskPredictions


_TOWERS = {VisionConfig: ClipVision, ResNetConfig: ClipResNet, ViTConfig: ClipViT}


class Clip(nnx.Module):
    """The two frozen towers and CLIP's own logit scale. A training step works without the text tower."""

    def __init__(self, config: FCCLIPConfig, *, with_text: bool = True, dtype=jnp.float32, rngs: nnx.Rngs):
        tower = _TOWERS[type(config.vision)]
        self.visual = tower(config.vision, config.embed_dim, dtype=dtype, rngs=rngs)
        self.text = ClipText(config.text, config.embed_dim, dtype=dtype, rngs=rngs) if with_text else None
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))


class FCCLIP(nnx.Module):
    """Images to mask predictions; mask predictions and text rows to class probabilities."""

    def __init__(
        self,
        config: FCCLIPConfig,
        *,
        with_text: bool = True,
        remat: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`dtype` is that of the computation in the towers and the transformer decoder. With `remat` the decoders'
        layers are computed again in the backward pass instead of being kept."""
        self.config = config
        self.clip = Clip(config, with_text=with_text, dtype=dtype, rngs=rngs)
        self.pixel_decoder = PixelDecoder(config.pixel_decoder, config.vision.widths, remat=remat, rngs=rngs)
        self.transformer_decoder = TransformerDecoder(
            config.transformer_decoder, config.embed_dim, remat=remat, dtype=dtype, rngs=rngs
        )
        self.void_embedding = nnx.Param(jax.random.normal(rngs.params(), (1, config.embed_dim)))

    def __call__(self, images: Float[Array, "B H W 3"], extent: Int[Array, "B 2"] | None = None) -> Forward:
        """Normalised images; H and W must be multiples of 32.

        With `extent`, `(height, width)` of each image, multiples of 32, images of several sizes share a batch, each in
        its top left corner, and each gets what it would get alone (ops/extent.py). Beyond it, what is returned of maps
        and masks does not matter. Without, all of H x W is image, as in the reference.
        """
        if images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"images of {images.shape[1]} x {images.shape[2]}: both must be multiples of 32")
        features = self.clip.visual(images, extent)
        pixels = self.pixel_decoder(features, extent)
        decoder = self.transformer_decoder(pixels, extent)
        masks = decoder.masks[-1]
        dense = features.res5
        pooled, valid = self.clip.visual.pool(dense, resize_bilinear(masks, *dense.shape[1:3]), extent)
        predictions = MaskPredictions(
            masks=masks,
            class_embed=decoder.class_embeds[-1],
            clip_embed=self.clip.visual.project(pooled).astype(jnp.float32),
            valid=valid,
        )
        return Forward(features, pixels, decoder, pooled, predictions)

    def describe(
        self,
        images: Float[Array, "B H W 3"],
        extent: Int[Array, "B 2"],
        masks: Bool[Array, "B N h w"],
        dense_masks: Bool[Array, "B N h2 w2"],
    ) -> MaskPredictions:
        """Embeddings of given masks, at stride 4 and at that of the dense map: pooled CLIP features for the
        out-vocabulary classifier; for the in-vocabulary one those of the query whose mask overlaps most (IoU)."""
        out = self(images, extent)
        inside = cells_inside(extent, masks.shape[2:], 4)[:, None]
        given, found = (x.astype(jnp.float32) for x in (masks & inside, (out.predictions.masks > 0) & inside))
        shared = jnp.einsum("bnhw,bqhw->bnq", given, found)
        union = given.sum((2, 3))[:, :, None] + found.sum((2, 3))[:, None] - shared
        nearest = jnp.argmax(shared / jnp.maximum(union, 1.0), axis=2)
        signs = jnp.where(dense_masks, 1.0, -1.0)
        pooled, valid = self.clip.visual.pool(out.features.res5, signs, extent)
        return MaskPredictions(
            masks=jnp.where(masks, 1.0, -1.0),
            class_embed=jnp.take_along_axis(out.predictions.class_embed, nearest[:, :, None], axis=1),
            clip_embed=self.clip.visual.project(pooled).astype(jnp.float32),
            valid=valid,
        )

    def in_vocabulary_logits(
        self,
        class_embed: Float[Array, "B Q E"],
        rows: Float[Array, "S E"],
        synonym_to_class: Int[Array, " S"],
        num_classes: int,
    ) -> Float[Array, "B Q K1"]:
        """Of the last or any other decoder layer, void last."""
        scale = self.transformer_decoder.logit_scale[...]
        return class_logits(class_embed, rows, self.void_embedding[...], scale, synonym_to_class, num_classes)

    def classify(
        self,
        predictions: MaskPredictions,
        rows: Float[Array, "S E"],
        synonym_to_class: Int[Array, " S"],
        seen: Bool[Array, " K"],
    ) -> Classification:
        """Names the masks with a vocabulary given as unit text rows."""
        config, count = self.config, seen.shape[0]
        inside = self.in_vocabulary_logits(predictions.class_embed, rows, synonym_to_class, count)
        outside = class_logits(
            predictions.clip_embed,
            rows,
            self.void_embedding[...],
            self.clip.logit_scale[...],
            synonym_to_class,
            count,
        )
        log_probs = geometric_ensemble(
            inside,
            outside,
            seen,
            alpha=config.alpha,
            beta=config.beta,
            valid=predictions.valid if config.ensemble_on_valid_mask else None,
        )
        return Classification(inside, outside, log_probs)
