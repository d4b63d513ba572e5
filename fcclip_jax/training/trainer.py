"""The training run, in the order in which it happens."""

import dataclasses
import logging
import signal
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from fcclip_jax.losses.criterion import CriterionConfig
from fcclip_jax.ops.linear_assignment import Solver
from fcclip_jax.training import metrics as reporting
from fcclip_jax.training.checkpoint import CheckpointError, Checkpoints
from fcclip_jax.training.flops import product_flops
from fcclip_jax.training.goodput import Goodput
from fcclip_jax.training.sharding import global_batch
from fcclip_jax.training.stragglers import DataWaits
from fcclip_jax.training.train_state import TrainState
from fcclip_jax.training.train_step import COUNTS, INPUTS, make_train_step
from fcclip_jax.training.work_folder import Folder, local_part

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
    """Numbers of steps. `eval_every`, `picture_every` and `profile_at` may be 0 for never, `checkpoint_every` for only
    at the end."""

    steps: int
    batch_size: int
    accumulate: int = 1
    average_decay: float = 0.0
    assignment: Solver | None = None
    log_every: int = 50
    checkpoint_every: int = 2000
    eval_every: int = 0
    picture_every: int = 0
    profile_at: int = 0
    profile_steps: int = 5


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a run is made of; experiment.py puts it together.

    `evaluate` asks its second argument between images whether to stop, and then returns None.
    """

    config: TrainerConfig
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    criterion: CriterionConfig | None
    mesh: Mesh
    state: TrainState
    frozen: nnx.State
    text: dict[str, jax.Array]
    data: DataIterator
    checkpoints: Checkpoints
    writers: list[reporting.Writer]
    workdir: Folder
    goodput: Goodput
    waits: DataWaits
    evaluate: Callable[[TrainState, Callable[[], bool]], dict[str, float] | None] | None = None
    picture: Callable[[TrainState, dict[str, np.ndarray]], np.ndarray] | None = None
    # Another step than FC-CLIP's, called in the same way, and what it needs of a batch.
    make_step: Callable[[TrainState], Callable] | None = None
    inputs: tuple[str, ...] = INPUTS + COUNTS


@dataclasses.dataclass(frozen=True)
class _Taken:
    """A step that was sent off: its number, what it found (on the devices), its images, and the data's place before."""

    number: int
    found: dict[str, jax.Array]
    image_ids: np.ndarray
    place: dict[str, Any]


def train(run: Run) -> tuple[TrainState, bool]:
    """Trains to the last step, or until told to stop.

    Returns:
        the last state, and whether the run is complete (False: told to stop, saved, to be resumed).

    Raises:
        TrainingStopped: a loss is not finite; the state before that step is saved.
        CheckpointError: the work folder is of another run, or writing failed.
    """
    config = run.config

    state, number, restored = _resumed(run)
    clock = reporting.Clock(config.batch_size, config.steps, jax.devices()[0].device_kind, run.mesh.size)
    sums = _Sums()
    step: Callable | None = None
    last: _Taken | None = None

    with _Signals() as signals, _Profiler(run) as profiler, jax.set_mesh(run.mesh):
        if restored and _Due(run, number).evaluate and run.checkpoints.scores(number) is None:
            log.info("step %d was not evaluated before the stop: doing so now", number)
            if not _evaluate(run, number, state, signals):
                return state, False
        run.goodput.switch("step")
        while number < config.steps:
            place = run.data.get_state()
            local = _next_batch(run, clock)
            batch = global_batch(run.mesh, {k: v for k, v in local.items() if k in run.inputs})
            if step is None:
                with run.goodput.during("compile"):
                    step = _compile(run, clock, state, batch)
                clock.start(number)
            profiler.before(number, signals.take_profile())
            state, found = step(state, run.frozen, batch, run.text, np.int32(number))
            number += 1
            profiler.after(number, state)

            # The step before has finished by now, or nearly: looking at it does not make the devices wait.
            if last is not None:
                _look_at(last, state, run, sums)
            last = _Taken(number, found, local["image_id"], place)
            due, stopping = _Due(run, number), signals.stopping(number)
            if due.any or stopping:
                _look_at(last, state, run, sums)
                last = None
            if due.log:
                _report(run, number, sums, clock)
            # Saved first: a notice to stop leaves less time than an evaluation takes.
            if due.save or stopping:
                with run.goodput.during("checkpoint"):
                    run.goodput.saved(number)
                    run.checkpoints.save(state, run.data.get_state())
                run.goodput.write(number)
            if due.evaluate and not stopping:
                stopping = not _evaluate(run, number, state, signals)
            if due.picture and not stopping:
                _picture(run, number, state, local)
            if due.pause:
                clock.start(number)
            if stopping:
                _finish(run, number)
                log.warning("told to stop: saved at step %d; the same command resumes", number)
                return state, False
        _finish(run, number)  # a signal now does not cut the last save short
    return state, True


