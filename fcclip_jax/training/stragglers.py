"""Who keeps the others waiting: a data worker of this process, or a process of the run."""

import statistics
from collections.abc import Mapping
from typing import Any

_SHARE = 0.1  # of the time: less is not worth a line
_TIMES = 3.0  # as long as the others


class DataWaits:
    """Seconds that steps waited for their batch, by the loader's worker that made it.

    Workers take turns, so the batch of step k comes from worker k mod `workers`.
    """

    def __init__(self, workers: int):
        self._waits: list[list[float]] = [[] for _ in range(max(workers, 1))]

    def add(self, step: int, seconds: float) -> None:
        """`step` counts from the first one of this process."""
        self._waits[step % len(self._waits)].append(seconds)

    def take(self) -> tuple[float, str]:
        """Mean seconds a step since the last call, and which worker is slow, if one is."""
        means = [statistics.fmean(waits) if waits else 0.0 for waits in self._waits]
        everything = [seconds for waits in self._waits for seconds in waits]
        self._waits = [[] for _ in self._waits]
        mean = statistics.fmean(everything) if everything else 0.0
        slowest = max(range(len(means)), key=means.__getitem__)
        others = [m for i, m in enumerate(means) if i != slowest]
        if not others or means[slowest] <= _TIMES * statistics.median(others) + 1e-3:
            return mean, ""
        return mean, f"data worker {slowest} of {len(means)} ({means[slowest]:.2f} s a batch, the others {statistics.fmean(others):.2f} s)"


def slow_process(told: Mapping[int, Mapping[str, Any]], hosts: Mapping[int, str]) -> str:
    """What to say about the process whose data takes much longer than the others', or nothing.

    All processes wait for the slowest one in every step, so the others' steps are as long, and only what each one
    waits for its own data tells them apart.

    Args:
        told: by process, `data_wait` and `step`, seconds a step, and `worker`, what DataWaits says.
    """
    waits = {i: figures["data_wait"] for i, figures in told.items() if isinstance(figures.get("data_wait"), int | float)}
    if not waits:
        return ""
    slowest = max(waits, key=waits.__getitem__)
    others = [wait for i, wait in waits.items() if i != slowest]
    step = told[slowest].get("step", 0.0)
    if waits[slowest] < _SHARE * step or (others and waits[slowest] < _TIMES * statistics.median(others)):
        return ""
    name = f"process {slowest} ({hosts[slowest]})" if hosts.get(slowest) else f"process {slowest}"
    line = f"{name} waits {waits[slowest]:.2f} s of a step's {step:.2f} s for its data"
    if others:
        line += f", the others {statistics.median(others):.2f} s"
    return line + (f": {worker}" if (worker := told[slowest].get("worker")) else "")
