"""FC-CLIP on the ResNet-50x64 of OpenAI's CLIP, COCO panoptic: a row of the paper's comparison of backbones.

    python -m convert.download RN50x64 --output models/clip_rn50x64
    fcclip train --config configs/fcclip_rn50x64_coco.py --workdir runs/rn50x64 \\
        --config.model.towers models/clip_rn50x64

Paper: the schedule of configs/fcclip_convnext_large_coco.py; COCO PQ 55.6, AP 46.4, mIoU 65.3;
ADE20K PQ 22.8, zero-shot.
This configuration has not been run to its end by this project.
"""

from fcclip_jax.experiment import base_config


def get_config():
    config = base_config()
    config.model.variant = "RN50x64"
    return config
