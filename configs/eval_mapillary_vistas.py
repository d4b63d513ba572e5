"""Mapillary Vistas v1.2: panoptic and semantic segmentation (paper: table 2).

    fcclip evaluate --config configs/eval_mapillary_vistas.py --checkpoint models/fcclip_large

The data lies under $DETECTRON2_DATASETS (else --config.root DIR); docs/datasets.md says how.
ConvNeXt-L in the paper: PQ 18.3, mIoU 27.8. Not reproduced by this project.
Published with FC-CLIP's own synonyms; --labels FILE takes its lists.
"""

from fcclip_jax.evaluation_configuration import evaluation_config


def get_config():
    return evaluation_config("mapillary_vistas")
