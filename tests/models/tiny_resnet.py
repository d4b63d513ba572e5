"""FC-CLIP on a ResNet small enough for tests: not a variant of the package."""

from fcclip_jax.models.clip_resnet import ResNetConfig
from fcclip_jax.models.clip_text import TextConfig
from fcclip_jax.models.fcclip import FCCLIPConfig
from fcclip_jax.models.pixel_decoder import PixelDecoderConfig
from fcclip_jax.models.transformer_decoder import TransformerDecoderConfig

TINY_RESNET = FCCLIPConfig(
    name="rn_tiny_test",
    embed_dim=32,
    vision=ResNetConfig((2, 1, 2, 1), 8, 96),
    text=TextConfig(width=32, heads=4, layers=2, activation="quick_gelu"),
    pixel_decoder=PixelDecoderConfig(width=32, layers=2, heads=4),
    transformer_decoder=TransformerDecoderConfig(width=32, queries=10, layers=2, heads=4, feedforward=64),
    ensemble_on_valid_mask=True,
)
