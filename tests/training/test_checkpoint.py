"""Checkpoints of a small state: what stays, what is found damaged, and what a full disk leaves."""

import contextlib
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcclip_jax.training.checkpoint import CHECKSUMS, CheckpointError, Checkpoints
from fcclip_jax.training.train_state import TrainState


def state_at(step: int, size: int = 64) -> TrainState:
    rng = np.random.default_rng(step)
    params = nnx.State({"kernel": nnx.Param(jnp.asarray(rng.normal(size=(size, size)), jnp.float32))})
    moments = {"mu": params, "count": jnp.int32(step)}
    return TrainState(jnp.int32(step), params, moments, None, jax.random.key_data(jax.random.key(step)))


@pytest.fixture
def checkpoints(tmp_path):
    """Opens the checkpoints of one folder, as a new process does, and closes the ones before."""
    with contextlib.ExitStack() as stack:
        opened = []

        def open_(fingerprint="ours", **options) -> Checkpoints:
            for one in opened:
                one.close()
            opened.append(Checkpoints(tmp_path / "checkpoints", fingerprint=fingerprint, **options))
            return opened[-1]

        yield open_
        for one in opened:
            stack.callback(one.close)


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(state_at(step), {"step": step})
    checkpoints.wait()


def assert_restores(checkpoints: Checkpoints, step: int) -> None:
    state, data = checkpoints.restore(state_at(0))
    expected = state_at(step)
    assert data == {"step": step} and jax.tree.structure(state) == jax.tree.structure(expected)
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert found.dtype == wanted.dtype and np.array_equal(found, wanted)


def test_there_and_back(checkpoints):
    assert checkpoints().restore(state_at(0)) is None
    save(checkpoints(), 3)
    assert_restores(checkpoints(), 3)


def test_the_newest_and_the_best_stay(checkpoints):
    """The best is known only after it was saved, and also to a later process."""
    run = checkpoints(keep_last=2, best_metric="PQ")
    for step, quality in ((1, 10.0), (2, 30.0), (3, 20.0)):
        save(run, step)
        run.score(step, {"PQ": quality, "SQ": 1.0})
    assert run.steps() == [2, 3]
    run = checkpoints(keep_last=2, best_metric="PQ")
    save(run, 4, 5, 6)  # never scored: a run that is stopped between evaluations
    assert run.steps() == [2, 5, 6]
    run.score(6, {"PQ": 30.0})  # as good, and later
    save(run, 7, 8)
    assert run.steps() == [6, 7, 8]
    assert run.scores(6) == {"PQ": 30.0} and run.scores(7) is None


def test_a_step_is_saved_once(checkpoints):
    run = checkpoints()
    save(run, 1)
    before = (run.directory / "1" / CHECKSUMS).stat().st_mtime_ns
    save(run, 1)
    assert (run.directory / "1" / CHECKSUMS).stat().st_mtime_ns == before


NOTES = ("commit_success.txt",)


def _data_files(folder):
    return sorted(
        p for p in folder.glob("*/**/*") if p.is_file() and p.stat().st_size and p.name != "commit_success.txt"
    )


def _each_byte_of(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "a byte has changed": _each_byte_of,
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_file_is_found(checkpoints, caplog, damage):
    save(checkpoints(), 1, 2)
    folder = checkpoints().directory
    files = [file.relative_to(folder / "2") for file in _data_files(folder / "2")]
    assert len(files) > 3
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    for file in files:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        DAMAGES[damage](folder / "2" / file)
        caplog.clear()
        run = checkpoints()
        assert_restores(run, 1)
        (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("fcclip_jax")]
        assert line.startswith(f"checkpoint 2 is damaged ({file}") and line.endswith("; going back to the one before")
        # It is kept aside, and the run can save that step again.
        aside = folder.with_name(f"{folder.name}-damaged-2")
        assert aside.is_dir() and not (folder / "2").exists()
        shutil.rmtree(aside)
        save(run, 2)
        assert_restores(checkpoints(), 2)


def test_half_written_folders_are_passed_over_and_removed(checkpoints):
    """As a process leaves them that is killed while it saves."""
    save(checkpoints(), 1)
    folder = checkpoints().directory
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")
    (folder / "2.orbax-checkpoint-tmp" / CHECKSUMS).unlink()
    assert_restores(checkpoints(), 1)
    assert not (folder / "2.orbax-checkpoint-tmp").exists()


def test_nothing_can_be_read(checkpoints):
    save(checkpoints(), 1, 2)
    folder = checkpoints().directory
    for step in (1, 2):
        (folder / str(step) / CHECKSUMS).write_text("{")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints \[1, 2\] .* now starts from step 0"):
        checkpoints().restore(state_at(0))
    assert sorted(p.name for p in folder.parent.iterdir()) == [
        "checkpoints", "checkpoints-damaged-1", "checkpoints-damaged-2"
    ]  # fmt: skip
    assert checkpoints().restore(state_at(0)) is None


def test_of_another_run(checkpoints):
    save(checkpoints("theirs"), 1)
    with pytest.raises(CheckpointError, match="holds a run with another configuration: give another --workdir"):
        checkpoints().restore(state_at(0))


# Tensorstore's threads tell a loop that has ended; the command leaves that out.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk(checkpoints):
    """Files that cannot grow stand for it. The checkpoint before stays whole, and saving works again afterwards."""
    run = checkpoints()
    save(run, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written to .*; the newest complete one is of step 1$"):
            save(run, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run = checkpoints()
    assert_restores(run, 1)
    save(run, 2)
    assert_restores(checkpoints(), 2)


def test_a_disk_that_is_too_full_to_begin(checkpoints, monkeypatch):
    run = checkpoints()
    save(run, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**4, 10**4))
    with pytest.raises(
        CheckpointError, match=r"the disk is full, 0\.0 MB are needed and 0\.0 MB free; the newest complete one"
    ):
        save(run, 2)
    assert not list(run.directory.glob("2*"))
    assert_restores(run, 1)


def test_unreadable_scores_are_none(checkpoints):
    run = checkpoints(best_metric="PQ")
    save(run, 1)
    run.score(1, {"PQ": 5.0})
    path = run.directory / "1" / "scores.json"
    assert json.loads(path.read_text()) == {"PQ": 5.0}
    path.write_text("[")
    assert run.scores(1) is None
    save(run, 2)
    assert_restores(checkpoints(), 2)
