"""What a compiled step sends from device to device, read off its HLO text."""

import dataclasses
import math
import re
from collections.abc import Iterable

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")

_BITS = {"pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}
_BITS |= {"s64": 64, "u64": 64, "f64": 64}
_COLLECTIVE = re.compile(rf"(?:ROOT )?%?\S+ = (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation of the program. `bytes`: of the whole array, before or after it was split over the `group`
    devices; `looped`: inside a loop, and so more often than once."""

    kind: str
    bytes: int
    group: int
    looped: bool = False

    @property
    def sent(self) -> float:
        """Bytes that each device sends where the group is a ring: all but its own part, for a sum twice."""
        share = (self.group - 1) / self.group
        if self.kind == "all-reduce":
            return 2 * share * self.bytes
        return share * self.bytes if self.kind in ("all-gather", "reduce-scatter", "all-to-all") else float(self.bytes)


def collectives(hlo: str, devices: int) -> list[Collective]:
    """All of a compiled program, in its order.

    Args:
        hlo: as of `compiled.as_text()`.
        devices: that the program runs on; the group where it names none.
    """
    bodies = set(re.findall(r"\bbody=%?([\w.-]+)", hlo))
    found, looped = [], False
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = re.match(r"(?:ENTRY )?%?([\w.-]+)", line)
            looped = name is not None and name[1] in bodies
        match = _COLLECTIVE.match(line.strip())
        if match is None:
            continue
        shapes, kind = _SHAPE.findall(match[1]), match[2]
        if "-start(" in match[0] and kind == "all-gather":
            shapes = shapes[len(shapes) // 2 :]  # (what goes in, what comes out)
        group = _group(line, devices)
        size = sum(
            math.prod(int(n) for n in dims.split(",") if n) * _BITS.get(kind_, 32) // 8 for kind_, dims in shapes
        )
        found.append(Collective(kind, size * group if kind == "reduce-scatter" else size, group, looped))
    return [one for one in found if one.group > 1]


def _group(line: str, devices: int) -> int:
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(iota[2])
    return devices


def totals(found: Iterable[Collective]) -> dict[str, dict[str, int | float]]:
    """By kind: `count`, `bytes` of whole arrays, and `sent` by each device."""
    sums: dict[str, dict[str, int | float]] = {}
    for one in found:
        row = sums.setdefault(one.kind, {"count": 0, "bytes": 0, "sent": 0.0})
        row["count"] += 1
        row["bytes"] += one.bytes
        row["sent"] += one.sent
    return sums
