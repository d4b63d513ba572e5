"""FC-CLIP on the ResNet-50x4 of OpenAI's CLIP, COCO panoptic: a row of the paper's comparison of backbones.

    python -m convert.download RN50x4 --output models/clip_rn50x4
    fcclip train --config configs/fcclip_rn50x4_coco.py --workdir runs/rn50x4 \\
        --config.model.towers models/clip_rn50x4

Paper: the schedule of configs/fcclip_convnext_large_coco.py; COCO PQ 52.1, AP 42.8, mIoU 60.4;
ADE20K PQ 21.8, zero-shot.
This configuration has not been run to its end by this project.
"""

from fcclip_jax.experiment import base_config


def get_config():
    config = base_config()
    config.model.variant = "RN50x4"
    return config
