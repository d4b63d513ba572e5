"""Runs conversions of files in several processes, so that a run that was cut off goes on where it stood.

A conversion writes its files aside and renames them, so what is there is complete. What a summary (a JSON over all
images) needs from each stands meanwhile in a journal beside it.
"""

import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from fcclip_jax.data.records import DataError

# A worker takes about half a second to start, in which one process converts some tens of images.
_WORTH_WORKERS = 64


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One image's work. `convert()` writes `outputs` (by `write_aside`) and returns what the summary needs, as JSON
    takes it; it is pickled for the workers. It raises DataError for what cannot be used."""

    name: str
    outputs: tuple[Path, ...]
    convert: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """The conversions of one split. `summary`: the JSON file over all images, made by `summarise` from what the
    conversions returned, in their order."""

    title: str
    conversions: Sequence[Conversion]
    summary: Path | None = None
    summarise: Callable[[list[Any]], Any] | None = None


@dataclasses.dataclass
class Outcome:
    """Counts of images: `made` now, `kept` from before, and the messages of the `bad` ones."""

    made: int = 0
    kept: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)


def run(job: Job, *, workers: int | None = None, skip_bad: bool = False) -> Outcome:
    """Does what is not done yet.

    Args:
        workers: processes; 1 works in this one. Default: as many as there are processors, or 1 for a few images.
        skip_bad: go on after a DataError; the summary is written without that image, which the next run tries again.

    Raises:
        DataError: of the first bad image, unless `skip_bad`; what is done until then is kept.
        OSError: the disk is full, a folder is not writable, a worker died.
    """
    journal = _Journal(job)
    left = [n for n in range(len(job.conversions)) if not journal.has(n)]
    outcome = Outcome(kept=len(job.conversions) - len(left))
    if not left and (job.summary is None or job.summary.is_file()):
        journal.remove()
        return outcome
    for folder in {path.parent for n in left for path in job.conversions[n].outputs}:
        folder.mkdir(parents=True, exist_ok=True)
    if workers is None:
        workers = (os.cpu_count() or 1) if len(left) >= _WORTH_WORKERS else 1
    with (
        tqdm(total=len(job.conversions), initial=outcome.kept, desc=job.title, unit=" image", disable=None) as bar,
        journal,
    ):
        for n, note, error in _convert_all(job.conversions, left, workers):
            if error is None:
                journal.add(n, note)
                outcome.made += 1
            elif skip_bad:
                outcome.bad.append(str(error))
            else:
                raise error
            bar.update()
    if job.summary is not None:
        write_json(job.summary, job.summarise([note for _, note in sorted(journal.notes.items())]))
    if not outcome.bad:
        journal.remove()
    return outcome


class _Journal:
    """What the finished conversions of a job returned: JSON lines beside the summary while the job is not done."""

    def __init__(self, job: Job):
        self._job, self._file = job, None
        self.notes: dict[int, Any] = {}
        self._path = None if job.summary is None else job.summary.with_name(f".{job.summary.name}.journal")
        kept = self._path is not None and self._path.is_file()
        if kept:
            self._load()
        # A summary without a journal stands for all images or, when a file of one is gone, for none.
        self._complete = job.summary is None or (
            not kept and job.summary.is_file() and all(map(_is_there, job.conversions))
        )

    def _load(self) -> None:
        place = {conversion.name: n for n, conversion in enumerate(self._job.conversions)}
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                name, note = json.loads(line)
            except (ValueError, TypeError):  # the last line of a run that was cut off
                continue
            if name in place and _is_there(self._job.conversions[place[name]]):
                self.notes[place[name]] = note

    def has(self, n: int) -> bool:
        """Whether conversion `n` is done: its files are there, and so is its part of the summary."""
        return n in self.notes or (self._complete and _is_there(self._job.conversions[n]))

    def __enter__(self) -> "_Journal":
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A line that was cut off must not swallow the next.
            self._file = self._path.open("a", encoding="utf-8")
            if self._path.stat().st_size:
                self._file.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, n: int, note: Any) -> None:
        if self._file is not None:
            self.notes[n] = note
            self._file.write(json.dumps([self._job.conversions[n].name, note]) + "\n")
            self._file.flush()

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _is_there(conversion: Conversion) -> bool:
    return all(path.is_file() for path in conversion.outputs)


Result = tuple[int, Any, DataError | None]


def _convert_all(conversions: Sequence[Conversion], left: Sequence[int], workers: int) -> Iterator[Result]:
    """The number of each conversion of `left`, what it returned, or its error; in order, and no more than a few ahead:
    those are done again after an interruption."""
    if workers == 1:
        for n in left:
            yield _convert_one(n, conversions[n])
        return
    waiting = iter(left)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _ignore_interrupts)
    try:
        pending = deque(pool.submit(_convert_one, n, conversions[n]) for n in itertools.islice(waiting, 2 * workers))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(_convert_one, n, conversions[n]) for n in itertools.islice(waiting, 1))
            yield result
    except BrokenProcessPool:
        raise OSError("a worker process died, perhaps for want of memory: try fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """The process that was started by hand is interrupted, and lets its workers finish what they hold."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _convert_one(n: int, conversion: Conversion) -> Result:
    try:
        return n, conversion.convert(), None
    except DataError as error:
        return n, None, error


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """`write(aside)`, then a rename to `path`: the file is whole or not there. Its folder must be there.

    A file that is left aside by a run that was killed is overwritten by the next one.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG, JPEG or TIFF, by the name's ending, with Pillow's settings."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    write_aside(path, lambda aside: Image.fromarray(pixels).save(aside, format=kind))


def copy_file(source: Path, path: Path) -> None:
    """Copies a file with its times. Raises DataError when it is not there."""
    if not source.is_file():
        raise DataError(source, "no such file")
    write_aside(path, lambda aside: shutil.copy2(source, aside))


def write_json(path: Path, content: Mapping | Sequence) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda aside: aside.write_text(json.dumps(content), encoding="utf-8"))
