"""A run that is interrupted, in whatever way, and resumed is the run that was never interrupted."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import safetensors.numpy

from fcclip_jax.training.trainer import EXIT_PREEMPTED
from tests.own_process import finish, shared_folder
from tests.training.train_process import assert_same_run, metrics, start_training, wait_for_steps

STEPS = 40
OVERRIDES = (f"steps={STEPS}", "checkpoint_every=8", "optimizer.milestones=(9,30)")
FAILS = (str(Path(__file__).with_name("fails_while_saving.py")),)


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
    """kill -9 at random moments, each time from the newest checkpoint on."""
    workdir = tmp_path / "run"
    for _ in range(4):
        process, log = start_training(workdir, cache, *OVERRIDES)
        # What an earlier process reported of later steps is taken back first, so the file alone does not tell.
        steps = random.randint(1, 10)
        while log.read_text().count(f"/{STEPS} ") < steps and process.poll() is None:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
    resume(tmp_path / "run", cache)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_while_saving(whole, cache, tmp_path):
    process, log = start_training(tmp_path / "run", cache, *OVERRIDES, program=FAILS, FAILURE="kill")
    finish(process, log, code=-signal.SIGKILL)
    left = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert "8" in left and any(name.startswith("16.orbax-checkpoint-tmp") for name in left)
    said = resume(tmp_path / "run", cache)
    assert "resumed at step 8" in said
    assert not any("tmp" in p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_disk_full_while_saving(whole, cache, tmp_path):
    """One line, exit code 1, the checkpoint before is intact, and there is nothing to tidy up."""
    process, log = start_training(tmp_path / "run", cache, *OVERRIDES, program=FAILS, FAILURE="full")
    said = finish(process, log, code=1)
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "a checkpoint could not be written to" in line and line.endswith("the newest complete one is of step 8")
    assert resume(tmp_path / "run", cache).count("resumed at step 8") == 1
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_told_to_stop_while_evaluating(cache, tmp_path):
    """What is due at the same step is saved before, the evaluation is broken off, and made up for afterwards."""
    evaluating = ("eval_every=8", "validation.min_size=64", "data.drawn_images=400", "checkpoint_every=0")
    workdir = tmp_path / "run"
    process, log = start_training(workdir, cache, *OVERRIDES, *evaluating)
    while not (workdir / "checkpoints" / "8").is_dir() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = finish(process, log, code=EXIT_PREEMPTED)
    assert "told to stop: saved at step 8" in said and not any("eval/PQ" in line for line in metrics(workdir))
    said = resume(workdir, cache, *evaluating, "steps=9", "validation.max_images=4")
    assert "step 8 was not evaluated before the stop" in said
    assert [line["step"] for line in metrics(workdir) if "eval/PQ" in line] == [8, 9]
    assert set(json.loads((workdir / "checkpoints" / "8" / "scores.json").read_text())) >= {"PQ", "SQ", "RQ"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "missing file", "no checksums"])
def test_damaged_newest_checkpoint(whole, cache, tmp_path, damage):
    """The run goes on from the checkpoint before, says so in one line, and keeps what is damaged."""
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "model")
    newest = workdir / "checkpoints" / str(STEPS)
    file = newest / random.choice(list(json.loads((newest / "checksums.json").read_text())))
    content = bytearray(file.read_bytes())
    if damage == "flipped byte":
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        file.write_bytes(content)
    elif damage == "cut short":
        file.write_bytes(content[: random.randrange(len(content))])
    elif damage == "missing file":
        file.unlink()
    else:
        (newest / "checksums.json").unlink()
    said = resume(workdir, cache)
    (line,) = [line for line in said.splitlines() if f"checkpoint {STEPS} is damaged (" in line]
    assert line.endswith("; going back to the one before")
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
    assert "resumed at step" in said
    found, wanted = metrics(workdir), metrics(whole)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for line, expected in zip(found, wanted, strict=True):
        for name, value in expected.items():
            # Sums over devices come in another order, and forty steps carry that on.
            assert abs(line[name] - value) <= 1e-5 * max(abs(value), 1), (line["step"], name)


@pytest.mark.slow
def test_frozen_towers_stay_and_may_be_moved(whole, cache, tmp_path):
    """Bit for bit what they were, in what a run exports; a run knows them by what they are, not by where."""
    towers, moved = tmp_path / "towers", tmp_path / "moved"
    shutil.copytree(whole / "model", towers)
    resume(tmp_path / "run", cache, "steps=2", f"model.towers={towers}")
    towers.rename(moved)
    said = resume(tmp_path / "run", cache, "steps=4", f"model.towers={moved}")
    assert "resumed at step 2" in said
    found, expected = (
        safetensors.numpy.load_file(p / "model.safetensors") for p in (tmp_path / "run" / "model", moved)
    )
    frozen = [name for name in expected if name.startswith("clip.")]
    assert len(frozen) > 50 and found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in frozen)
    assert any(found[name].tobytes() != expected[name].tobytes() for name in expected.keys() - set(frozen))
    # The same names and shapes, one number of them another.
    expected[frozen[0]].flat[0] += 1
    safetensors.numpy.save_file(expected, moved / "model.safetensors")
    process, log = start_training(tmp_path / "run", cache, *OVERRIDES, f"model.towers={moved}")
    said = finish(process, log, code=2)
    assert "is the work folder of another run: model.towers holds other weights" in said.splitlines()[-1]
