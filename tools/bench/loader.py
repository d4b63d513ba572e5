"""How fast training images are made ready: images/s of one core, against the plain steps, as one JSON object.

    python -m tools.bench.loader [--images DIR --panoptic DIR --annotations JSON] [--workers 0 1 2] [--seconds 4]

Without a data set it draws one: 640 x 480 pictures with the grain of photos, as JPEG, and panoptic PNGs. Seconds are
processor seconds for the single steps (other programs disturb them less), seconds on the clock for the loader.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fcclip_jax.data.augment import LargeScaleJitter, View
from fcclip_jax.data.drawn import draw_dataset
from fcclip_jax.data.loader import TrainBatches, make_loader
from fcclip_jax.data.records import PanopticRecord
from fcclip_jax.data.resize_window import bilinear_window, nearest_window
from fcclip_jax.data.sources import CocoPanopticSource
from fcclip_jax.data.targets import row_map
from fcclip_jax.vocabulary import Vocabulary

SIZE = 1024
VIEWS = 64  # a run of this many draws of the jitter stands for training


def draw_photos(folder: Path, images: int = 8) -> CocoPanopticSource:
    """Drawn scenes with noise of a photo's spectrum (amplitude 1 / frequency), so that JPEG has as much to do."""
    draw_dataset(folder, images=images, size=(480, 640))
    annotations = folder / "panoptic.json"
    content = json.loads(annotations.read_text())
    frequency = np.hypot(np.fft.fftfreq(480)[:, None], np.fft.rfftfreq(640)[None])
    frequency[0, 0] = np.inf
    for image in content["images"]:
        path = folder / "images" / image["file_name"]
        noise = np.random.default_rng(image["id"]).normal(size=(3, 480, 640))
        noise = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(480, 640)).transpose(1, 2, 0)
        picture = np.asarray(Image.open(path)) + noise / noise.std() * 30
        image["file_name"] = path.with_suffix(".jpg").name
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path.with_suffix(".jpg"), quality=92)
        path.unlink()
    annotations.write_text(json.dumps(content))
    vocabulary = Vocabulary.from_file(folder / "labels.txt")
    return CocoPanopticSource(folder / "images", folder / "panoptic", annotations, vocabulary)


def plain_steps(record: PanopticRecord, view: View) -> tuple[np.ndarray, np.ndarray]:
    """The same picture and row map, each step over the whole array, as one would write it down first."""
    image = np.asarray(Image.open(io.BytesIO(record.image)).convert("RGB"))
    panoptic = np.asarray(Image.open(io.BytesIO(record.panoptic)).convert("RGB"))
    size, (top, left) = LargeScaleJitter(SIZE).geometry(*image.shape[:2], view)
    results = []
    for array, method, padding in ((image, Image.BILINEAR, 128), (panoptic, Image.NEAREST, 255)):
        if view.flip:
            array = np.ascontiguousarray(array[:, ::-1])
        array = np.asarray(Image.fromarray(array).resize(size[::-1], method))[top : top + SIZE, left : left + SIZE]
        room = [(0, SIZE - array.shape[0]), (0, SIZE - array.shape[1]), (0, 0)]
        results.append(np.pad(array, room, constant_values=padding))
    ids = results[1].astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    rows = np.full(ids.shape, -1, np.int16)
    for row, id_ in enumerate(record.segment_ids[~record.crowd]):
        rows[ids == id_] = row
    return results[0], rows


def milliseconds(function: Callable[[int], object], count: int, repeats: int = 3) -> float:
    """Of processor time for one call of `function(n)`, n = 0 to count - 1; the best run."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        for n in range(count):
            function(n)
        best = min(best, time.process_time() - start)
    return 1000 * best / count


def steps(source: CocoPanopticSource) -> dict[str, float]:
    """Milliseconds an image of each step, over `VIEWS` draws."""
    jitter = LargeScaleJitter(SIZE)
    records = [source[i] for i in range(min(len(source), VIEWS))]
    decoded = [record.decode() for record in records]
    rows = [row_map(record, np.asarray(panoptic)) for record, (_, panoptic) in zip(records, decoded, strict=True)]
    views = [jitter.draw(0, n) for n in range(VIEWS)]
    picture, ids = np.empty((SIZE, SIZE, 3), np.uint8), np.empty((SIZE, SIZE), np.int16)

    def window(n: int, kind: str) -> None:
        image = decoded[n % len(records)][0]
        size, corner = jitter.geometry(image.height, image.width, views[n])
        height, width = min(size[0], SIZE), min(size[1], SIZE)
        if kind == "bilinear":
            bilinear_window(image, size, corner, picture[:height, :width])
        elif kind == "nearest":
            nearest_window(rows[n % len(records)], size, corner, ids[:height, :width])
        else:
            whole = image.resize(size[::-1], Image.BILINEAR)
            np.asarray(whole.crop((corner[1], corner[0], corner[1] + width, corner[0] + height)))

    def map_rows(n: int) -> None:
        row_map(records[n % len(records)], np.asarray(decoded[n % len(records)][1]))

    return {
        "decode": milliseconds(lambda n: records[n % len(records)].decode(), VIEWS),
        "row_map": milliseconds(map_rows, VIEWS),
        "bilinear_window": milliseconds(lambda n: window(n, "bilinear"), VIEWS),
        "bilinear_whole_then_crop": milliseconds(lambda n: window(n, "whole"), VIEWS),
        "nearest_window": milliseconds(lambda n: window(n, "nearest"), VIEWS),
    }


def clock_rate(source: CocoPanopticSource, workers: int, threads: int, seconds: float) -> float:
    """Images/s on the clock, once the first batches are there."""
    with make_loader(source, batch_size=8, image_size=SIZE, workers=workers, threads=threads) as batches:
        for _ in range(1 + 2 * max(workers, 1)):
            next(batches)
        start, images = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            images += len(next(batches)["image"])
        return images / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images")
    parser.add_argument("--panoptic")
    parser.add_argument("--annotations", help="panoptic_train2017.json")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.annotations:
            source = CocoPanopticSource(
                arguments.images, arguments.panoptic, arguments.annotations, Vocabulary.builtin("coco_panoptic")
            )
        else:
            source = draw_photos(Path(folder) / "photos")
        batches = TrainBatches(source, LargeScaleJitter(SIZE), 8, 100, 0)
        ours = milliseconds(lambda step: batches[step], VIEWS // 8) / 8
        records = [source[i] for i in range(min(len(source), VIEWS))]
        views = [LargeScaleJitter(SIZE).draw(0, n) for n in range(VIEWS)]
        plain = milliseconds(lambda n: plain_steps(records[n % len(records)], views[n]), VIEWS)
        result = {
            "images_per_second_per_core": round(1000 / ours, 1),
            "plain_steps_images_per_second_per_core": round(1000 / plain, 1),
            "speedup": round(plain / ours, 2),
            "milliseconds_per_image": {name: round(value, 2) for name, value in steps(source).items()},
            "jpeg_kilobytes": round(np.mean([len(record.image) for record in records]) / 1000),
            "loader_images_per_second": {
                f"{workers} workers": round(clock_rate(source, workers, 1, arguments.seconds), 1)
                for workers in arguments.workers
            },
            "loader_images_per_second_2_threads": round(clock_rate(source, 0, 2, arguments.seconds), 1),
            "cores": os.cpu_count(),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
