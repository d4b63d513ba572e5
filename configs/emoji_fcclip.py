"""FC-CLIP in the small world: masks of the 84 seen names only, on the frozen towers of configs/emoji_clip.py.

    fcclip train --config configs/emoji_fcclip.py --workdir runs/emoji_fcclip \\
        --config.model.towers runs/emoji_clip/towers

Unseen things do not stand in the scenes, so that nothing teaches the model that they are background. The length is
fixed beforehand: how far the in-vocabulary classifier fails on unseen names grows with it.
"""

from fcclip_jax.experiment import base_config


def get_config():
    config = base_config()
    config.steps = 3000
    config.batch_size = 8
    config.model.variant = "convnext_emoji"
    config.model.dtype = "float32"
    config.data.kind = "emoji"
    config.data.image_size = 192
    config.data.min_scale = 0.8
    config.data.max_scale = 1.5
    config.data.max_segments = 8
    config.data.workers = 0
    config.loss.points = 1024
    config.optimizer.learning_rate = 1e-3
    config.optimizer.milestones = (2400, 2800)
    config.optimizer.clip_norm = 0.1
    config.optimizer.average_decay = 0.99
    config.validation.min_size = 192
    config.validation.max_size = 192
    config.validation.max_images = 60
    config.eval_every = 1000
    config.log_every = 20
    config.checkpoint_every = 250
    return config
