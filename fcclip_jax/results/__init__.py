"""Predictions -> what a person asked for: a panoptic map, a semantic map, instances.

Source: the reference's `panoptic_inference`, `semantic_inference` and `instance_inference` (Mask2Former's).
It resizes every mask to the photo and keeps Q x H x W and K x H x W arrays, which is where it runs out of
memory. Here the photo is walked through in short runs of pixels: `upsample.py` says where each pixel lies in
the stride-4 masks, `pixels.py` holds what is compiled for one run, and `panoptic.py`, `semantic.py` and
`instance.py` apply the rules on the host to what the runs give.
"""

from fcclip_jax.results.results import TASKS, Results, compute_results

__all__ = ["TASKS", "Results", "compute_results"]
