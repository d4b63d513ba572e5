"""Who is said to keep the others waiting."""

from fcclip_jax.training.stragglers import DataWaits, slow_process, slow_worker

HOSTS = {0: "a", 1: "b", 2: "c"}


def _told(*waits: float, step: float = 1.0, worker: str = "") -> dict:
    return {i: {"data_wait": wait, "step": step, "worker": worker} for i, wait in enumerate(waits)}


def test_the_slow_process_is_named_with_its_host():
    assert slow_process(_told(0.01, 0.6, 0.02), HOSTS) == (
        "process 1 (b) waits 0.60 s of a step's 1.00 s for its data, the others 0.01 s"
    )


def test_where_all_wait_alike_nobody_is_to_blame():
    assert slow_process(_told(0.5, 0.6, 0.55), HOSTS) == ""


def test_little_is_not_worth_a_line():
    assert slow_process(_told(0.0, 0.09, 0.0), HOSTS) == ""
    assert slow_process({}, HOSTS) == ""


def test_one_process_alone_is_said_to_wait():
    assert slow_process(_told(0.4), {}) == "process 0 waits 0.40 s of a step's 1.00 s for its data"


def test_the_slow_worker_is_named():
    waits = DataWaits(3)
    for _ in range(4):
        for seconds in (0.0, 0.9, 0.03):
            waits.add(seconds)
    assert waits.slow(0.4).endswith("for its data; worker 1 of 3 (0.90 s a batch, the others 0.01 s)")
    assert waits.slow(0.4) == ""  # nothing since


def test_workers_alike():
    assert slow_worker([[0.1], [0.2], [0.15]]) == ""
    assert slow_worker([[0.5, 0.5]]) == ""
    assert slow_worker([[], [0.0]]) == ""


def test_the_first_steps_say_nothing():
    waits = DataWaits(0)
    for _ in range(3):
        waits.add(5.0)
    assert waits.slow(6.0) == ""
