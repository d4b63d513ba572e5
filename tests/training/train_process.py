"""`fcclip train` in a process of its own, and what it leaves behind."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from tests.own_process import start

SMALLEST = Path(__file__).with_name("smallest.py")
# What differs between two runs of the same steps.
_TIMES = ("seconds_per_step", "images_per_second", "data_wait_share", "seconds_left")


def start_training(
    workdir: Path,
    cache: Path,
    *overrides: str,
    config: Path = SMALLEST,
    devices: int = 1,
    program: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    **environment: str,
) -> tuple[subprocess.Popen, Path]:
    """The process, and the file that holds what it says. `program` stands for `fcclip` where it is given."""
    logs = len(list(workdir.parent.glob(f"{workdir.name}.log*")))
    log = workdir.parent / f"{workdir.name}.log{logs}"
    command = [*(program or [str(Path(sys.executable).with_name("fcclip"))]), "train"]
    command += ["--config", str(config), "--workdir", str(workdir)]
    command += [*flags, *(f"--config.{override}" for override in overrides)]
    return start(command, cache, log, devices=devices, **environment), log


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without times."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [{k: v for k, v in json.loads(line).items() if k not in _TIMES} for line in lines]


def wait_for_steps(process: subprocess.Popen, workdir: Path, steps: int, timeout: float = 900) -> None:
    """Until so many steps are reported."""
    path = workdir / "metrics.jsonl"
    end = time.monotonic() + timeout
    while not path.is_file() or path.read_bytes().count(b"\n") < steps:
        assert process.poll() is None, f"it ended with {process.returncode} before step {steps}"
        assert time.monotonic() < end, f"no step {steps} within {timeout} s"
        time.sleep(0.002)


def last_state(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint: parameters, moments, average, step and key."""
    newest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(newest.resolve() / "state")
    found: dict[str, np.ndarray] = {}

    def add(path: str, node) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                add(f"{path}.{key}", value)
        elif isinstance(node, list | tuple):
            for number, value in enumerate(node):
                add(f"{path}.{number}", value)
        elif node is not None:
            found[path] = np.asarray(node)

    add("", tree)
    return found


def assert_same_run(workdir: Path, expected: Path) -> None:
    """The same losses and the same final state, bit for bit."""
    assert metrics(workdir) == metrics(expected)
    found, wanted = last_state(workdir), last_state(expected)
    assert found.keys() == wanted.keys() and len(wanted) > 100
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name
    assert (workdir / "model" / "model.safetensors").read_bytes() == (
        expected / "model" / "model.safetensors"
    ).read_bytes()
