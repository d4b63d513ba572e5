"""A table of all parameters: what is trained, in which group of the optimizer, and how it is split over devices."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clu import parameter_overview

from fcclip_jax.training.optimizer import FROZEN, group_of
from fcclip_jax.training.sharding import partition_spec


@dataclasses.dataclass(frozen=True)
class _Row:
    name: str
    shape: tuple[int, ...]
    size: int
    group: str
    split: str


def parameter_table(parameters: Mapping[str, Any], fsdp: int, *, fine_tune: bool = False) -> str:
    """Name, shape, size, optimizer group and split of every parameter, and the totals of each group.

    Args:
        parameters: arrays or shapes by dotted name.
        fsdp: parts that the mesh splits parameters into.
        fine_tune: the image tower is trained.
    """
    rows = [
        _Row(
            name,
            tuple(array.shape),
            math.prod(array.shape),
            group_of(name, fine_tune=fine_tune),
            "whole" if not any(partition_spec(name, tuple(array.shape), fsdp)) else f"1/{fsdp}",
        )
        for name, array in parameters.items()
    ]
    rows.sort(key=lambda row: row.group == FROZEN)  # what is trained first, else in the model's order
    totals: dict[str, int] = {}
    for row in rows:
        totals[row.group] = totals.get(row.group, 0) + row.size
    trained = sum(size for group, size in totals.items() if group != FROZEN)
    lines = [f"{group}: {size:,}" for group, size in totals.items()]
    lines.append(f"trained: {trained:,}; frozen: {totals.get(FROZEN, 0):,}")
    return parameter_overview.make_table(rows) + "\n" + "\n".join(lines) + "\n"
