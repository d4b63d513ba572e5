"""FC-CLIP on the ResNet-50 of OpenAI's CLIP, COCO panoptic: a row of the paper's comparison of backbones.

    python -m convert.download RN50 --output models/clip_rn50
    fcclip train --config configs/fcclip_rn50_coco.py --workdir runs/rn50 \\
        --config.model.towers models/clip_rn50

Paper: the schedule of configs/fcclip_convnext_large_coco.py; COCO PQ 50.7, AP 40.7, mIoU 58.8;
ADE20K PQ 17.9, zero-shot.
This configuration has not been run to its end by this project.
"""

from fcclip_jax.experiment import base_config


def get_config():
    config = base_config()
    config.model.variant = "RN50"
    return config
