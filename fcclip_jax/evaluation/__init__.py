"""EVALUATION: the figures of the paper, each equal to its official tool.

    panoptic_quality.py   PQ, SQ, RQ           as panopticapi
    miou.py               mIoU, fwIoU, ...     as detectron2's SemSegEvaluator
    mask_ap.py            mask AP              as pycocotools
    cityscapes_ap.py      instance AP          as cityscapesscripts

All four are accumulators (accumulator.py): fed image by image, merged over any number of processes, saved and loaded.
The `*_files.py` read the official prediction formats; tally.py feeds them in. No jax here.
"""
