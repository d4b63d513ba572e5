"""`fcclip train` as several real processes over loopback: the same run, whoever dies."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fcclip_jax.training.lifeline import EXIT_LOST, GRACE
from fcclip_jax.training.trainer import EXIT_PREEMPTED
from tests.own_process import finish, shared_folder
from tests.training.train_process import metrics, start_training, wait_for_steps

STEPS = 24
# Rounding can tip a decision (a pixel at a mask's threshold, points of equal uncertainty). At the usual learning rate
# two runs part there (seen at step 7 of seed 0); at a small one the next steps agree again.
SMALL_STEPS = ("seed=1", "optimizer.learning_rate=1e-4")
OVERRIDES = (f"steps={STEPS}", "checkpoint_every=5", "optimizer.milestones=(18,)", *SMALL_STEPS)
FCCLIP = str(Path(sys.executable).with_name("fcclip"))
LOST_AFTER = 15
# For the others to end when one is gone; the processes share two cores with whatever else runs.
WITHIN = LOST_AFTER + GRACE + 30


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return shared_folder(tmp_path_factory, "cache")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache) -> Path:
    """The work folder of the run of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(*start_training(workdir, cache, *OVERRIDES))
    return workdir


def start_all(workdir: Path, cache: Path, count: int, *overrides: str) -> list[tuple[subprocess.Popen, Path]]:
    """So many processes of one run, with one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for index in range(count):
        place = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        flags = ("--distributed", "--lost_after", str(LOST_AFTER), "--wait", "120")
        started.append(start_training(workdir, cache, *OVERRIDES, *overrides, flags=flags, **place))
    return started


def codes(started: Sequence[tuple[subprocess.Popen, Path]], timeout: float) -> list[int]:
    """Exit codes; nobody is left behind."""
    end = time.monotonic() + timeout
    try:
        return [process.wait(max(0.1, end - time.monotonic())) for process, _ in started]
    finally:
        for process, _ in started:
            process.kill()
            process.wait()


def assert_same_losses(workdir: Path, expected: Path) -> None:
    found, wanted = metrics(workdir), metrics(expected)
    assert [line["step"] for line in found] == [line["step"] for line in wanted] == list(range(1, STEPS + 1))
    apart = []
    for line, other in zip(found, wanted, strict=True):
        assert line["segments"] == other["segments"]
        terms = ("loss", "loss_ce", "loss_mask", "loss_dice")
        apart.append(max(abs(line[term] - other[term]) / abs(other[term]) for term in terms))
    # The same images, points and matches; sums over devices come in another order: measured 1e-6 and less. In 2 of 24
    # steps a decision was tipped, by 4e-5. Other images, points or parameters are 1e-2 apart, and stay so.
    assert sum(share <= 1e-5 for share in apart) >= 0.75 * STEPS and max(apart) < 1e-3, apart


def test_two_processes_are_the_run_of_one(tmp_path, cache, alone):
    started = start_all(tmp_path / "run", cache, 2)
    for process, log in started:
        finish(process, log)
    assert_same_losses(tmp_path / "run", alone)
    goodput = json.loads((tmp_path / "run" / "goodput.json").read_text())
    assert len(goodput["attempts"]) == 1 and goodput["attempts"][0]["last_step"] == STEPS
    assert goodput["summary"]["lost"] == 0 and 0 < goodput["summary"]["goodput"] < 1
    # Only the first process writes; the other one says nothing but what concerns it.
    assert "step 1/" in started[0][1].read_text() and "step 1/" not in started[1][1].read_text()


@pytest.mark.slow
def test_four_processes_are_the_run_of_one(tmp_path, cache, alone):
    for process, log in start_all(tmp_path / "run", cache, 4, "mesh.fsdp=2"):
        finish(process, log, timeout=600)
    assert_same_losses(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_and_it_resumes(tmp_path, cache, alone, victim):
    workdir = tmp_path / "run"
    started = start_all(workdir, cache, 2)
    wait_for_steps(started[0][0], workdir, 8)
    killed = time.monotonic()
    started[victim][0].kill()
    found = codes(started, WITHIN)
    assert time.monotonic() - killed < WITHIN
    other = 1 - victim
    said = started[other][1].read_text()
    assert f"error: process {victim} (" in said and "is lost: its process ended without a word" in said, said[-3000:]
    # Where process 0 dies, jax's own abort may come before the end of the grace.
    assert found[victim] == -signal.SIGKILL
    assert found[other] in ((EXIT_LOST,) if victim else (EXIT_LOST, -signal.SIGABRT))

    for process, log in start_all(workdir, cache, 2):
        finish(process, log)
    assert_same_losses(workdir, alone)
    goodput = json.loads((workdir / "goodput.json").read_text())
    assert goodput["summary"]["restarts"] == 1 and goodput["attempts"][1]["first_step"] in (0, 5, 10, 15, 20)
    assert goodput["summary"]["lost"] > 0 and goodput["summary"]["down"] > 0


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_within_the_stated_time(tmp_path, cache):
    workdir = tmp_path / "run"
    started = start_all(workdir, cache, 2, "steps=2000")
    wait_for_steps(started[0][0], workdir, 3)
    stopped = time.monotonic()
    started[1][0].send_signal(signal.SIGSTOP)
    try:
        assert started[0][0].wait(WITHIN) == EXIT_LOST
        assert LOST_AFTER <= time.monotonic() - stopped < WITHIN
        assert f"is lost: silent for {LOST_AFTER} s" in started[0][1].read_text()
    finally:
        started[1][0].kill()
        started[1][0].wait()


@pytest.mark.slow
def test_told_to_stop_all_save_the_same_step_and_resume(tmp_path, cache, alone):
    workdir = tmp_path / "run"
    started = start_all(workdir, cache, 2)
    wait_for_steps(started[0][0], workdir, 6)
    started[1][0].terminate()  # any of them: all are told
    assert codes(started, 120) == [EXIT_PREEMPTED] * 2
    for process, log in start_all(workdir, cache, 2):
        finish(process, log)
    assert_same_losses(workdir, alone)
    assert json.loads((workdir / "goodput.json").read_text())["summary"]["lost"] == 0


@pytest.mark.slow
def test_two_processes_go_on_where_four_were(tmp_path, cache, alone):
    workdir = tmp_path / "run"
    started = start_all(workdir, cache, 4)
    wait_for_steps(started[0][0], workdir, 8, timeout=600)
    started[3][0].kill()
    assert codes(started, WITHIN) == [EXIT_LOST] * 3 + [-signal.SIGKILL]
    assert all("error: process 3 (" in log.read_text() for _, log in started[:3])
    for process, log in start_all(workdir, cache, 2):
        finish(process, log)
    assert_same_losses(workdir, alone)


@pytest.mark.slow
def test_bad_input_of_one_process_ends_all_with_code_2(tmp_path, cache):
    workdir = tmp_path / "run"
    started = start_all(workdir, cache, 2, "batch_size=7")
    assert codes(started, 120) == [2, 2]
    assert any("batch_size 7 does not split" in log.read_text() for _, log in started)


@pytest.mark.slow
def test_supervised_hosts_go_on_without_a_lost_one(tmp_path, cache, alone):
    """Two supervisors that meet in a folder; one host is lost with its supervisor, the other finishes the run."""
    workdir, meeting = tmp_path / "run", tmp_path / "meeting"

    def start(name: str) -> tuple[subprocess.Popen, Path]:
        flags = ("--distributed", "--lost_after", str(LOST_AFTER))
        supervise = (FCCLIP, "supervise", "--hosts", "2,1", "--meeting", str(meeting), "--name", name)
        supervise += ("--address", "127.0.0.1", "--gather", "20", "--pause", "1", "--", FCCLIP)
        return start_training(workdir, cache, *OVERRIDES, program=supervise, flags=flags)

    started = [start("a"), start("b")]
    wait_for_steps(started[0][0], workdir, 8)
    children = Path(f"/proc/{started[1][0].pid}/task/{started[1][0].pid}/children").read_text().split()
    started[1][0].kill()
    for child in children:
        subprocess.run(["kill", "-9", child], check=True)
    said = finish(*started[0], timeout=400)
    started[1][0].wait()
    assert "supervise: host 0 of 2" in said and "supervise: host 0 of 1" in said
    assert "supervise: ended with exit code 69" in said and "restart 1 of 3" in said
    assert_same_losses(workdir, alone)
