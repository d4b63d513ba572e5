"""`fcclip segment`: photos on disk in; overlays, id maps, JSON and a table out."""

import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from fcclip_jax import visualization
from fcclip_jax.data.image_files import ImageError, find_images, output_stems, read_image
from fcclip_jax.models.shipped import ABOUT
from fcclip_jax.results.results import TASKS
from fcclip_jax.segmenter import Result, Segmenter
from fcclip_jax.vocabulary.vocabulary import Vocabulary

PICTURES = (".overlay.png", ".panoptic.png", ".semantic.png")


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
    tasks: Sequence[str] = TASKS,
    min_size: int | None = None,
    max_size: int | None = None,
    overlap_threshold: float = 0.8,
    object_threshold: float = 0.0,
    batch_size: int = 1,
) -> int:
    """Segments files and writes the results. What cannot be read is reported (to stderr) and passed over.

    Args:
        images: files, folders and patterns (`data.image_files.find_images`). Results of earlier runs that lie among
            the photos are passed over.
        checkpoint: a model folder; without it, the model that comes with the package, which stderr then says.
        min_size, max_size: of a photo in the network, as in `Segmenter`; the model's own where None.

    Returns:
        the exit code: 0, 1 when some photos failed, 2 when all did.

    Raises:
        ValueError, OSError: nothing can be done at all (no model, output not writable, disk full, memory short).
    """
    failures: list[str] = []
    paths = _find_photos(images, failures)
    if not paths:
        return 2
    folder = writable_folder(output)
    segmenter = _load(checkpoint, min_size=min_size, max_size=max_size)
    with tqdm(desc="words", unit=" prompts", leave=False, disable=None) as bar:
        segmenter.prepare(vocabulary, progress=lambda done, total: _advance(bar, done, total))
    stems, readable, written = output_stems(paths), [], 0
    started = time.perf_counter()
    with tqdm(total=len(paths), desc="photos", unit=" photo", disable=None) as bar, _memory_explained():
        results = segmenter.stream(
            _read_all(paths, readable, failures, bar),
            vocabulary,
            batch_size=batch_size,
            tasks=tasks,
            overlap_threshold=overlap_threshold,
            object_threshold=object_threshold,
        )
        for index, result in results:
            path, stem = paths[readable[index]], stems[readable[index]]
            try:
                write_result(folder, stem, result, image_name=path.name)
            except OSError as error:
                problem = f"cannot write the results of {path} to {folder}: {_reason(error)}"
                if error.errno != errno.ENAMETOOLONG:
                    raise ValueError(problem) from None
                _report(failures, problem)
                bar.update()
                continue
            written += 1
            tqdm.write(table(str(path), result))
            bar.update()
    seconds = time.perf_counter() - started
    failed = f"; {len(failures)} failed: see the errors above" if failures else ""
    print(f"{written} {'photo' if written == 1 else 'photos'} in {seconds:.1f} s, written to {folder}{failed}")
    return (1 if written else 2) if failures else 0


def _load(checkpoint: str | os.PathLike | None, **sizes: int | None) -> Segmenter:
    given = {key: size for key, size in sizes.items() if size is not None}
    if checkpoint is not None:
        return Segmenter.from_checkpoint(checkpoint, **given)
    print(ABOUT, file=sys.stderr)
    return Segmenter.shipped(**given)


def _report(failures: list[str], problem: object) -> None:
    failures.append(str(problem))
    tqdm.write(f"error: {problem}", file=sys.stderr)


def _find_photos(images: Sequence[str | os.PathLike], failures: list[str]) -> list[Path]:
    """The photos meant, each once. Arguments that stand for none are reported, the others are still worked off."""
    found: list[Path] = []
    for image in images:
        try:
            found += find_images([image])
        except ImageError as error:
            _report(failures, error)
    paths = find_images(found) if found else []
    photos = [path for path in paths if not _is_result(path)]
    if len(photos) < len(paths):
        print(f"passed over: {len(paths) - len(photos)} files that earlier runs have written", file=sys.stderr)
    if paths and not photos:
        _report(failures, "there are only results of earlier runs, no photos")
    return photos


def _is_result(path: Path) -> bool:
    """Whether an earlier run has written this file: a picture beside the JSON file of its photo, or that file."""
    for suffix in PICTURES:
        if path.name.endswith(suffix):
            return path.with_name(f"{path.name.removesuffix(suffix)}.json").is_file()
    return path.suffix == ".json" and any(path.with_suffix(suffix).is_file() for suffix in PICTURES)


def _advance(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _read_all(paths: Sequence[Path], readable: list[int], failures: list[str], bar: tqdm) -> Iterator[np.ndarray]:
    for position, path in enumerate(paths):
        try:
            image = read_image(path)
        except ImageError as error:
            _report(failures, error)
            bar.update()
            continue
        readable.append(position)
        yield image


@contextlib.contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError("not enough memory: give a smaller --batch_size, --min_size or --max_size") from error


def _reason(error: OSError) -> str:
    # Pillow's encoders do not say what went wrong while they wrote.
    return error.strerror or f"{error} (is the disk full?)"


def writable_folder(output: str | os.PathLike) -> Path:
    """The folder, made where it is missing.

    Raises:
        ValueError: nothing can be written there.
    """
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise ValueError(f"cannot write to the output folder {folder}: it is a file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write to the output folder {folder}: {reason}") from None
    return folder


def write_result(folder: Path, stem: str, result: Result, *, image_name: str) -> None:
    """Writes the files of one photo: all of them, or none when something fails on the way.

    Raises:
        OSError: the disk is full, or the folder not writable.
    """
    overlay, panoptic, semantic = (f"{stem}{suffix}" for suffix in PICTURES)
    pictures = {}
    if result.panoptic is not None or result.semantic is not None:
        pictures[overlay] = result.draw
    if result.panoptic is not None:
        pictures[panoptic] = lambda: visualization.panoptic_to_rgb(result.panoptic)
    if result.semantic is not None:
        pictures[semantic] = lambda: result.semantic
    text = json.dumps(to_json(image_name, result), indent=1, ensure_ascii=False) + "\n"
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
    try:
        for name, draw in pictures.items():
            Image.fromarray(draw()).save(aside / name)
        # A file name that is no text (a lone surrogate here) becomes an escape, which JSON reads back as it was.
        (aside / f"{stem}.json").write_text(text, encoding="utf-8", errors="backslashreplace")
        for name in (*pictures, f"{stem}.json"):
            (aside / name).replace(folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def to_json(image_name: str, result: Result) -> dict:
    """The content of photo.json: sizes, classes, `segments_info` and `instances` (in COCO's form), each where asked
    for. `category_id` counts the classes of the vocabulary from 0; `label_id` is a label file's own number."""
    height, width = result.image.shape[:2]
    content = {
        "image": image_name,
        "height": height,
        "width": width,
        "classes": [
            {"id": i, "name": c.name, "isthing": c.isthing} | ({} if c.id is None else {"label_id": c.id})
            for i, c in enumerate(result.vocabulary.classes)
        ],
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
    height, width = result.image.shape[:2]
    lines = [f"{title}  ({width} x {height})"]
    if result.segments:
        lines.append("    id  kind   score    area  name")
        for s in sorted(result.segments, key=lambda segment: -segment.area):
            kind, share = "thing" if s.isthing else "stuff", s.area / (height * width)
            lines.append(f"  {s.id:>4}  {kind}  {s.score:5.2f}  {share:6.1%}  {s.name}")
    elif result.segments is not None:
        lines.append("  no segment was found")
    if result.instances is not None:
        lines.append(f"  {len(result.instances)} instances")
    return "\n".join(lines)