def _resumed(run: Run) -> tuple[TrainState, int, bool]:
    """The state to go on from, the number of steps in it, and whether it is a checkpoint's. In this order: parameters,
    optimizer, step and key; the data's place; what was reported."""
    state = run.state
    restored = run.checkpoints.restore(state)
    if restored is not None:
        state, place = restored
        run.data.set_state(place)
        log.info("resumed at step %d", int(state.step))
    number = int(state.step)
    run.goodput.resumed(number)
    for writer in run.writers:
        writer.begin(number)
    return state, number, restored is not None


def _next_batch(run: Run, clock: reporting.Clock) -> dict[str, np.ndarray]:
    """This process's part of the next batch; how long it was waited for is noted."""
    asked = time.perf_counter()
    with run.goodput.during("data"):
        local = next(run.data)
    waited = time.perf_counter() - asked
    clock.waited(waited)
    run.waits.add(waited)
    return local


def _picture(run: Run, number: int, state: TrainState, local: dict[str, np.ndarray]) -> None:
    with run.goodput.during("evaluation"):
        picture = run.picture(state, local)
    _tell(run, number, lambda writer: writer.image(number, "prediction", picture))


def _finish(run: Run, number: int) -> None:
    """Waits until all is on disk, and says what the time went into."""
    with run.goodput.during("checkpoint"):
        run.checkpoints.wait()
    run.goodput.write(number)
    log.info("%s", run.goodput.line())


class _Due:
    """What is to be done after this step. What is evaluated is saved too, so that the best can be kept."""

    def __init__(self, run: Run, number: int):
        config = run.config
        last = number == config.steps

        def every(steps: int) -> bool:
            return bool(steps) and (last or number % steps == 0)

        self.log = every(config.log_every) or number == 1
        self.evaluate = run.evaluate is not None and every(config.eval_every)
        self.picture = run.picture is not None and every(config.picture_every)
        self.save = every(config.checkpoint_every) or self.evaluate or last
        self.pause = self.evaluate or self.picture or self.save
        self.any = self.log or self.pause


class _Sums:
    """What the steps since the last report found: counts of the unusual in all, everything else on average."""

    _TOTALS = (*COUNTS, "images_without_segments")

    def __init__(self):
        self._total: dict[str, float] = {}
        self._count = 0

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._total[name] = self._total.get(name, 0.0) + value
        self._count += 1

    def take(self) -> dict[str, float]:
        found = {k: v if k in self._TOTALS else v / self._count for k, v in self._total.items()}
        self.__init__()
        return found


