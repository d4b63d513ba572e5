"""PASCAL Context 59: semantic segmentation (paper: table 3, PC-59).

    fcclip prepare pascal_context_59
    fcclip evaluate --config configs/eval_pascal_context_59.py --checkpoint models/fcclip_large

The data lies under $DETECTRON2_DATASETS (else --config.root DIR); docs/datasets.md says how.
ConvNeXt-L in the paper: mIoU 58.4. Not reproduced by this project.
Published with FC-CLIP's own synonyms; --labels FILE takes its lists.
"""

from fcclip_jax.evaluation_configuration import evaluation_config


def get_config():
    return evaluation_config("pascal_context_59")
