"""Cityscapes: panoptic and semantic segmentation, and instances by Cityscapes' own AP (paper: table 2).

    fcclip prepare cityscapes
    fcclip evaluate --config configs/eval_cityscapes.py --checkpoint models/fcclip_large

The data lies under $DETECTRON2_DATASETS (else --config.root DIR); docs/datasets.md says how.
ConvNeXt-L in the paper: PQ 44.0, AP 26.8, mIoU 56.2. Not reproduced by this project.
Published with FC-CLIP's own synonyms; --labels FILE takes its lists.
"""

from fcclip_jax.evaluation_configuration import evaluation_config


def get_config():
    return evaluation_config("cityscapes")
