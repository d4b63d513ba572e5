"""COCO-Stuff 171: semantic segmentation. The paper has no figure for it.

    fcclip prepare coco_stuff_171
    fcclip evaluate --config configs/eval_coco_stuff_171.py --checkpoint models/fcclip_large

The data lies under $DETECTRON2_DATASETS (else --config.root DIR); docs/datasets.md says how.
"""

from fcclip_jax.evaluation_configuration import evaluation_config


def get_config():
    return evaluation_config("coco_stuff_171")
