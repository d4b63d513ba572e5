"""PASCAL VOC with background as a class: semantic segmentation (paper: table 3, PAS-21).

    fcclip prepare pascal_voc_21
    fcclip evaluate --config configs/eval_pascal_voc_21.py --checkpoint models/fcclip_large

The data lies under $DETECTRON2_DATASETS (else --config.root DIR); docs/datasets.md says how.
ConvNeXt-L in the paper: mIoU 81.8. Not reproduced by this project.
Published with FC-CLIP's own synonyms; --labels FILE takes its lists.
"""

from fcclip_jax.evaluation_configuration import evaluation_config


def get_config():
    return evaluation_config("pascal_voc_21")
