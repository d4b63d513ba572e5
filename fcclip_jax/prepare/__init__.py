"""PREPARE: the derived annotations that FC-CLIP's, Mask2Former's and Cityscapes' scripts make, under the same names.

    conversion.py   one file's work, a data set's list of them, and how they are run: resumable, in processes
    coco.py  ade20k.py  ade20k_full.py  cityscapes.py  pascal.py    what is made of what
    datasets.py     the table of them

No jax here.
"""
