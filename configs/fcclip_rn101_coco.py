"""FC-CLIP on the ResNet-101 of OpenAI's CLIP, COCO panoptic: a row of the paper's comparison of backbones.

    python -m convert.download RN101 --output models/clip_rn101
    fcclip train --config configs/fcclip_rn101_coco.py --workdir runs/rn101 \\
        --config.model.towers models/clip_rn101

Paper: the schedule of configs/fcclip_convnext_large_coco.py; COCO PQ 51.4, AP 41.6, mIoU 58.9;
ADE20K PQ 19.1, zero-shot.
This configuration has not been run to its end by this project.
"""

from fcclip_jax.experiment import base_config


def get_config():
    config = base_config()
    config.model.variant = "RN101"
    return config
