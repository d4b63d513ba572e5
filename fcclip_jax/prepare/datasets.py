"""Which data sets can be prepared, and how."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fcclip_jax.prepare import ade20k, ade20k_full, cityscapes, coco, pascal
from fcclip_jax.prepare.conversion import Job


@dataclasses.dataclass(frozen=True)
class Preparation:
    """`jobs(root, split)`: what has to be made, split val or train; raises DataError, telling the layout, where
    something that it is made of is missing. `source`: a folder or file without which a split is not there at all."""

    jobs: Callable[[Path, str], list[Job]]
    source: str


PREPARATIONS: dict[str, Preparation] = {
    "coco_panoptic": Preparation(coco.semantic_from_panoptic, "coco/panoptic_{split}2017"),
    "ade20k_150": Preparation(ade20k.ade20k_150, "ADEChallengeData2016/images/{folder}"),
    "cityscapes": Preparation(cityscapes.cityscapes, "cityscapes/gtFine/{split}"),
    "ade20k_847": Preparation(ade20k_full.ade20k_847, "ADE20K_2021_17_01/images/ADE/{folder}"),
    "pascal_context_59": Preparation(pascal.pascal_context_59, "VOCdevkit/VOC2010/trainval_merged.json"),
    "pascal_context_459": Preparation(pascal.pascal_context_459, "pascal_ctx_d2/images/{folder}"),
    "pascal_voc_20": Preparation(
        partial(pascal.pascal_voc, kind=20), "VOCdevkit/VOC2012/ImageSets/Segmentation/{split}.txt"
    ),
    "pascal_voc_21": Preparation(
        partial(pascal.pascal_voc, kind=21), "VOCdevkit/VOC2012/ImageSets/Segmentation/{split}.txt"
    ),
    "coco_stuff_171": Preparation(coco.stuff_171, "coco/stuffthingmaps/{split}2017"),
}
"""By the names of the benchmarks."""
