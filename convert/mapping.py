"""Applies a name map to a model's parameters: which of their arrays fill which of ours, checked both ways."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from convert.checkpoint_files import Checkpoint
from convert.name_maps import TEXT_MODULE, Ignored, Row
from convert.stored_arrays import FLOATS, CheckpointError
from convert.transforms import TRANSFORMS, Shape, Transform

_PARTS = ("query", "key", "value")
# How many names of each kind of mistake are shown; the rest is counted.
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Step:
    """One of their arrays, `source`, and those of ours that it fills. `shapes`: what it may have, the usual first."""

    row: int
    source: str
    targets: tuple[str, ...]
    shapes: tuple[Shape, ...]
    transform: Transform


def plan(rows: Sequence[Row], shapes: Mapping[str, Shape]) -> list[Step]:
    """The steps that fill every parameter of a model exactly once, in PyTorch's order of their arrays.

    Args:
        rows: a name map.
        shapes: of our parameters, by name.

    Raises:
        ValueError: the map and the model do not fit: a parameter without a row, with two, or a third of one.
    """
    steps: list[Step] = []
    filled: dict[str, int] = dict.fromkeys(shapes, 0)
    for index, (theirs, ours, kind) in enumerate(rows):
        # One match for each source: that of `query` stands for all three parts.
        pattern = _regex(ours.replace("*", _PARTS[0]))
        for match in filter(None, map(pattern.fullmatch, shapes)):
            numbers = match.groupdict()
            targets = [_fill(ours.replace("*", part), numbers) for part in (_PARTS if "*" in ours else ("",))]
            for target in targets:
                if target not in filled:
                    raise ValueError(f"row {theirs!r} needs the parameter {target}, which the model does not have")
                filled[target] += 1
            transform = TRANSFORMS[kind]
            their_shapes = transform.their_shapes(*(shapes[target] for target in targets))
            steps.append(Step(index, _fill(theirs, numbers), tuple(targets), their_shapes, transform))
    wrong = [f"{name} ({count} rows)" for name, count in filled.items() if count != 1]
    if wrong:
        raise ValueError(f"not exactly one row of the map for: {', '.join(wrong)}")
    place = _torch_order([theirs for theirs, _, _ in rows])
    return sorted(steps, key=lambda step: place(step.source))


def _regex(pattern: str) -> re.Pattern:
    return re.compile(re.sub(r"\\{([ij])\\}", r"(?P<\1>0|[1-9][0-9]*)", re.escape(pattern)))


def _fill(pattern: str, numbers: Mapping[str, str]) -> str:
    for letter, number in numbers.items():
        pattern = pattern.replace("{" + letter + "}", number)
    return pattern


def _torch_order(patterns: Iterable[str]) -> Callable[[str], list[tuple[int, int]]]:
    """Sorts names as PyTorch lists them: module by module, in the order in which the patterns first name them."""
    ranks: dict[tuple[str, ...], int] = {}
    for pattern in patterns:
        parts = tuple("#" if part.startswith("{") else part for part in pattern.split("."))
        for end in range(1, len(parts) + 1):
            ranks.setdefault(parts[:end], len(ranks))

    def place(name: str) -> list[tuple[int, int]]:
        known: tuple[str, ...] = ()
        keys = []
        for part in name.split("."):
            numbered = part.isdigit() and (*known, part) not in ranks
            known = (*known, "#" if numbered else part)
            keys.append((ranks[known], int(part) if numbered else 0))
        return keys

    return place


def without_text_module(checkpoint: Checkpoint, prefix: str) -> dict[str, str]:
    """Name in the map -> name in the file, with the `text.` of a separate text module taken away."""
    names: dict[str, str] = {}
    for name in checkpoint.arrays:
        inner = prefix + TEXT_MODULE
        usual = prefix + name.removeprefix(inner) if name.startswith(inner) else name
        if usual in names:
            raise CheckpointError(f"{checkpoint.path} holds both {usual} and {name}")
        names[usual] = name
    return names


class Source:
    """A checkpoint seen through a name map: our names -> arrays.

    Attributes:
        shapes: of our parameters, by name.
        steps: as `plan` gives them.
        ignored: what is in the checkpoint and not converted, with its whole name.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        rows: Sequence[Row],
        ignored: Sequence[Ignored],
        shapes: Mapping[str, Shape],
        *,
        names: Mapping[str, str],
        apart: Sequence[str] = (),
    ):
        """Checks everything that can be checked without reading the arrays.

        Args:
            names: name in the map -> name in the file.
            apart: names that the caller deals with.

        Raises:
            CheckpointError: arrays are missing, not expected, of another shape, not of floating point, or ignored
                ones do not hold what they should: all in one message.
        """
        self.shapes = shapes
        self.steps = plan(rows, shapes)
        self._checkpoint, self._names = checkpoint, names
        self._place = {target: (step, i) for step in self.steps for i, target in enumerate(step.targets)}
        self.ignored = [
            dataclasses.replace(row, name=name) for row in ignored for name in filter(_regex(row.name).fullmatch, names)
        ]
        passed_over = {row.name for row in self.ignored} | set(apart)
        problems = _differences(self.steps, checkpoint, names, passed_over)
        problems += _listed(
            "not what they should be",
            [
                f"{row.name} is not {row.meaning}"
                for row in self.ignored
                if not row.holds(checkpoint.read(names[row.name]))
            ],
        )
        if problems:
            raise CheckpointError(f"{checkpoint.path} does not fit the model it is read as:\n" + "\n".join(problems))

    def read(self, target: str) -> np.ndarray:
        """One of our parameters, float32, C-contiguous."""
        step, part = self._place[target]
        array = step.transform.to_ours(self._checkpoint.read(self._names[step.source]))[part]
        return np.asarray(array, np.float32, order="C")


def _differences(
    steps: Sequence[Step], checkpoint: Checkpoint, names: Mapping[str, str], passed_over: set[str]
) -> list[str]:
    expected = {step.source: step.shapes for step in steps}
    accounted = expected.keys() | passed_over
    arrays = {name: checkpoint.arrays[stored] for name, stored in names.items() if name in expected}
    return [
        *_listed("missing", [name for name in expected if name not in names]),
        *_listed("not expected", [stored for name, stored in names.items() if name not in accounted]),
        *_listed(
            "of another shape",
            [
                f"{name} {array.shape}, expected {expected[name][0]}"
                for name, array in arrays.items()
                if array.shape not in expected[name]
            ],
        ),
        *_listed(
            "not of floating point",
            [f"{name} {array.dtype}" for name, array in arrays.items() if array.dtype not in FLOATS],
        ),
    ]


def _listed(kind: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"  {len(names)} {kind}: {', '.join(names[:_SHOWN])}{more}"]
