"""`fcclip segment`: photos on disk in; overlays, id maps, JSON and a table out."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fcclip_jax import visualization
from fcclip_jax.data.image_files import ImageError, find_images, output_stems, read_image
from fcclip_jax.results.results import TASKS
from fcclip_jax.segmenter import Result, Segmenter
from fcclip_jax.vocabulary.vocabulary import Vocabulary

UNTRAINED = "These weights are untrained (random): everything runs, nothing is recognised. Give --checkpoint DIR."


def read_vocabulary(words: str | None, labels: str | None, dataset: str | None, stuff: str | None) -> Vocabulary:
    """The vocabulary of exactly one of: words, a label file, a built-in list.

    Raises:
        ValueError: it is empty or malformed. OSError: the file cannot be read.
    """
    if labels is not None:
        vocabulary = Vocabulary.from_file(labels)
    elif dataset is not None:
        vocabulary = Vocabulary.builtin(dataset)
    else:
        vocabulary = Vocabulary.parse(words)
    return vocabulary if stuff is None else vocabulary.with_stuff(stuff)


def parse_tasks(text: str) -> tuple[str, ...]:
    """`"panoptic,semantic"` to a tuple, in the order of TASKS.

    Raises:
        ValueError: an unknown task, or none.
    """
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [task for task in wanted if task not in TASKS]
    if unknown or not wanted:
        raise ValueError(f"--task takes {', '.join(TASKS)}, parted by commas, not {text!r}")
    return tuple(task for task in TASKS if task in wanted)


def run(
    images: Sequence[str | os.PathLike],
    *,
    vocabulary: Vocabulary,
    output: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    tasks: Sequence[str] = ("panoptic", "semantic"),
    min_size: int = 800,
    max_size: int = 1333,
    overlap_threshold: float = 0.8,
    object_threshold: float = 0.0,
    batch_size: int = 1,
) -> int:
    """Segments files and writes the results. A photo that cannot be read is reported and passed over.

    Returns:
        0, or 1 when some photos failed.

    Raises:
        ValueError, OSError: nothing can be done at all (no photo, no model, output not writable, disk full).
    """
    paths = find_images(images)
    folder = _writable_folder(output)
    sizes = {"min_size": min_size, "max_size": max_size}
    if checkpoint is None:
        print(UNTRAINED, file=sys.stderr)
        segmenter = Segmenter.untrained(**sizes)
    else:
        segmenter = Segmenter.from_checkpoint(checkpoint, **sizes)
    with tqdm(desc="words", unit=" prompts", leave=False, disable=None) as bar:
        segmenter.prepare(vocabulary, progress=lambda done, total: _advance(bar, done, total))
    stems, failures, readable = output_stems(paths), [], []
    started = time.perf_counter()
    with tqdm(total=len(paths), desc="photos", unit=" photo", disable=None) as bar:
        results = segmenter.stream(
            _read_all(paths, readable, failures, bar),
            vocabulary,
            batch_size=batch_size,
            tasks=tasks,
            overlap_threshold=overlap_threshold,
            object_threshold=object_threshold,
        )
        for index, result in results:
            position = readable[index]
            write_result(folder, stems[position], result)
            tqdm.write(table(str(paths[position]), result))
            bar.update()
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    seconds = time.perf_counter() - started
    print(f"{len(readable)} of {len(paths)} photos in {seconds:.1f} s, written to {folder}")
    return 1 if failures else 0


def _advance(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _read_all(
    paths: Sequence[Path], readable: list[int], failures: list[ImageError], bar: tqdm
) -> Iterator[np.ndarray]:
    for position, path in enumerate(paths):
        try:
            image = read_image(path)
        except ImageError as error:
            failures.append(error)
            bar.update()
            continue
        readable.append(position)
        yield image


def _writable_folder(output: str | os.PathLike) -> Path:
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write to the output folder {folder}: {reason}") from None
    return folder


def write_result(folder: Path, stem: str, result: Result) -> None:
    """Writes the files of one photo: all of them, or none when something fails on the way."""
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
    try:
        if result.panoptic is not None or result.semantic is not None:
            Image.fromarray(result.draw()).save(aside / f"{stem}.overlay.png")
        if result.panoptic is not None:
            Image.fromarray(visualization.panoptic_to_rgb(result.panoptic)).save(aside / f"{stem}.panoptic.png")
        if result.semantic is not None:
            Image.fromarray(result.semantic).save(aside / f"{stem}.semantic.png")
        text = json.dumps(to_json(stem, result), indent=1, ensure_ascii=False)
        (aside / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
        for file in sorted(aside.iterdir()):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def to_json(stem: str, result: Result) -> dict:
    """The content of photo.json: sizes, classes, `segments_info` and, where asked for, `instances` in COCO's form."""
    height, width = result.image.shape[:2]
    content = {
        "image": stem,
        "height": height,
        "width": width,
        "classes": [{"id": i, "name": name} for i, name in enumerate(result.vocabulary.names)],
    }
    if result.segments is not None:
        content["segments_info"] = [
            {
                "id": segment.id,
                "category_id": segment.category_id,
                "name": segment.name,
                "isthing": segment.isthing,
                "score": round(segment.score, 6),
                "area": segment.area,
            }
            for segment in result.segments
        ]
    if result.instances is not None:
        content["instances"] = [
            {
                "category_id": instance.category_id,
                "name": instance.name,
                "score": round(instance.score, 6),
                "segmentation": {"size": list(instance.rle["size"]), "counts": instance.rle["counts"].decode("ascii")},
            }
            for instance in result.instances
        ]
    return content


def table(title: str, result: Result) -> str:
    """The segments of one photo, the largest first, as text."""
    lines = [title]
    if result.segments is not None:
        pixels = result.image.shape[0] * result.image.shape[1]
        lines += [
            f"  {s.id:>4}  {'thing' if s.isthing else 'stuff'}  {s.score:5.2f}  {s.area / pixels:6.1%}  {s.name}"
            for s in _by_area(result.segments)
        ] or ["  no segment was found"]
    if result.instances is not None:
        lines.append(f"  {len(result.instances)} instances")
    return "\n".join(lines)


def _by_area(segments: Iterable) -> list:
    return sorted(segments, key=lambda segment: -segment.area)
