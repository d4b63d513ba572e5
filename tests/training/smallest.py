"""The smallest run that has every part: for tests that start `fcclip train`, where compiling is all that takes time."""

from fcclip_jax.experiment import base_config
from fcclip_jax.models.clip_text import TextConfig
from fcclip_jax.models.clip_vision import VisionConfig
from fcclip_jax.models.fcclip import VARIANTS, FCCLIPConfig
from fcclip_jax.models.pixel_decoder import PixelDecoderConfig
from fcclip_jax.models.transformer_decoder import TransformerDecoderConfig

VARIANTS["smallest"] = FCCLIPConfig(
    name="smallest",
    embed_dim=32,
    vision=VisionConfig((1, 1, 1, 1), (8, 16, 32, 64), "mlp", 64),
    text=TextConfig(width=32, heads=4, layers=1),
    pixel_decoder=PixelDecoderConfig(width=32, layers=1, heads=4, points=2, feedforward=64),
    transformer_decoder=TransformerDecoderConfig(width=32, queries=8, layers=1, heads=4, feedforward=64),
)


def get_config():
    config = base_config()
    config.steps = 12
    config.batch_size = 8
    config.model.variant = "smallest"
    config.model.dtype = "float32"
    config.data.kind = "drawn"
    config.data.drawn_images = 12
    config.data.image_size = 64
    config.data.min_scale = 0.5
    config.data.max_scale = 1.5
    config.data.max_segments = 6
    config.data.workers = 0
    config.loss.points = 128
    config.optimizer.learning_rate = 1e-3
    config.optimizer.milestones = (9,)
    config.optimizer.average_decay = 0.9
    config.log_every = 1
    config.checkpoint_every = 4
    return config
