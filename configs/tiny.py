"""A few minutes on a laptop: the paper's training code on a small folder that it draws itself.

    fcclip train --config configs/tiny.py --workdir /tmp/tiny

No download. The frozen towers are random, so this shows that everything runs and learns, not open vocabulary.
Two CPU cores: about 0.5 s a step after a minute of compiling.
"""

from fcclip_jax.experiment import base_config


def get_config():
    config = base_config()
    config.steps = 300
    config.batch_size = 8
    config.model.variant = "convnext_tiny_test"
    config.model.queries = 20
    config.model.dtype = "float32"
    config.data.kind = "drawn"
    config.data.image_size = 128
    config.data.min_scale = 0.5
    config.data.max_scale = 1.5
    config.data.max_segments = 16
    config.data.workers = 0
    config.loss.points = 1024
    config.optimizer.learning_rate = 1e-3
    config.optimizer.milestones = (240, 270)
    config.validation.min_size = 128
    config.eval_every = 100
    config.picture_every = 100
    config.log_every = 10
    config.checkpoint_every = 100
    return config
