"""Where the supervisors of a run's hosts agree, before each start, which hosts take part: a folder that all can see.

Round after round: everybody who is there keeps a file up to date in the round's folder, the first by name decides,
and what is decided stands in one file that is created once. A host that comes too late waits for the next round.

Standard library alone. The folder must be on a shared file system (not in an object store).
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_DECIDED, _FINISHED = "decided.json", "finished.json"
_PRESENT = 10.0  # seconds since a host last touched its file
_PERIOD = 0.25
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class NobodyCame(RuntimeError):
    """Too few hosts for any of the sizes allowed."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A host's part in one start of the run. `index` is None for a host that is to wait for the next round."""

    round: int
    index: int | None
    count: int
    coordinator: str


class Meeting:
    """This host's view of the folder."""

    def __init__(
        self,
        folder: Path,
        name: str,
        address: str,
        sizes: Sequence[int],
        *,
        gather: float = 60.0,
        give_up: float = 1800.0,
        stopped: Callable[[], bool] = lambda: False,
    ):
        """
        Args:
            name: of this host, unlike any other's; the order of names is the order of processes.
            address: under which the others reach this host.
            sizes: numbers of hosts that the run may have.
            gather: seconds to wait for the largest of `sizes` before a smaller one is taken.
            give_up: seconds after which too few hosts are an error.
            stopped: asked now and then whether to give up at once.

        Raises:
            ValueError: a name that cannot be a file's, or no sizes.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"a host's name has letters, digits, dots and dashes, not {name!r}")
        if not sizes or min(sizes) < 1:
            raise ValueError(f"numbers of hosts are whole numbers above 0, such as 4,2,1, not {list(sizes)}")
        self._folder, self._name, self._address, self._sizes = folder, name, address, sorted(set(sizes), reverse=True)
        self._gather, self._give_up, self._stopped = gather, give_up, stopped
        self._round: int | None = None

    def next(self) -> Part | int | None:
        """Meets for the next start. Returns this host's part; or the exit code of the run, where it ended while this
        host waited; or None when stopped.

        Raises:
            NobodyCame: not enough hosts for the smallest size within `give_up` seconds.
        """
        self._round = self._open_round() if self._round is None else self._round + 1
        folder = self._folder / f"round-{self._round:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        own, began = folder / f"{self._name}.host", time.monotonic()
        try:
            while not self._stopped():
                if (found := _read(folder / _DECIDED)) is not None:
                    return self._part(found)
                if (ended := self._ended(self._round - 1)) is not None:
                    return ended
                _write(
                    own,
                    {"name": self._name, "address": self._address, "port": _free_port()} if not own.exists() else None,
                )
                self._maybe_decide(folder, own, time.monotonic() - began)
                time.sleep(_PERIOD)
            return None
        finally:
            own.unlink(missing_ok=True)

    def finish(self, code: int) -> None:
        """Tells those who wait for the next round that the run has ended."""
        if self._round is not None:
            with contextlib.suppress(OSError):
                _write(self._folder / f"round-{self._round:06d}" / _FINISHED, {"code": code})

    def _open_round(self) -> int:
        rounds = [int(p.name[6:]) for p in self._folder.glob("round-*") if p.name[6:].isdecimal()]
        last = max(rounds, default=0)
        number = last + (self._folder / f"round-{last:06d}" / _DECIDED).is_file()
        # A run that has ended is begun anew beyond the round in which its spare hosts wait, and hear of the end.
        return number + (self._ended(number - 1) is not None)

    def _ended(self, number: int) -> int | None:
        found = _read(self._folder / f"round-{number:06d}" / _FINISHED)
        return None if found is None else int(found["code"])

    def _maybe_decide(self, folder: Path, own: Path, waited: float) -> None:
        here = self._here(folder, own)
        if not here or here[0]["name"] != self._name:
            return
        fitting = [size for size in self._sizes if size <= len(here)]
        if fitting and (fitting[0] == self._sizes[0] or waited >= self._gather):
            _write_once(folder / _DECIDED, {"hosts": here[: fitting[0]]})
        elif waited >= self._give_up:
            names = ", ".join(host["name"] for host in here)
            raise NobodyCame(
                f"{len(here)} hosts came to {self._folder} within {waited:.0f} s ({names}), at least "
                f"{self._sizes[-1]} are needed"
            )

    def _here(self, folder: Path, own: Path) -> list[dict]:
        """Who is present, by name. Ages are taken by the file server's clock, from this host's own file."""
        found = []
        now = own.stat().st_mtime
        for path in folder.glob("*.host"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime < _PRESENT and (host := _read(path)) is not None:
                    found.append(host)
        return sorted(found, key=lambda host: host["name"])

    def _part(self, decided: dict) -> Part:
        names = [host["name"] for host in decided["hosts"]]
        first = decided["hosts"][0]
        index = names.index(self._name) if self._name in names else None
        return Part(self._round or 0, index, len(names), f"{first['address']}:{first['port']}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(path: Path, content: dict | None) -> None:
    """Atomically; with None only the time of the file."""
    if content is None:
        os.utime(path)
        return
    aside = _aside(path, content)
    aside.replace(path)


def _write_once(path: Path, content: dict) -> None:
    """Whoever is first; a later one changes nothing."""
    aside = _aside(path, content)
    with contextlib.suppress(FileExistsError):
        os.link(aside, path)
    aside.unlink()


def _aside(path: Path, content: dict) -> Path:
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(number, "w", encoding="utf-8") as file:
        json.dump(content, file)
    return Path(name)
