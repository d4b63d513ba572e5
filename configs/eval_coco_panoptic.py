"""COCO panoptic, the data that the paper's model is trained on: panoptic, semantic and instance segmentation
(paper: table 1).

    fcclip prepare coco_panoptic
    fcclip evaluate --config configs/eval_coco_panoptic.py --checkpoint models/fcclip_large

The data lies under $DETECTRON2_DATASETS (else --config.root DIR); docs/datasets.md says how.
ConvNeXt-L in the paper: PQ 54.4, AP 44.6, mIoU 63.7. Not reproduced by this project.
The last step of reproductions gets PQ 56.4.
Published with FC-CLIP's own synonyms; --labels FILE takes its lists.
"""

from fcclip_jax.evaluation_configuration import evaluation_config


def get_config():
    return evaluation_config("coco_panoptic")
