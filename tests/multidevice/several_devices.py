"""Run by test_segmenter_devices.py in a process of its own: photos segmented by all simulated devices together."""

import pickle
import sys
from pathlib import Path

import jax

from fcclip_jax.segmenter import Segmenter
from tests.pictures import photo

SHAPES = [(60, 90), (50, 200), (90, 60), (64, 80), (30, 75), (64, 64), (90, 61)]


def main(model: str, output: str, batch_size: str) -> None:
    devices = jax.local_devices()
    segmenter = Segmenter.from_checkpoint(
        model, min_size=64, max_size=96, devices=devices if len(devices) > 1 else None
    )
    photos = [photo(*shape, seed) for seed, shape in enumerate(SHAPES)]
    found = {}
    words = ["cup", "saucer,plate", "table [stuff]"]
    for index, result in segmenter.stream(photos, words, batch_size=int(batch_size), overlap_threshold=0.3):
        found[index] = (result.panoptic, result.semantic, [(s.category_id, s.score) for s in result.segments])
    single = segmenter(photos[0], words, overlap_threshold=0.3)  # fewer photos than devices
    found["single"] = (single.panoptic, single.semantic, [(s.category_id, s.score) for s in single.segments])
    Path(output).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
