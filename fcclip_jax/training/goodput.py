"""What a run's time went into, over all its restarts: `goodput.json` in the work folder.

Of the time since the first start, what counts is the time in steps whose result was kept.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fcclip_jax.training.work_folder import Folder, write_whole

log = logging.getLogger(__name__)

FILE = "goodput.json"
# What a process does. `start` is everything before the first batch, `step` all that is none of the others.
KINDS = ("start", "compile", "step", "data", "checkpoint", "evaluation")
_VERSION = 1
_SAVES = 64  # places of the last saves that are remembered


class Goodput:
    """A stopwatch that always runs, for one of KINDS at a time.

    Each start of the run is an attempt: `began` and `ended` (Unix seconds; `ended` is the last time that it wrote),
    `first_step`, `last_step`, `seconds` of each kind, and `saves`, rows of (step, seconds in steps and data until
    then).
    """

    def __init__(
        self,
        path: Folder | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ):
        """
        Args:
            path: where it is kept; None in all processes but the first.
            clock, now: seconds, steady and since 1970.
        """
        self._path, self._clock, self._now = path, clock, now
        self._attempts = _read(path)
        self._kind, self._since = "start", clock()
        began = now()
        self._attempt: dict[str, Any] = {
            "began": began,
            "ended": began,
            "first_step": 0,
            "last_step": 0,
            "seconds": dict.fromkeys(KINDS, 0.0),
            "lost": 0.0,
            "down": max(0.0, began - self._attempts[-1]["ended"]) if self._attempts else 0.0,
            "saves": [],
        }

    def resumed(self, step: int) -> None:
        """The run goes on after `step`: what earlier attempts did beyond it is lost."""
        self._attempt["first_step"] = self._attempt["last_step"] = step
        for attempt in reversed(self._attempts):
            if attempt["last_step"] <= step:
                break
            useful = attempt["seconds"]["step"] + attempt["seconds"]["data"]
            kept = [seconds for saved, seconds in attempt["saves"] if saved == step]
            if kept or attempt["first_step"] <= step:
                self._attempt["lost"] += useful - (kept[-1] if kept else 0.0)
                break
            self._attempt["lost"] += useful
        # A later attempt's loss must not be counted again.
        for attempt in self._attempts:
            attempt["saves"] = [row for row in attempt["saves"] if row[0] <= step]

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """The time inside counts as `kind`, one of KINDS."""
        before = self.switch(kind)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, kind: str) -> str:
        """From now on it is `kind`. Returns what it was."""
        before, now = self._kind, self._clock()
        self._attempt["seconds"][before] += now - self._since
        self._kind, self._since = kind, now
        return before

    def saved(self, step: int) -> None:
        """The state after `step` is being saved."""
        self.switch(self._kind)
        seconds = self._attempt["seconds"]
        self._attempt["saves"] = [*self._attempt["saves"], [step, seconds["step"] + seconds["data"]]][-_SAVES:]

    def write(self, step: int) -> None:
        """Brings the file up to date. An error is a warning: a run is worth more than its diary."""
        self.switch(self._kind)
        self._attempt |= {"last_step": step, "ended": self._now()}
        if self._path is None:
            return
        content = {"version": _VERSION, "summary": self.summary(), "attempts": [*self._attempts, self._attempt]}
        try:
            write_whole(self._path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            log.warning("%s was not written: %s", self._path, error)

    def summary(self) -> dict[str, int | float]:
        """Seconds of each kind in all attempts; `step` without `lost`, the time in steps (and their data) that had to
        be done again, and `down`, between attempts; `total`; and `goodput`, the share of `step` in the total."""
        attempts = [*self._attempts, self._attempt]
        sums = {kind: sum(attempt["seconds"][kind] for attempt in attempts) for kind in KINDS}
        for kind in ("lost", "down"):
            sums[kind] = sum(attempt[kind] for attempt in attempts)
        total = sum(sums[kind] for kind in KINDS) + sums["down"]
        sums["step"] -= sums["lost"]
        return sums | {
            "total": total,
            "restarts": len(attempts) - 1,
            "goodput": max(0.0, sums["step"]) / max(total, 1e-9),
        }

    def line(self) -> str:
        """The summary as a person reads it."""
        summary = self.summary()
        parts = [f"{kind} {summary[kind]:.0f} s" for kind in (*KINDS, "lost", "down") if summary[kind] >= 0.5]
        return (
            f"goodput {summary['goodput']:.1%} of {summary['total']:.0f} s ({summary['restarts']} restarts): "
            + ", ".join(parts)
        )


def _read(path: Folder | None) -> list[dict[str, Any]]:
    """Earlier attempts; none where the file is damaged or of another version."""
    if path is None or not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}")
        attempts = content["attempts"]
        for attempt in attempts:
            _check(attempt)
        return attempts
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s): counting begins anew", path, error)
        return []


def _check(attempt: Mapping[str, Any]) -> None:
    numbers = [attempt[key] for key in ("began", "ended", "first_step", "last_step", "lost", "down")]
    numbers += [attempt["seconds"][kind] for kind in KINDS]
    numbers += [number for step, seconds in attempt["saves"] for number in (step, seconds)]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("a figure is not a number")
