"""Two photos learnt by heart, without jitter: for test_overfit.py, which gives the paths."""

from fcclip_jax.experiment import base_config


def get_config():
    config = base_config()
    config.steps = 1200
    config.batch_size = 2
    config.model.variant = "convnext_tiny_test"
    config.model.queries = 50
    config.model.dtype = "float32"
    config.model.random_towers = True
    config.data.image_size = 320
    config.data.min_scale = 1.0
    config.data.max_scale = 1.0
    config.data.flip = 0.0
    config.data.max_segments = 40
    config.data.workers = 0
    config.loss.points = 2048
    config.optimizer.learning_rate = 2e-3
    config.optimizer.milestones = (900, 1100)
    config.optimizer.weight_decay = 0.0
    # At the paper's 0.01 AdamW's steps are the same but for eps; this keeps eps out of it.
    config.optimizer.clip_norm = 10.0
    config.validation.min_size = 320
    config.validation.max_size = 320
    config.eval_every = 400
    config.checkpoint_every = 0
    return config
