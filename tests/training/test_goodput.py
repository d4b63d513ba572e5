"""What a run's time went into, over restarts, with clocks that stand still between the lines."""

import json
import logging

import pytest

from fcclip_jax.training.goodput import KINDS, Goodput


class Clock:
    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def _attempt(path, clock, *, first: int, saves: list[int], last: int, step: float = 2.0) -> Goodput:
    """10 s of start, 5 s of compiling, then steps of `step` seconds and 1 s of data each, a save costing 4 s."""
    goodput = Goodput(path, clock=clock, now=clock)
    clock.now += 10
    goodput.resumed(first)
    goodput.switch("step")
    with goodput.during("compile"):
        clock.now += 5
    for number in range(first + 1, last + 1):
        with goodput.during("data"):
            clock.now += 1
        clock.now += step
        if number in saves:
            with goodput.during("checkpoint"):
                goodput.saved(number)
                clock.now += 4
        goodput.write(number)
    return goodput


def test_one_attempt(tmp_path, clock):
    goodput = _attempt(tmp_path / "goodput.json", clock, first=0, saves=[4], last=4)
    with goodput.during("evaluation"):
        clock.now += 7
    goodput.write(4)
    summary = goodput.summary()
    assert {kind: summary[kind] for kind in KINDS} == {
        "start": 10, "compile": 5, "step": 8, "data": 4, "checkpoint": 4, "evaluation": 7,
    }  # fmt: skip
    assert summary["total"] == 38 and summary["goodput"] == pytest.approx(8 / 38)
    kinds = "start 10 s, compile 5 s, step 8 s, data 4 s, checkpoint 4 s, evaluation 7 s"
    assert goodput.line() == f"goodput 21.1% of 38 s (0 restarts): {kinds}"


def test_steps_after_the_last_save_are_lost(tmp_path, clock):
    path = tmp_path / "goodput.json"
    _attempt(path, clock, first=0, saves=[4, 8], last=10)  # steps 9 and 10 are lost: 2 x 3 s
    clock.now += 60  # nobody runs
    goodput = _attempt(path, clock, first=8, saves=[12], last=12)
    summary = goodput.summary()
    assert summary["lost"] == 6 and summary["down"] == 60 and summary["restarts"] == 1
    assert summary["step"] == 2 * (10 + 4) - 6
    kinds = sum(summary[kind] for kind in KINDS) + summary["lost"] + summary["down"]
    assert summary["total"] == kinds == clock.now - 1000


def test_a_damaged_checkpoint_loses_more_than_one_attempt(tmp_path, clock):
    path = tmp_path / "goodput.json"
    _attempt(path, clock, first=0, saves=[4], last=5)  # 1 step lost
    _attempt(path, clock, first=4, saves=[8], last=9)  # its save of step 8 turns out damaged
    goodput = _attempt(path, clock, first=4, saves=[8], last=8)
    # Steps 5 of the first attempt, then 5 to 9 of the second; 5 is not counted a second time.
    assert goodput.summary()["lost"] == 3 * 1 + 3 * 5


def test_nothing_saved_loses_all(tmp_path, clock):
    path = tmp_path / "goodput.json"
    _attempt(path, clock, first=0, saves=[], last=5)
    assert _attempt(path, clock, first=0, saves=[], last=1).summary()["lost"] == 15


def test_told_to_stop_loses_nothing(tmp_path, clock):
    path = tmp_path / "goodput.json"
    _attempt(path, clock, first=0, saves=[5], last=5)
    assert _attempt(path, clock, first=5, saves=[6], last=6).summary()["lost"] == 0


def test_the_file_is_whole_and_holds_the_summary(tmp_path, clock):
    path = tmp_path / "goodput.json"
    goodput = _attempt(path, clock, first=0, saves=[2], last=3)
    content = json.loads(path.read_text())
    assert content["summary"] == goodput.summary()
    assert content["attempts"][0]["saves"] == [[2, 6.0]]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 9}', '{"version": 1, "attempts": [{"began": "x"}]}'])
def test_a_damaged_file_begins_anew_and_says_so(tmp_path, clock, caplog, damage):
    path = tmp_path / "goodput.json"
    path.write_text(damage)
    with caplog.at_level(logging.WARNING):
        goodput = _attempt(path, clock, first=0, saves=[], last=1)
    assert "cannot be read" in caplog.text and goodput.summary()["restarts"] == 0
    assert json.loads(path.read_text())["version"] == 1


def test_a_full_disk_is_a_warning(tmp_path, clock, caplog):
    goodput = Goodput(tmp_path / "missing" / "goodput.json", clock=clock, now=clock)
    goodput.write(1)
    assert "was not written" in caplog.text


def test_other_processes_write_nothing(clock):
    goodput = Goodput(None, clock=clock, now=clock)
    goodput.write(1)
    assert goodput.summary()["total"] == 0
