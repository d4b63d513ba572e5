"""ADE20K-847: semantic segmentation (paper: table 3, A-847).

    fcclip prepare ade20k_847
    fcclip evaluate --config configs/eval_ade20k_847.py --checkpoint models/fcclip_large

The data lies under $DETECTRON2_DATASETS (else --config.root DIR); docs/datasets.md says how.
ConvNeXt-L in the paper: mIoU 14.8. Not reproduced by this project.
Published with FC-CLIP's own synonyms; --labels FILE takes its lists.
"""

from fcclip_jax.evaluation_configuration import evaluation_config


def get_config():
    return evaluation_config("ade20k_847")
