"""Processes that find each other, and notice when one is gone. Real processes; none of them imports jax."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fcclip_jax.training.lifeline import EXIT_LOST, GRACE, Lifeline, ProcessesMissing, gather
from fcclip_jax.training.places import Place, this_host
from fcclip_jax.version import __version__
from tests.own_process import ROOT

PROGRAM = Path(__file__).with_name("one_of_many.py")
LOST_AFTER = 2.0
# Of a busy machine, to start a process or to let one speak.
SLACK = 20.0


@pytest.fixture
def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Many:
    """Processes by index; output in files."""

    def __init__(self, folder: Path, address: str, count: int, wait: float = 30.0):
        self.folder, self.address, self.count, self.wait = folder, address, count, wait
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self, index: int, name: str = "", count: int | None = None) -> None:
        name = name or str(index)
        arguments = [self.address, str(count or self.count), str(index), str(self.wait), str(LOST_AFTER)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with (self.folder / name).open("wb") as out:
            self.processes[name] = subprocess.Popen(
                [sys.executable, str(PROGRAM), *arguments],
                stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip

    def said(self, name: str | int) -> str:
        return (self.folder / str(name)).read_text()

    def all_came(self) -> None:
        end = time.monotonic() + SLACK
        while not all("all " in self.said(name) for name in self.processes):
            assert time.monotonic() < end, {name: self.said(name) for name in self.processes}
            time.sleep(0.01)

    def end(self, index: int, code: int) -> None:
        self.processes[str(index)].communicate(f"{code}\n".encode(), timeout=SLACK)

    def codes(self, timeout: float = SLACK) -> dict[str, int]:
        return {name: process.wait(timeout) for name, process in self.processes.items()}


@pytest.fixture
def many(tmp_path, address):
    made = []

    def make(count: int, **options) -> Many:
        made.append(Many(tmp_path, address, count, **options))
        return made[-1]

    yield make
    for process in (process for group in made for process in group.processes.values()):
        process.kill()
        process.wait()
        process.stdin.close()


def test_all_come_in_any_order_and_leave_in_peace(many):
    group = many(4)
    for index in (2, 0, 3, 1):
        group.start(index)
    group.all_came()
    for index in (0, 3, 1, 2):
        group.end(index, 0)
    assert set(group.codes().values()) == {0}
    assert all(group.said(index) == "all 4\n" for index in range(4))


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_all_at_once_and_is_named(many, victim):
    group = many(3)
    for index in range(3):
        group.start(index)
    group.all_came()
    began = time.monotonic()
    group.processes[str(victim)].kill()
    codes = group.codes()
    # The system closes a dead process's line, so this does not depend on the beats.
    assert time.monotonic() - began < GRACE + SLACK
    assert codes.pop(str(victim)) == -signal.SIGKILL and set(codes.values()) == {EXIT_LOST}
    for index in codes:
        assert f"error: process {victim} ({this_host()}) is lost: its process ended without a word" in group.said(index)


def test_a_silent_process_ends_all_within_the_stated_time(many):
    group = many(3)
    for index in range(3):
        group.start(index)
    group.all_came()
    began = time.monotonic()
    group.processes["1"].send_signal(signal.SIGSTOP)
    for index in (0, 2):
        assert group.processes[str(index)].wait(LOST_AFTER + GRACE + SLACK) == EXIT_LOST
        assert f"process 1 ({this_host()}) is lost: silent for 2 s" in group.said(index)
    assert time.monotonic() - began >= LOST_AFTER


def test_an_exit_code_that_cannot_get_better_is_everybodys(many):
    group = many(3)
    for index in range(3):
        group.start(index)
    group.all_came()
    group.end(1, 3)
    assert set(group.codes().values()) == {3}
    assert "process 1" in group.said(2) and "it ended with exit code 3" in group.said(2)


def test_being_told_to_stop_ends_nobody_else(many):
    group = many(2)
    group.start(0)
    group.start(1)
    group.all_came()
    group.end(0, 75)
    time.sleep(LOST_AFTER + 1)
    assert group.processes["1"].poll() is None
    group.end(1, 0)


def test_who_does_not_come_is_named_everywhere(many):
    group = many(4, wait=3.0)
    group.start(0)
    group.start(2)
    assert set(group.codes(SLACK).values()) == {EXIT_LOST}
    host = this_host()
    expected = f"processes 1, 3 of 4 did not come within 3 s (here: processes 0 ({host}), 2 ({host}))"
    assert expected in group.said(0) and expected in group.said(2)


def test_where_process_0_does_not_come_that_is_said(many, address):
    group = many(2, wait=1.0)
    group.start(1)
    assert group.codes() == {"1": EXIT_LOST}
    assert f"process 0 of 2 cannot be reached at {address} within 1 s (Connection refused)" in group.said(1)


@pytest.mark.parametrize(
    ("index", "count", "said"),
    [(1, None, "two processes say that they are process 1"), (2, 4, "is one of 4, process 0 (")],
)
def test_processes_that_contradict_each_other(many, index, count, said):
    group = many(3)
    group.start(0)
    group.start(1)
    time.sleep(1.0)  # not needed for the outcome, but for who is told
    group.start(index, "odd", count)
    assert group.processes["0"].wait(SLACK) == 2 and said in group.said(0)


def test_a_taken_port_is_said(address):
    place = Place(address, 2, 0)
    with socket.create_server(("127.0.0.1", place.port)), pytest.raises(ValueError, match="cannot listen at"):
        gather(place, 1.0)


def test_strangers_and_those_who_come_back(address):
    """What is not ours is not counted, and a process that was restarted while others wait comes anew."""
    ends = {}

    def come(index: int) -> threading.Thread:
        thread = threading.Thread(target=lambda: ends.update({index: gather(Place(address, 3, index), SLACK)}))
        thread.start()
        return thread

    def connect() -> socket.socket:
        end = time.monotonic() + SLACK
        while True:
            try:
                return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)

    first = come(0)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\x00\n", b"[1, 2]\n", b'{"index": "x"}\n', b"{" * 70000):
        with connect() as stranger:
            stranger.sendall(noise)
    silent = connect()
    with connect() as early:
        hello = {"index": 1, "count": 3, "host": "a\x07b", "version": __version__}
        early.sendall(json.dumps(hello).encode() + b"\n")
        time.sleep(0.3)
    time.sleep(0.3)
    for thread in (come(1), come(2), first):
        thread.join(SLACK)
    assert all(ends[index][1] == dict.fromkeys(range(3), this_host()) for index in range(3))
    for line in (line for lines, _ in ends.values() for line in lines):
        line.socket.close()
    silent.close()


def test_figures_reach_process_0(address):
    ends = {}

    def come(index: int) -> None:
        place = Place(address, 2, index)
        ends[index] = Lifeline(place, *gather(place, SLACK))

    threads = [threading.Thread(target=come, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends[1].tell(data_wait=0.5)
    ends[0].tell(data_wait=0.1)
    end = time.monotonic() + SLACK
    while len(ends[0].told()) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert ends[0].told() == {0: {"data_wait": 0.1}, 1: {"data_wait": 0.5}}
    assert ends[0].explain(0.0) is None
    ends[0].leave(0)
    ends[1].leave(0)


def test_the_error_is_no_value_error():
    """The command line makes a ValueError code 2, which the supervisor does not try again."""
    assert not issubclass(ProcessesMissing, ValueError | OSError)
