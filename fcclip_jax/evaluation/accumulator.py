"""What all metrics have in common, and how a half-done evaluation is kept on disk."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Accumulator(Protocol):
    """A metric on its way: fed with images, merged with others, kept as arrays, turned into figures at the end.

    `update` (each metric has its own arguments) counts one image or raises and counts nothing. `merge` is
    associative and commutative to the bit, so that figures do not depend on how images were spread over processes.
    """

    def merge(self, other: Any) -> None:
        """Adds what `other` has counted. ValueError: it counts other classes."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything counted so far, as plain arrays without objects."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what was counted by a `state()`. ValueError: that counted other classes."""

    def compute(self) -> dict:
        """The figures in percent, `None` where there is nothing to count, and the list `per_class`."""


def save_state(path: str | os.PathLike, state: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to an npz file, aside and renamed: the file is the old or the new one, never half of it."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as file:
            np.savez(file, **state)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load_state(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads what `save_state` wrote.

    Raises:
        ValueError: not such a file. FileNotFoundError: there is none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is not a saved evaluation state: {error}") from None


def check_same(mine: object, theirs: object, what: str) -> None:
    """ValueError unless two accumulators count the same thing."""
    if not np.array_equal(np.asarray(mine), np.asarray(theirs)):
        raise ValueError(f"cannot combine evaluations with different {what}")


def percent(part: float | np.number, whole: float | np.number) -> float | None:
    """`100 part / whole`; None when `whole` is 0."""
    return float(100.0 * part / whole) if whole else None
