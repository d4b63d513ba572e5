"""ADE20K-150: panoptic, semantic and instance segmentation without having seen it (paper: table 1).

    fcclip prepare ade20k_150
    fcclip evaluate --config configs/eval_ade20k_150.py --checkpoint models/fcclip_large

The data lies under $DETECTRON2_DATASETS (else --config.root DIR); docs/datasets.md says how.
ConvNeXt-L in the paper: PQ 26.8, AP 16.8, mIoU 34.1. Not reproduced by this project.
The released checkpoint was picked on these images; the last step of reproductions gets PQ 25.1 to 25.8. Ablation
(--config.classifier in_vocabulary | out_vocabulary): PQ 17.8 | 21.9.
Published with FC-CLIP's own synonyms; --labels FILE takes its lists.
"""

from fcclip_jax.evaluation_configuration import evaluation_config


def get_config():
    return evaluation_config("ade20k_150")
