"""How much faster than panopticapi (which must be installed): `python tests/evaluation/panoptic_speed.py`.

Both count the same pairs in the same process and thread, in turns; the least processor time of each is taken, which
other work on the machine disturbs little. Three ways: from files, as
`fcclip score` and panopticapi work; from decoded RGB arrays; and from id maps in memory, as `fcclip evaluate` has them.
"""

import contextlib
import io
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from panopticapi import evaluation
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from fcclip_jax.evaluation.panoptic_files import count_panoptic, panoptic_pairs
from fcclip_jax.evaluation.panoptic_quality import PanopticQuality
from fcclip_jax.evaluation.png import rgb_to_id
from fcclip_jax.evaluation.tally import keep_memory

CATEGORIES = [{"id": k, "name": str(k), "isthing": k % 2} for k in range(1, 134)]
SIZES = {"COCO, 480 x 640": (480, 640), "ADE20K, 512 x 683": (512, 683), "Cityscapes, 1024 x 2048": (1024, 2048)}
PAIRS, ROUNDS = 8, 12


def cells(rng: np.random.Generator, height: int, width: int, number: int) -> np.ndarray:
    """A map of `number` cells around random points, with wavy borders."""
    y, x = np.mgrid[:height, :width]
    y = y + 6 * np.sin(x / 17) + 2 * np.sin(x / 3)
    x = x + 6 * np.sin(y / 13) + 2 * np.sin(y / 4)
    nearest, result = np.full((height, width), np.inf), np.zeros((height, width), np.uint32)
    for id_ in rng.choice((1 << 24) - 1, number, replace=False) + 1:
        distance = np.hypot(y - rng.integers(height), (x - rng.integers(width)) * rng.uniform(0.4, 2))
        result[distance < nearest] = id_
        nearest = np.minimum(nearest, distance)
    return result


def make(folder: Path, height: int, width: int) -> None:
    annotations = {"truth": [], "prediction": []}
    for k in range(PAIRS):
        rng = np.random.default_rng(k)
        truth = cells(rng, height, width, 20)
        prediction = np.roll(truth, (3, 4), (0, 1))
        truth[: height // 20] = 0
        category = {int(id_): int(rng.integers(1, 134)) for id_ in np.unique(prediction)}
        for name, ids in (("truth", truth), ("prediction", prediction)):
            (folder / name).mkdir(exist_ok=True)
            rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
            Image.fromarray(rgb).save(folder / name / f"{k}.png")
            segments = [
                {"id": int(id_), "category_id": category[int(id_)], "area": int((ids == id_).sum()), "iscrowd": 0}
                for id_ in np.unique(ids[ids > 0])
            ]
            annotations[name].append({"image_id": k, "file_name": f"{k}.png", "segments_info": segments})
    for name, entries in annotations.items():
        content = {"annotations": entries, "categories": CATEGORIES}
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="ascii")


class Decoded:
    """In the place of PIL.Image: what was decoded before."""

    def __init__(self, files):
        self.arrays = {str(file): np.asarray(Image.open(file)) for file in files}

    def open(self, file):
        return self.arrays[file]


def least(*functions) -> list[float]:
    """The least milliseconds a pair of each function, called in turns."""
    times = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, taken in zip(functions, times, strict=True):
            started = time.process_time()
            function()
            taken.append(1000 * (time.process_time() - started) / PAIRS)
    return [min(taken) for taken in times]


def measure(folder: Path) -> tuple[list[float], list[float]]:
    keep_memory()  # a gift to both
    _, pairs = panoptic_pairs(folder / "truth.json", folder / "prediction.json")
    annotations = [json.loads((folder / f"{name}.json").read_text())["annotations"] for name in ("truth", "prediction")]
    categories = {c["id"]: c for c in CATEGORIES}
    quality = PanopticQuality(CATEGORIES)
    decoded = Decoded(file for pair in pairs for file in (pair.truth, pair.prediction))
    ids = {file: rgb_to_id(array) for file, array in decoded.arrays.items()}

    def theirs():
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.pq_compute_single_core(
                0, list(zip(*annotations, strict=True)), folder / "truth", folder / "prediction", categories
            )

    def from_files():
        for pair in pairs:
            count_panoptic(quality, pair)

    def from_arrays(look_up):
        for pair in pairs:
            truth, prediction = look_up(str(pair.truth)), look_up(str(pair.prediction))
            quality.update(truth, pair.truth_segments, prediction, pair.predicted_segments)

    files = least(theirs, from_files)
    evaluation.Image = decoded
    arrays = least(theirs, lambda: from_arrays(lambda f: rgb_to_id(decoded.open(f))), lambda: from_arrays(ids.get))
    evaluation.Image = Image
    return files, arrays


if __name__ == "__main__":
    print(f"{platform.machine()}, numpy {np.__version__}, Pillow {Image.__version__}; milliseconds a pair")
    for title, size in SIZES.items():
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), *size)
            (their_files, our_files), (their_arrays, our_arrays, our_ids) = measure(Path(name))
        for what, theirs, ours in (
            ("both from files", their_files, our_files),
            ("both from decoded RGB", their_arrays, our_arrays),
            ("their files, our id maps", their_files, our_ids),
        ):
            print(f"{title:24} {what:25} panopticapi {theirs:6.2f}, ours {ours:6.2f}: {theirs / ours:5.1f} times")
