"""PASCAL Context 459: semantic segmentation (paper: table 3, PC-459).

    fcclip prepare pascal_context_459
    fcclip evaluate --config configs/eval_pascal_context_459.py --checkpoint models/fcclip_large

The data lies under $DETECTRON2_DATASETS (else --config.root DIR); docs/datasets.md says how.
ConvNeXt-L in the paper: mIoU 18.2. Not reproduced by this project.
Published with FC-CLIP's own synonyms; --labels FILE takes its lists.
"""

from fcclip_jax.evaluation_configuration import evaluation_config


def get_config():
    return evaluation_config("pascal_context_459")
