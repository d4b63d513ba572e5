"""Checkpoints of a run: asynchronous, atomic, restorable onto another mesh, with a way back past a damaged one.

A checkpoint holds the trainable parameters, the optimizer's state, step, random key and moving average, the place of
the data iterator, and the run's fingerprint. The frozen towers are never in it: the configuration names them.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from fcclip_jax.training.train_state import TrainState

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A run that cannot be resumed or saved, with the reason and what to do."""


def _tree(state: TrainState) -> dict[str, Any]:
    tree = {"step": state.step, "params": state.params, "opt_state": state.opt_state, "key": state.key}
    return tree if state.average is None else tree | {"average": state.average}


class Checkpoints:
    """The checkpoints of one work folder."""

    def __init__(
        self, directory: str | os.PathLike, *, keep_last: int = 3, best_metric: str | None = None, fingerprint: str = ""
    ):
        """
        Args:
            keep_last: the newest so many stay; and the best one, when `best_metric` names a metric given to `save`.
            fingerprint: of the configuration. A folder with another one is refused.
        """
        self.directory = Path(directory).resolve()
        self.fingerprint = fingerprint
        self.best_metric = best_metric
        keep: list[Any] = [policies.LatestN(keep_last)]
        if best_metric:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric], n=1, keep_checkpoints_without_metrics=False
                )
            )
        options = ocp.CheckpointManagerOptions(preservation_policy=policies.AnyPreservationPolicy(keep))
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "run"))

    def save(self, state: TrainState, data: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing; returns before it is on disk. `data` is the iterator's state, JSON-able.

        Raises:
            CheckpointError: an earlier write failed (disk full); older checkpoints are intact.
        """
        step = int(state.step)
        run = {"data": dict(data), "fingerprint": self.fingerprint}
        items = ocp.args.Composite(state=ocp.args.StandardSave(_tree(state)), run=ocp.args.JsonSave(run))
        metrics = {k: float(v) for k, v in metrics.items()} if metrics else None
        try:
            self._manager.save(step, args=items, metrics=metrics, force=True)
        except OSError as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when all is on disk. Raises CheckpointError when writing failed."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> CheckpointError:
        steps = self.steps()
        last = f"the newest complete one is of step {steps[-1]}" if steps else "none is complete"
        return CheckpointError(f"a checkpoint could not be written to {self.directory}: {error}; {last}")

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, rising."""
        return sorted(self._manager.all_steps())

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None when there is none.

        A damaged one is moved aside (kept as `damaged-STEP`), said so, and the one before is taken.

        Args:
            like: arrays or shapes with the shardings wanted now, which may be another mesh's.

        Raises:
            CheckpointError: the folder belongs to a run with another configuration, or nothing can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._restore(step, like)
            except CheckpointError:
                raise
            # What orbax raises for damaged files is not one class: tensorstore, JSON and OS errors among them.
            except Exception as error:
                reason = str(error).strip().splitlines()
                log.warning("checkpoint %d is damaged (%s); going back to the one before", step, (reason or ["?"])[0])
                self._move_aside(step)
        if steps:
            raise CheckpointError(f"none of the checkpoints {steps} in {self.directory} can be read")
        return None

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        if run["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{self.directory} holds a run with another configuration: give another --workdir, or the "
                "configuration that is saved beside the checkpoints"
            )
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(like))
        tree = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))["state"]
        return TrainState(**({"average": None} | tree)), run["data"]

    def _move_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            found = self.directory / str(step)
            aside = self.directory.parent / f"{self.directory.name}-damaged-{step}"
            number = 0
            while aside.exists():
                number += 1
                aside = aside.with_name(f"{self.directory.name}-damaged-{step}.{number}")
            found.rename(aside)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("fcclip_damaged_checkpoint")
        self._manager.reload()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self._manager.close()
