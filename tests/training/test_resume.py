"""A run that is interrupted, in whatever way, and resumed is the run that was never interrupted."""

import json
import random
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from fcclip_jax.training.trainer import EXIT_PREEMPTED
from tests.own_process import finish, shared_folder
from tests.training.train_process import assert_same_run, last_state, metrics, start_training, wait_for_steps

STEPS = 40
OVERRIDES = (f"steps={STEPS}", "checkpoint_every=8", "optimizer.milestones=(9,30)")
DIES = (sys.executable, str(Path(__file__).with_name("dies_while_saving.py")))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_folder(tmp_path_factory, "cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache) -> Path:
    """The work folder of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    process, log = start_training(workdir, cache, *OVERRIDES)
    finish(process, log)
    assert len(metrics(workdir)) == STEPS
    return workdir


def stop(workdir: Path, cache: Path, *overrides: str, at: int, number: int, **how) -> str:
    """Starts (or resumes) and sends a signal once step `at` is reported; what the process said."""
    process, log = start_training(workdir, cache, *OVERRIDES, *overrides, **how)
    wait_for_steps(process, workdir, at)
    process.send_signal(number)
    return finish(process, log, code=EXIT_PREEMPTED if number == signal.SIGTERM else -number)


def resume(workdir: Path, cache: Path, *overrides: str, **how) -> str:
    process, log = start_training(workdir, cache, *OVERRIDES, *overrides, **how)
    return finish(process, log)


def checkpoints(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())


def test_told_to_stop_at_any_step(whole, cache, tmp_path):
    """SIGTERM saves at once, at a step where nothing was due, and says how to go on."""
    at = random.randint(1, STEPS // 2)
    said = stop(tmp_path / "run", cache, at=at, number=signal.SIGTERM)
    step = checkpoints(tmp_path / "run")[-1]
    assert at <= step < STEPS and f"told to stop: saved at step {step}; the same command resumes" in said
    assert not (tmp_path / "run" / "model").exists()
    said = resume(tmp_path / "run", cache)
    assert f"resumed at step {step}" in said
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_again_and_again(whole, cache, tmp_path):
    """kill -9 at random moments, each time a little further on, gives no checkpoint away and none twice."""
    for _ in range(5):
        done = len(metrics(tmp_path / "run"))
        if done >= STEPS - 4:
            break
        at = random.randint(1, 6)
        begun = checkpoints(tmp_path / "run")[-1] if (tmp_path / "run" / "checkpoints").is_dir() else 0
        # The lines after the checkpoint are taken back first.
        process, log = start_training(tmp_path / "run", cache, *OVERRIDES)
        while f"step {begun + 1}/" not in log.read_text() and process.poll() is None:
            pass
        wait_for_steps(process, tmp_path / "run", begun + at)
        process.kill()
        finish(process, log, code=-signal.SIGKILL)
    resume(tmp_path / "run", cache)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_while_saving(whole, cache, tmp_path):
    process, log = start_training(tmp_path / "run", cache, *OVERRIDES, program=DIES)
    finish(process, log, code=-signal.SIGKILL)
    left = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert "8" in left and any(name.startswith("16.orbax-checkpoint-tmp") for name in left)
    said = resume(tmp_path / "run", cache)
    assert "resumed at step 8" in said
    assert not any("tmp" in p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "missing file", "no checksums"])
def test_damaged_newest_checkpoint(whole, cache, tmp_path, damage):
    """The run goes on from the checkpoint before, says so in one line, and keeps what is damaged."""
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "model")
    newest = workdir / "checkpoints" / str(STEPS)
    largest = max((p for p in newest.glob("state/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    if damage == "flipped byte":
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        largest.write_bytes(content)
    elif damage == "cut short":
        largest.write_bytes(content[: random.randrange(len(content))])
    elif damage == "missing file":
        largest.unlink()
    else:
        (newest / "checksums.json").unlink()
    said = resume(workdir, cache)
    lines = [line for line in said.splitlines() if "damaged" in line]
    assert (
        len(lines) == 1
        and f"checkpoint {STEPS} is damaged (" in lines[0]
        and "going back to the one before" in lines[0]
    )
    assert f"resumed at step {STEPS - 8}" in said
    assert (workdir / f"checkpoints-damaged-{STEPS}").is_dir()
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_loader_processes(whole, cache, tmp_path):
    """With two loading processes, batches that were made ahead are made again: the losses are those without any."""
    at = random.randint(1, STEPS // 2)
    stop(tmp_path / "run", cache, "data.workers=2", at=at, number=signal.SIGTERM)
    resume(tmp_path / "run", cache, "data.workers=2")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_other_meshes(whole, cache, tmp_path):
    """Begun on one device, gone on with on 4 x 2, ended on 1 x 8."""
    workdir = tmp_path / "run"
    stop(workdir, cache, at=3, number=signal.SIGTERM)
    first = checkpoints(workdir)[-1]
    stop(workdir, cache, "mesh.data=4", "mesh.fsdp=2", at=first + 3, number=signal.SIGTERM, devices=8)
    assert checkpoints(workdir)[-1] > first
    said = resume(workdir, cache, "mesh.data=1", "mesh.fsdp=8", devices=8)
    assert f"resumed at step {checkpoints(workdir)[0]}" in said or "resumed at step" in said
    found, wanted = metrics(workdir), metrics(whole)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for line, expected in zip(found, wanted, strict=True):
        for name, value in expected.items():
            # Sums over devices come in another order, and forty steps carry that on.
            assert abs(line[name] - value) <= 1e-5 * max(abs(value), 1), (line["step"], name)
