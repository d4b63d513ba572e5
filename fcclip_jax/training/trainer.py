"""The training run, in the order in which it happens."""

import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from fcclip_jax.losses.criterion import CriterionConfig
from fcclip_jax.training import metrics as reporting
from fcclip_jax.training.checkpoint import Checkpoints
from fcclip_jax.training.sharding import global_batch
from fcclip_jax.training.train_state import TrainState
from fcclip_jax.training.train_step import make_train_step

log = logging.getLogger(__name__)

# What the process exits with when it saved and left because it was told to (SIGTERM): EX_TEMPFAIL, "try again".
EXIT_PREEMPTED = 75


@runtime_checkable
class DataIterator(Protocol):
    """Endless batches of this process's images, with a state that can be saved."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class TrainingStopped(RuntimeError):
    """A loss or gradient that is not finite: which step, which images, which term."""


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """Numbers of steps. `eval_every`, `picture_every` and `profile_at` may be 0 for never."""

    steps: int
    batch_size: int
    accumulate: int = 1
    average_decay: float = 0.0
    log_every: int = 50
    checkpoint_every: int = 2000
    eval_every: int = 0
    picture_every: int = 0
    profile_at: int = 0
    profile_steps: int = 5


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a run is made of; experiment.py puts it together."""

    config: TrainerConfig
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    criterion: CriterionConfig
    mesh: Mesh
    state: TrainState
    frozen: nnx.State
    text: dict[str, np.ndarray]
    data: DataIterator
    checkpoints: Checkpoints
    writers: list[reporting.Writer]
    workdir: Path
    evaluate: Callable[[TrainState], dict[str, float]] | None = None
    picture: Callable[[TrainState, dict[str, np.ndarray]], np.ndarray] | None = None


def train(run: Run) -> tuple[TrainState, bool]:
    """Trains to the last step, or until told to stop.

    Returns:
        the last state, and whether the run is complete (False: preempted, saved, to be resumed).

    Raises:
        TrainingStopped: a loss is not finite; the state before that step is saved.
        CheckpointError: the work folder is of another run, or writing failed.
    """
    config = run.config

    # Resuming, in this order: 1. parameters, optimizer, step and key; 2. the data's place; 3. the clock.
    state = run.state
    restored = run.checkpoints.restore(state)
    if restored is not None:
        state, data_state = restored
        run.data.set_state(data_state)
        log.info("resumed at step %d", int(state.step))

    step = make_train_step(
        run.graphdef,
        run.optimizer,
        run.mesh,
        state,
        run.frozen,
        run.criterion,
        accumulate=config.accumulate,
        average_decay=config.average_decay,
    )
    clock = reporting.Clock(config.batch_size, config.steps, jax.devices()[0].device_kind, run.mesh.size)
    sums = _Sums()
    pending: tuple[int, dict[str, jax.Array], np.ndarray] | None = None
    compiled = False

    with _Preemption() as preemption, jax.set_mesh(run.mesh):
        number = int(state.step)
        batches = _timed(run.data, clock)
        while number < config.steps:
            if config.profile_at and number == config.profile_at:
                jax.profiler.start_trace(str(run.workdir / "profile"))
            local = next(batches)
            batch = global_batch(run.mesh, {k: v for k, v in local.items() if k in _STEP_INPUTS})
            if not compiled:
                step = step.lower(state, run.frozen, batch, run.text).compile()
                clock.flops_per_step = _flops(step)
                clock.start(number)
                compiled = True
            state, found = step(state, run.frozen, batch, run.text)
            number += 1

            # The step before has finished by now, or nearly: looking at it does not make the devices wait.
            if pending is not None:
                _check_finite(pending, state, run)
                sums.add(pending[1])
            pending = (number, found, local["image_id"])

            if config.profile_at and number == config.profile_at + config.profile_steps:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
            due = _Due(config, number)
            stopping = preemption.noticed(number)
            if due.any or stopping:
                _check_finite(pending, state, run)
                sums.add(pending[1])
                pending = None
            if due.log:
                _report(run, number, sums, clock, local)
            scores = None
            if due.evaluate and run.evaluate is not None:
                scores = run.evaluate(state)
                _write(run, number, {f"eval/{k}": v for k, v in scores.items()})
                log.info("step %d  %s", number, "  ".join(f"{k} {v:.2f}" for k, v in scores.items()))
            if due.picture and run.picture is not None:
                picture = run.picture(state, local)
                for writer in run.writers:
                    writer.image(number, "prediction", picture)
            if due.save or stopping:
                run.checkpoints.save(state, run.data.get_state(), scores)
            if due.pause:
                clock.start(number)
            if stopping:
                run.checkpoints.wait()
                log.warning("told to stop: saved at step %d; the same command resumes", number)
                return state, False
    run.checkpoints.wait()
    return state, True


