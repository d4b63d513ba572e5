"""Hosts that agree in a folder who takes part."""

import os
import threading
import time

import pytest

from fcclip_jax.training.meeting import Meeting, NobodyCame, Part


def _meet(folder, *names: str, sizes=(3, 2), gather: float = 30.0, meetings=None) -> dict[str, Part]:
    """What each host is told, when all come at once."""
    made = meetings or {}
    for name in names:
        made.setdefault(name, Meeting(folder, name, f"{name}.net", sizes, gather=gather, give_up=30.0))
    found: dict[str, Part] = {}
    threads = [threading.Thread(target=lambda n=name: found.update({n: made[n].next()})) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    return found


def test_all_come(tmp_path):
    found = _meet(tmp_path, "b", "c", "a")
    assert {name: part.index for name, part in found.items()} == {"a": 0, "b": 1, "c": 2}
    assert {part.count for part in found.values()} == {3}
    (address,) = {part.coordinator for part in found.values()}
    assert address.startswith("a.net:") and int(address.rpartition(":")[2]) > 0


def test_fewer_go_on_after_a_while_and_a_spare_waits(tmp_path):
    found = _meet(tmp_path, "a", "b", sizes=(4, 2, 1), gather=0.5)
    assert {part.count for part in found.values()} == {2}
    found = _meet(tmp_path / "three", "a", "b", "c", sizes=(4, 2), gather=0.5)
    assert [found[name].index for name in "abc"] == [0, 1, None]


def test_a_host_that_is_lost_and_one_that_comes_back(tmp_path):
    meetings: dict[str, Meeting] = {}
    assert {part.count for part in _meet(tmp_path, "a", "b", sizes=(2, 1), meetings=meetings).values()} == {2}
    # Host a is lost; b goes on alone, and is the first one now.
    (alone,) = _meet(
        tmp_path, "b", sizes=(2, 1), meetings={"b": Meeting(tmp_path, "b", "b.net", (2, 1), gather=0.3)}
    ).values()
    assert alone == Part(alone.round, 0, 1, alone.coordinator) and alone.coordinator.startswith("b.net:")
    # Host a comes back while b works: it waits for the next start, and then both go on.
    again = Meeting(tmp_path, "a", "a.net", (2, 1), gather=30.0)
    b = Meeting(tmp_path, "b", "b.net", (2, 1), gather=30.0)
    found = _meet(tmp_path, "a", "b", meetings={"a": again, "b": b})
    assert (found["a"].index, found["b"].index, found["a"].count) == (0, 1, 2)
    assert found["a"].round == found["b"].round > alone.round


def test_who_waits_hears_of_the_end(tmp_path):
    first = Meeting(tmp_path, "a", "a", (1,))
    assert first.next().index == 0
    told = {}
    spare = Meeting(tmp_path, "b", "b", (2,))
    thread = threading.Thread(target=lambda: told.update(code=spare.next()))
    thread.start()
    time.sleep(0.5)
    assert not told
    first.finish(0)
    thread.join(20)
    assert told == {"code": 0}
    # And the same folder serves for the next run.
    assert Meeting(tmp_path, "a", "a", (1,)).next().count == 1


def test_an_old_file_is_nobody(tmp_path):
    folder = tmp_path / "round-000000"
    folder.mkdir()
    ghost = folder / "a.host"
    ghost.write_text('{"name": "a", "address": "a", "port": 1}')
    os.utime(ghost, (time.time() - 60, time.time() - 60))
    assert Meeting(tmp_path, "b", "b", (2, 1), gather=0.3).next().count == 1


def test_too_few(tmp_path):
    with pytest.raises(NobodyCame, match=r"1 hosts came to .* \(a\), at least 2 are needed"):
        Meeting(tmp_path, "a", "a", (3, 2), gather=0.1, give_up=0.5).next()
    assert not list(tmp_path.rglob("*.host"))


def test_stopped(tmp_path):
    assert Meeting(tmp_path, "a", "a", (2,), stopped=lambda: True).next() is None


@pytest.mark.parametrize(("name", "sizes"), [("../a", (1,)), ("", (1,)), ("-a", (1,)), ("a", ()), ("a", (0,))])
def test_what_cannot_be(tmp_path, name, sizes):
    with pytest.raises(ValueError, match=r"a host's name has letters|numbers of hosts are whole"):
        Meeting(tmp_path, name, "a", sizes)
