"""The towers of the small world: a ConvNeXt CLIP of 1.9 million parameters, trained from scratch on scenes of emoji.

    fcclip prepare emoji_scenes
    fcclip train --config configs/emoji_clip.py --workdir runs/emoji_clip

This stands for CLIP's pre-training on the web: pictures and captions of all names, without masks or places. Told to
stop (Ctrl-C) it saves, writes `towers`, and the same command goes on; the learning rate is constant and what counts is
the moving average, so any length will do.
"""

from fcclip_jax.experiment import base_config


def get_config():
    config = base_config()
    config.task = "contrastive"
    config.steps = 40_000
    config.batch_size = 8  # canvases, of 54 captioned pictures in all
    config.model.variant = "convnext_emoji"
    config.model.dtype = "float32"
    config.data.kind = "emoji"
    config.data.workers = 0
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.milestones = ()
    config.optimizer.clip_norm = 1.0
    config.optimizer.b2 = 0.98
    config.optimizer.warmup_steps = 200
    config.optimizer.warmup_factor = 0.1
    config.optimizer.average_decay = 0.998
    config.eval_every = 500
    config.log_every = 50
    config.checkpoint_every = 500
    return config