class _Signals:
    """SIGTERM (and the first Ctrl-C): save and leave. SIGUSR1: profile the next steps.

    With several processes SIGTERM is left to jax's own notice, so that all stop at the same step.
    """

    def __enter__(self) -> "_Signals":
        self._told = self._profile = False
        handlers = {signal.SIGUSR1: self._ask_for_profile}
        if jax.process_count() == 1:
            handlers |= {signal.SIGTERM: self._tell, signal.SIGINT: self._tell}
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def _tell(self, number, frame) -> None:
        self._told = True
        if number == signal.SIGINT:  # a second one does not wait for the save
            signal.signal(number, self._before[number])

    def _ask_for_profile(self, number, frame) -> None:
        self._profile = True

    def take_profile(self) -> bool:
        asked, self._profile = self._profile, False
        return asked

    def told(self) -> bool:
        """Whether this process knows that it is to stop; never while others have to be asked."""
        return self._told

    def stopping(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self._told
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Profiler:
    """Traces `profile_steps` steps into `workdir/profile`, from step `profile_at` and whenever asked."""

    def __init__(self, run: Run):
        self._config, self._folder, self._until = run.config, local_part(run.workdir) / "profile", None

    def before(self, number: int, asked: bool) -> None:
        """Before step `number` (from 0) is sent off."""
        if self._until is None and (asked or (self._config.profile_at and number == self._config.profile_at)):
            self._until = number + self._config.profile_steps
            jax.profiler.start_trace(str(self._folder))

    def after(self, number: int, state: TrainState) -> None:
        """After `number` steps were sent off."""
        if number == self._until:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self._until is not None:
            self._until = None
            jax.profiler.stop_trace()
            log.info("the profile is in %s", self._folder)

    def __enter__(self) -> "_Profiler":
        return self

    def __exit__(self, *error) -> None:
        self._stop()


def _compile(run: Run, clock: reporting.Clock, state: TrainState, batch: dict[str, jax.Array]) -> Callable:
    step = _fcclip_step(run, state) if run.make_step is None else run.make_step(state)
    started = time.perf_counter()
    traced = step.trace(state, run.frozen, batch, run.text, np.int32(0))
    clock.flops_per_step = product_flops(traced.jaxpr)
    compiled = traced.lower().compile()
    log.info("compiled in %.0f s", time.perf_counter() - started)
    return compiled


def _fcclip_step(run: Run, state: TrainState) -> Callable:
    config = run.config
    return make_train_step(
        run.graphdef,
        run.optimizer,
        run.mesh,
        state,
        run.frozen,
        run.criterion,
        accumulate=config.accumulate,
        average_decay=config.average_decay,
        solver=config.assignment,
    )


def _look_at(taken: _Taken, state: TrainState, run: Run, sums: _Sums) -> None:
    """Waits for a step and adds up what it found; ends the run where that is not finite."""
    found = {name: float(value) for name, value in jax.device_get(taken.found).items()}
    if found.pop("finite"):
        sums.add(found)
        return
    # Neither that step nor those sent off after it changed the state: what is saved is the last good one.
    try:
        run.checkpoints.save(state, taken.place)
        run.checkpoints.wait()
        saved = f"The state before it is saved in {run.checkpoints.directory}"
    except CheckpointError as error:
        saved = f"And {error}"
    bad = [name for name, value in found.items() if not np.isfinite(value)]
    more = f" and {len(bad) - 6} more" if len(bad) > 6 else ""
    raise TrainingStopped(
        f"step {taken.number}: not finite: {', '.join(bad[:6])}{more}; images {taken.image_ids.tolist()}"
        + (f" (of process {jax.process_index()})" if jax.process_count() > 1 else "")
        + f". {saved}"
    )


def _evaluate(run: Run, number: int, state: TrainState, signals: _Signals) -> bool:
    """Measures and reports; False when it was told to stop before the end."""
    with run.goodput.during("evaluation"):
        scores = run.evaluate(state, signals.told)
    if scores is None:
        return False
    _write(run, number, {f"eval/{k}": v for k, v in scores.items()})
    log.info("step %d  %s", number, "  ".join(f"{k} {v:.2f}" for k, v in scores.items()))
    run.checkpoints.score(number, scores)
    return True


def _report(run: Run, number: int, sums: _Sums, clock: reporting.Clock) -> None:
    values = sums.take()
    values["learning_rate"] = float(run.schedule(number - 1))
    figures = clock.read(number)
    values |= figures | reporting.device_memory(jax.local_devices())
    _write(run, number, values)
    log.info("%s", reporting.log_line(number, run.config.steps, values))
    run.goodput.write(number)
    if slow := run.waits.slow(figures.get("seconds_per_step", 0.0)):
        log.warning("slow data: %s", slow)


def _write(run: Run, number: int, values: dict[str, float]) -> None:
    _tell(run, number, lambda writer: writer.write(number, values))


def _tell(run: Run, number: int, what: Callable[[reporting.Writer], None]) -> None:
    for writer in run.writers:
        try:
            what(writer)
        except OSError as error:  # a run is worth more than its diary
            log.warning("what step %d found was not written by %s: %s", number, type(writer).__name__, error)
