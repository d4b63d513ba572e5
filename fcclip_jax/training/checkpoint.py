"""Checkpoints of a run: asynchronous, atomic, restorable onto another mesh, with a way back past a damaged one.

A checkpoint holds the trainable parameters, the optimizer's state, step, random key and moving average, the place of
the data iterator, and the run's fingerprint. The frozen towers are never in it: the configuration names them.
"""

import dataclasses
import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from fcclip_jax.training.sharding import agreed
from fcclip_jax.training.train_state import TrainState
from fcclip_jax.training.work_folder import Folder, is_remote, open_folder, write_whole

log = logging.getLogger(__name__)

# Sizes and CRC-32 of the files of one checkpoint, in its folder. Written before the folder gets its final name.
CHECKSUMS = "checksums.json"
# What an evaluation found, in the same folder. Written afterwards, so that saving never waits for an evaluation.
SCORES = "scores.json"


class CheckpointError(RuntimeError):
    """A run that cannot be resumed or saved, with the reason and what to do."""


class Checkpoints:
    """The checkpoints of one work folder."""

    def __init__(
        self, directory: str | os.PathLike, *, keep_last: int = 3, best_metric: str | None = None, fingerprint: str = ""
    ):
        """
        Args:
            keep_last: the newest so many stay; and the best one, when `best_metric` names a score given to `score`.
            fingerprint: of the configuration. A folder with another one is refused.
        """
        folder = open_folder(directory)
        self.directory: Folder = folder if is_remote(folder) else Path(folder).resolve()
        self.fingerprint = fingerprint
        self.best_metric = best_metric
        self._saving: int | None = None
        keep: list[Any] = [policies.LatestN(keep_last)]
        if best_metric:
            keep.append(_Best(self, best_metric))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "run"))

    def save(self, state: TrainState, data: Mapping[str, Any]) -> None:
        """Starts writing; returns before it is on disk. `data` is the iterator's state, JSON-able. A step that is
        saved already is left as it is.

        Raises:
            CheckpointError: an earlier write failed (disk full); older checkpoints are intact.
        """
        step = int(state.step)
        run = {"data": dict(data), "fingerprint": self.fingerprint}
        items = ocp.args.Composite(state=ocp.args.StandardSave(_tree(state)), run=ocp.args.JsonSave(run))
        self.wait()  # for the one before, which must have its checksums before another is begun
        if step in self.steps():
            return
        self._check_room(state)
        self._saving = step
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:  # orbax and tensorstore hand the system's errors on in clothes of their own
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when all is on disk. Raises CheckpointError when writing failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def _check_room(self, state: TrainState) -> None:
        # Found out beforehand, a full disk is one line and leaves nothing half-written.
        needed = sum(array.nbytes for array in jax.tree.leaves(state))
        free = needed if jax.process_index() or is_remote(self.directory) else shutil.disk_usage(self.directory).free
        if not agreed(free >= needed):
            reason = f"{needed / 1e6:,.1f} MB are needed" + (f" and {free / 1e6:,.1f} MB free" if free < needed else "")
            raise self._failed(OSError(f"the disk is full, {reason}"))

    def score(self, step: int, scores: Mapping[str, float]) -> None:
        """Notes what an evaluation of the checkpoint of `step` found; waits until that is written. The best one is
        spared from the next save on.

        Raises:
            CheckpointError: the checkpoint could not be written.
        """
        self.wait()
        if jax.process_index() == 0:
            path = self.directory / str(step) / SCORES
            try:
                write_whole(path, json.dumps({k: float(v) for k, v in scores.items()}) + "\n")
            except OSError as error:
                log.warning("the scores of step %d were not noted: %s", step, error)
        agreed(True)  # which checkpoints stay is decided by every process, from this file

    def scores(self, step: int) -> dict[str, float] | None:
        """What was noted for the checkpoint of `step`; None where nothing was, or nothing readable."""
        try:
            scores = json.loads((self.directory / str(step) / SCORES).read_text(encoding="utf-8"))
            return {name: float(value) for name, value in scores.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def _failed(self, error: Exception) -> CheckpointError:
        steps = self.steps()
        last = f"the newest complete one is of step {steps[-1]}" if steps else "none is complete"
        return CheckpointError(f"a checkpoint could not be written to {self.directory}: {_reason(error)}; {last}")

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, rising."""
        return sorted(self._manager.all_steps(read=True))

    def _write_checksums(self) -> None:
        # Orbax calls this when all files are written, and before the folder gets its final name. An object store has no
        # such moment, and checks every object itself.
        if jax.process_index() == 0 and not is_remote(self.directory):
            for folder in self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                sums = {str(p.relative_to(folder)): _checksum(p) for p in _data_files(folder)}
                (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None when there is none.

        A damaged one is moved aside (kept as `checkpoints-damaged-STEP`), said so, and the one before is taken.

        Args:
            like: arrays or shapes with the shardings wanted now, which may be another mesh's.

        Raises:
            CheckpointError: the folder belongs to a run with another configuration, or nothing can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            found, reason = self._try(step, like)
            if agreed(found is not None):
                return found
            log.warning("checkpoint %d is damaged (%s); going back to the one before", step, reason)
            self._move_aside(step)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self.directory} can be read: they lie beside it as "
                f"{self.directory.name}-damaged-STEP; the same command now starts from step 0"
            )
        return None

    def _try(self, step: int, like: TrainState) -> tuple[tuple[TrainState, dict[str, Any]] | None, str]:
        """What is in the checkpoint of `step`, or None and why it cannot be used."""
        reason = self._damage(step) if jax.process_index() == 0 else ""
        if not agreed(not reason):
            return None, reason or "as process 0 says"
        try:
            return self._restore(step, like), ""
        except CheckpointError:
            raise
        # What orbax raises for damaged files is not one class: tensorstore, JSON and OS errors among them.
        except Exception as error:
            return None, _reason(error)

    def _damage(self, step: int) -> str:
        """What the checksums say is wrong, or nothing."""
        if is_remote(self.directory):
            return ""
        folder = self.directory / str(step)
        try:
            expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
            for name, (size, crc) in expected.items():
                path = folder / name
                if not path.is_file():
                    return f"{name} is missing"
                if path.stat().st_size != size:
                    return f"{name} has {path.stat().st_size} bytes, not {size}"
                if _checksum(path) != [size, crc]:
                    return f"{name} has changed"
        except (OSError, ValueError, TypeError, AttributeError) as error:
            return f"its {CHECKSUMS} cannot be read: {_reason(error)}"
        return ""

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
            aside = self.directory.with_name(f"{self.directory.name}-damaged-{step}")
            number = 0
            while aside.exists():
                number += 1
                aside = aside.with_name(f"{self.directory.name}-damaged-{step}.{number}")
            (self.directory / str(step)).rename(aside)
        agreed(True)  # nobody looks again before it is gone
        self._manager.reload()

    def close(self) -> None:
        """Waits, and lets go of the folder. What `wait` would raise was raised there."""
        try:
            self._manager.close()
        except Exception as error:
            log.warning("%s", self._failed(error))


@dataclasses.dataclass(frozen=True)
class _Best(policies.PreservationPolicy):
    """Keeps the checkpoint of the highest `metric` among those that have it, the later one of equals."""

    checkpoints: Checkpoints
    metric: str

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        found = [(self.checkpoints.scores(c.step) or {}).get(self.metric, math.nan) for c in checkpoints]
        scored = [(value, place) for place, value in enumerate(found) if not math.isnan(value)]
        return [bool(scored) and place == max(scored)[1] for place in range(len(found))]


def _tree(state: TrainState) -> dict[str, Any]:
    tree = {"step": state.step, "params": state.params, "opt_state": state.opt_state, "key": state.key}
    return tree if state.average is None else tree | {"average": state.average}


def _data_files(folder: Path) -> list[Path]:
    # Orbax rewrites the files at the top, its notes, until the very end; restoring does not depend on them.
    return [p for p in sorted(folder.glob("*/**/*")) if p.is_file() and p.name != "commit_success.txt"]


def _checksum(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause, where the system's own word stands."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
