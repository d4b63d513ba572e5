"""Who keeps the others waiting: a data worker of this process, or a process of the run.

All processes wait for the slowest one in every step, so the others' steps are as long; only what each one waits for
its own data tells them apart.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from fcclip_jax.training.lifeline import Lifeline, process_name

_SHARE = 0.1  # of a step: less is not worth a line
_TIMES = 3.0  # as long as the others
_FEWEST = 4  # steps; the first ones wait for the loader to start


class DataWaits:
    """Seconds that steps waited for their batch, by the loader's worker that made it.

    Workers take turns, so the batch of this process's step k comes from worker k mod `workers`.
    """

    def __init__(self, workers: int, lifeline: Lifeline | None = None):
        self._waits: list[list[float]] = [[] for _ in range(max(workers, 1))]
        self._lifeline, self._count = lifeline, 0

    def add(self, seconds: float) -> None:
        """Of the next step."""
        self._waits[self._count % len(self._waits)].append(seconds)
        self._count += 1

    def slow(self, seconds_per_step: float) -> str:
        """Of the steps since the last call: in process 0 who kept the run waiting for data, if somebody did."""
        waits, self._waits = self._waits, [[] for _ in self._waits]
        everything = [seconds for of_worker in waits for seconds in of_worker]
        if len(everything) < _FEWEST:
            return ""
        own = {"data_wait": statistics.fmean(everything), "step": seconds_per_step, "worker": slow_worker(waits)}
        if self._lifeline is None:
            return slow_process({0: own}, {})
        self._lifeline.tell(**own)
        return slow_process(self._lifeline.told(), self._lifeline.hosts) if self._lifeline.place.index == 0 else ""


def slow_worker(waits: list[list[float]]) -> str:
    """The worker whose batches are waited for much longer than the others', or nothing. `waits` are seconds."""
    means = [statistics.fmean(of_worker) if of_worker else 0.0 for of_worker in waits]
    slowest = max(range(len(means)), key=means.__getitem__)
    others = means[:slowest] + means[slowest + 1 :]
    if not others or means[slowest] <= max(_TIMES * statistics.median(others), 1e-3):
        return ""
    usual = statistics.median(others)
    return f"worker {slowest} of {len(means)} ({means[slowest]:.2f} s a batch, the others {usual:.2f} s)"


def slow_process(told: Mapping[int, Mapping[str, Any]], hosts: Mapping[int, str]) -> str:
    """What to say about the process whose data takes longest, or nothing where that is little or like the others'.

    Args:
        told: of each process `data_wait` and `step`, seconds a step, and `worker`, what `slow_worker` says.
    """
    waits = {i: float(figures["data_wait"]) for i, figures in told.items()}
    if not waits:
        return ""
    slowest = max(waits, key=waits.__getitem__)
    others = [wait for i, wait in waits.items() if i != slowest]
    step = float(told[slowest]["step"])
    if waits[slowest] < _SHARE * step or (others and waits[slowest] <= _TIMES * statistics.median(others)):
        return ""
    line = f"{process_name(slowest, hosts)} waits {waits[slowest]:.2f} s of a step's {step:.2f} s for its data"
    if others:
        line += f", the others {statistics.median(others):.2f} s"
    return line + (f"; {worker}" if (worker := told[slowest]["worker"]) else "")
