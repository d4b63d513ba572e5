"""The folder of one evaluation: whose it is, the records of its images, and what comes out of it.

evaluation.json     what was evaluated: model, words, data set, options, and the fingerprint of these
records/            what was counted of each image; files of image_records.py, one for each process and start
predictions/        in the official formats, where asked for
worst/              pictures, where asked for
figures.json  report.md   at the end
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcclip_jax.evaluation.image_records import ImageRecord, RecordWriter, read_record, read_records
from fcclip_jax.evaluation.json_files import write_json

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

IDENTITY_FILE = "evaluation.json"
_RECORDS, _ENDING = "records", ".records"


class FolderError(ValueError):
    """The folder belongs to another evaluation, or another process works in it."""


@dataclasses.dataclass(frozen=True)
class Known:
    """Where the record of an image stands, and its `score` and `skipped`."""

    path: Path
    place: int
    score: float | None
    skipped: str | None


class ResultFolder:
    """Opens the folder, and makes it where there is none.

    Raises:
        OSError: it cannot be written to.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._records = self.path / _RECORDS
        self._records.mkdir(parents=True, exist_ok=True)
        self._lock = None

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Makes this the folder of the evaluation that `identity` (plain JSON) describes. A folder without a record
        has nothing to lose and is taken over. One process of an evaluation does this, before the others read.

        Raises:
            FolderError: it holds records of another evaluation, or another process has claimed it and still runs.
        """
        self._lock = (self.path / ".lock").open("w")
        try:
            # Without locks, two at a time do the work twice, and no harm.
            with contextlib.suppress(AttributeError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderError(f"another evaluation is running in {self.path}: give another --output") from None
        except OSError:
            pass
        identity = json.loads(json.dumps(identity))
        path = self.path / IDENTITY_FILE
        if self.files() and path.is_file():
            try:
                theirs = json.loads(path.read_text(encoding="utf-8"))["identity"]
                differing = _differences(theirs, identity)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise FolderError(
                    f"{path} is damaged; it says whose results lie beside it. Give another --output"
                ) from None
            if differing:
                more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
                raise FolderError(
                    f"{self.path} holds the results of another evaluation: {', '.join(differing[:4])}{more}. "
                    "Give another --output, or the same as then to go on"
                )
        elif self.files():
            raise FolderError(
                f"{self.path} holds results, but no {IDENTITY_FILE} that says of what: give another --output"
            )
        write_json(path, {"fingerprint": fingerprint(identity), "identity": identity})

    def files(self) -> list[Path]:
        """The files of records, the oldest first. Empty ones are none."""
        return sorted(p for p in self._records.glob(f"*{_ENDING}") if p.stat().st_size)

    def start_number(self) -> int:
        """The number of the next start: above that of any file."""
        return max((int(p.name.split("-")[0]) for p in self._records.glob(f"*{_ENDING}")), default=0) + 1

    def writer(self, start: int, process: int) -> RecordWriter:
        """A new file for what this process counts."""
        return RecordWriter(self._records / f"{start:05}-{process:05}{_ENDING}")

    def images(self) -> dict[int, "Known"]:
        """The images that have a record, by their place in the source. One that was counted stands before one that was
        passed over, and of these the last."""
        known: dict[int, Known] = {}
        for path in self.files():
            for place, record in read_records(path):
                if record.index not in known or known[record.index].skipped is not None:
                    known[record.index] = Known(path, place, record.score, record.skipped)
        return known

    def read(self, known: "Known") -> ImageRecord:
        """ValueError: the file was damaged since."""
        return read_record(known.path, known.place)

    def release(self) -> None:
        """Ends the claim."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def fingerprint(identity: Mapping[str, Any]) -> str:
    """SHA-256 (64 hex digits) of plain JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode("utf-8")).hexdigest()


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        return [
            d for key in keys for d in _differences(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if theirs == ours else [f"{name} {_short(theirs)} (now {_short(ours)})"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
