"""FC-CLIP on the ResNet-50x16 of OpenAI's CLIP, COCO panoptic: a row of the paper's comparison of backbones.

    python -m convert.download RN50x16 --output models/clip_rn50x16
    fcclip train --config configs/fcclip_rn50x16_coco.py --workdir runs/rn50x16 \\
        --config.model.towers models/clip_rn50x16

Paper: the schedule of configs/fcclip_convnext_large_coco.py; COCO PQ 54.4, AP 45.0, mIoU 63.3;
ADE20K PQ 22.5, zero-shot.
This configuration has not been run to its end by this project.
"""

from fcclip_jax.experiment import base_config


def get_config():
    config = base_config()
    config.model.variant = "RN50x16"
    return config
