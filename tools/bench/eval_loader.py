"""How fast evaluation images are made ready: images/s of one core, against the reference's steps, as one JSON object.

    python -m tools.bench.eval_loader [--benchmark coco_panoptic --root DIR] [--min_size 800 --max_size 1333]

Without a data set it draws one: 640 x 480 pictures with the grain of photos, as JPEG. Both ways give the same arrays,
which is checked. Seconds are processor seconds, the best of three runs; the loader's are on the clock.
"""

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fcclip_jax.data.benchmarks import BENCHMARKS, open_benchmark
from fcclip_jax.data.evaluation_loader import make_evaluation_loader
from fcclip_jax.data.evaluation_record import EvaluationRecord
from fcclip_jax.data.evaluation_sources import EvaluationSource
from fcclip_jax.data.own_folder import open_folder
from fcclip_jax.data.transforms import MEAN, STD, normalize_and_pad, resize_shortest_edge, target_size
from fcclip_jax.vocabulary import Vocabulary
from tools.bench.loader import draw_photos, milliseconds

IMAGES = 24


def plain_steps(record: EvaluationRecord, min_size: int, max_size: int) -> np.ndarray:
    """What detectron2's mapper and the model's preprocessing do, step by step, with Pillow and numpy: float32, colours
    first, padded to a multiple of 32."""
    image = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(record.image))).convert("RGB"))
    height, width = target_size(*image.shape[:2], min_size, max_size)
    image = np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR))
    image = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    image = (image - MEAN[:, None, None]) / STD[:, None, None]
    return np.pad(image, ((0, 0), (0, -height % 32), (0, -width % 32)))


def our_steps(record: EvaluationRecord, min_size: int, max_size: int) -> np.ndarray:
    return normalize_and_pad(resize_shortest_edge(record.decode_image(), min_size, max_size))


def clock_rate(source: EvaluationSource, threads: int, min_size: int, max_size: int) -> float:
    """Images/s on the clock, once the first is there."""
    indices = [k % len(source) for k in range(3 * IMAGES)]
    with make_evaluation_loader(
        source, min_size=min_size, max_size=max_size, indices=indices, threads=threads
    ) as images:
        next(images)
        start = time.perf_counter()
        count = sum(1 for _ in images)
        return count / (time.perf_counter() - start)


def measure(source: EvaluationSource, min_size: int, max_size: int) -> dict:
    records = [source[k] for k in range(min(IMAGES, len(source)))]
    sizes = min_size, max_size
    for record in records:
        np.testing.assert_array_equal(our_steps(record, *sizes), plain_steps(record, *sizes).transpose(1, 2, 0))

    def each(function):
        return milliseconds(lambda k: function(records[k % len(records)]), IMAGES)

    decoded = {id(record): record.decode_image() for record in records}
    resized = {id(record): resize_shortest_edge(decoded[id(record)], *sizes) for record in records}
    ours, plain = each(lambda r: our_steps(r, *sizes)), each(lambda r: plain_steps(r, *sizes))
    return {
        "images_per_second_per_core": round(1000 / ours, 1),
        "plain_steps_images_per_second_per_core": round(1000 / plain, 1),
        "speedup": round(plain / ours, 2),
        "milliseconds_per_image": {
            "decode": round(each(lambda r: r.decode_image()), 2),
            "resize": round(each(lambda r: resize_shortest_edge(decoded[id(r)], *sizes)), 2),
            "normalize_and_pad": round(each(lambda r: normalize_and_pad(resized[id(r)])), 2),
        },
        "image_kilobytes": round(np.mean([len(record.image) for record in records]) / 1000),
        "loader_images_per_second": {
            f"{threads} threads": round(clock_rate(source, threads, *sizes), 1) for threads in (1, 2)
        },
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--benchmark", choices=BENCHMARKS)
    parser.add_argument("--root", default=os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument("--min_size", type=int, default=800)
    parser.add_argument("--max_size", type=int, default=1333)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.benchmark:
            source = open_benchmark(arguments.benchmark, arguments.root)
        else:
            photos = Path(folder) / "photos"
            draw_photos(photos)
            vocabulary = Vocabulary.from_file(photos / "labels.txt")
            source = open_folder(
                photos / "images", vocabulary, panoptic=photos / "panoptic", annotations=photos / "panoptic.json"
            )
        print(json.dumps(measure(source, arguments.min_size, arguments.max_size), indent=1))


if __name__ == "__main__":
    main()