_STEP_INPUTS = ("image", "ids", "labels", "valid")


class _Due:
    """What is to be done after this step."""

    def __init__(self, config: TrainerConfig, number: int):
        last = number == config.steps

        def every(steps: int) -> bool:
            return bool(steps) and (last or number % steps == 0)

        self.log = every(config.log_every) or number == 1
        self.evaluate = every(config.eval_every)
        self.picture = every(config.picture_every)
        self.save = every(config.checkpoint_every) or last
        self.pause = self.evaluate or self.picture or self.save
        self.any = self.log or self.pause


class _Sums:
    """Means over the steps since the last report."""

    def __init__(self):
        self._total: dict[str, float] = {}
        self._count = 0

    def add(self, values: dict[str, jax.Array]) -> None:
        for name, value in values.items():
            self._total[name] = self._total.get(name, 0.0) + float(value)
        self._count += 1

    def take(self) -> dict[str, float]:
        means = {name: total / self._count for name, total in self._total.items()} if self._count else {}
        self.__init__()
        return means


class _Preemption:
    """Notices SIGTERM. With several processes jax's own notice is used, so that all stop at the same step."""

    def __enter__(self) -> "_Preemption":
        self._told = False
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def _tell(self, number, frame) -> None:
        self._told = True

    def noticed(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self._told
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *error) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)


def _timed(data: DataIterator, clock: reporting.Clock) -> Iterator[dict[str, np.ndarray]]:
    while True:
        started = time.perf_counter()
        batch = next(data)
        clock.waited(time.perf_counter() - started)
        yield batch


def _check_finite(pending: tuple[int, dict[str, jax.Array], np.ndarray], state: TrainState, run: Run) -> None:
    number, found, image_ids = pending
    if bool(found["finite"]):
        return
    bad = [name for name, value in found.items() if not np.isfinite(float(value))]
    # The step left parameters and optimizer as they were, so what is saved is the last good state.
    run.checkpoints.save(state, run.data.get_state())
    run.checkpoints.wait()
    raise TrainingStopped(
        f"step {number}: not finite: {', '.join(bad)}; images {image_ids.tolist()} (of process {jax.process_index()}). "
        f"The state before it is saved in {run.checkpoints.directory}."
    )


def _report(run: Run, number: int, sums: _Sums, clock: reporting.Clock, local: dict[str, np.ndarray]) -> None:
    values = sums.take()
    values.pop("finite", None)
    values["learning_rate"] = float(run.schedule(number - 1))
    if "dropped_segments" in local:
        values["dropped_segments"] = float(local["dropped_segments"].sum())
    values |= clock.read(number) | reporting.device_memory(jax.local_devices())
    _write(run, number, values)
    log.info("%s", reporting.log_line(number, run.config.steps, values))


def _write(run: Run, number: int, values: dict[str, float]) -> None:
    for writer in run.writers:
        writer.write(number, values)


def _flops(compiled: Any) -> float | None:
    try:
        analysis = compiled.cost_analysis()
    except Exception:  # not every platform has one, and the figure is a convenience
        return None
    return float(analysis["flops"]) if analysis and "flops" in analysis else None
