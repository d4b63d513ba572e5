"""FC-CLIP, ConvNeXt-L, COCO panoptic: the paper's main model (table 1 and all zero-shot tables).

    python -m convert.download convnext_large_d_320 --output models/clip_convnext_large_d_320
    fcclip train --config configs/fcclip_convnext_large_coco.py --workdir runs/coco \\
        --config.model.towers models/clip_convnext_large_d_320

Paper: batch 16, 368,750 steps (50 epochs), 8 V100; COCO PQ 54.4, ADE20K PQ 26.8 zero-shot for the released checkpoint;
reproductions of the last step get COCO 56.4 and ADE20K 25.1 to 25.8. This configuration has not been run to its end by
this project.

Another batch size b: scale the learning rate by b/16 and all step counts by 16/b, for example on 64 devices
`--config.batch_size=64 --config.optimizer.learning_rate=4e-4 --config.steps=92188
--config.optimizer.milestones="(81945, 88773)"`.
"""

from fcclip_jax.experiment import base_config


def get_config():
    return base_config()
