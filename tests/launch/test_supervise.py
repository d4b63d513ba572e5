"""`fcclip supervise` with small programs in the training's place."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.own_process import ROOT

# Counts its starts in a file and exits with the next of the codes given; a code below 0 is a signal to itself.
PROGRAM = """
import os, sys
starts, codes = sys.argv[1], [int(c) for c in sys.argv[2].split(",")]
with open(starts, "a") as file:
    file.write(os.environ.get("JAX_PROCESS_ID", "-") + " of " + os.environ.get("JAX_NUM_PROCESSES", "-") + "\\n")
number = len(open(starts).read().splitlines())
code = codes[min(number, len(codes)) - 1]
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
SLOW_PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
"""


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fcclip_jax.cli", "supervise", *arguments]


def _supervise(tmp_path: Path, codes: str, *flags: str) -> tuple[int, list[str], str]:
    """Exit code, the starts, and what was said."""
    starts = tmp_path / "starts"
    program = (sys.executable, "-c", PROGRAM, str(starts), codes)
    command = _command("--pause", "0.05", *flags, "--", *program)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, starts.read_text().splitlines() if starts.exists() else [], done.stderr


@pytest.mark.parametrize("code", [0, 2, 3, 75])
def test_what_is_final_is_passed_on(tmp_path, code):
    assert _supervise(tmp_path, str(code)) == (code, ["- of -"], "")


def test_accidents_are_tried_again(tmp_path):
    code, starts, said = _supervise(tmp_path, "1,-9,69,0")
    assert code == 0 and len(starts) == 4
    first, second, third = said.splitlines()
    assert "ended with exit code 1 after" in first and "restart 1 of 3 in 0 s" in first
    assert "ended by SIGKILL" in second and "ended with exit code 69" in third


def test_and_no_more_than_allowed(tmp_path):
    code, starts, said = _supervise(tmp_path, "1", "--restarts", "2")
    assert code == 1 and len(starts) == 3 and "no restart is left of 2" in said


def test_a_signal_is_told_as_a_shell_does(tmp_path):
    assert _supervise(tmp_path, "-6", "--restarts", "0")[0] == 128 + 6


def test_a_restart_ends_where_the_input_turns_out_bad(tmp_path):
    assert _supervise(tmp_path, "1,2")[:2] == (2, ["- of -"] * 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(number):
    program = SLOW_PROGRAM.replace("SIGTERM", number.name)
    command = _command("--", sys.executable, "-c", program)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(30) == 75


def test_told_to_stop_while_nothing_runs():
    command = _command("--pause", "60", "--", "false")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert "restart 1 of 3 in 60 s" in process.stderr.readline()
        began = time.monotonic()
        process.terminate()
        assert process.wait(30) == 75 and time.monotonic() - began < 30


def test_hosts_get_their_places(tmp_path):
    starts = [tmp_path / name for name in "ab"]
    processes = []
    for name, file in zip("ab", starts, strict=True):
        meeting = ("--hosts", "2,1", "--meeting", str(tmp_path / "meeting"), "--name", name, "--pause", "0.05")
        program = (sys.executable, "-c", PROGRAM, str(file), "69,0")
        processes.append(subprocess.Popen(_command(*meeting, "--", *program), cwd=ROOT))
    assert [process.wait(60) for process in processes] == [0, 0]
    assert [file.read_text().splitlines() for file in starts] == [["0 of 2"] * 2, ["1 of 2"] * 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--", "/no/such/program"), "/no/such/program cannot be started: No such file or directory"),
        (("--restarts", "-1", "--", "true"), "must not be below 0"),
        (("--hosts", "2", "--", "true"), "--hosts and --meeting go together"),
        (("--hosts", "two", "--meeting", "x", "--", "true"), "--hosts takes numbers such as 4,2,1, not 'two'"),
        (("--hosts", "1", "--meeting", "x", "--name", "a/b", "--", "true"), "a host's name has letters"),
        ((), "the following arguments are required: COMMAND"),
    ],
)
def test_what_cannot_be_is_said(arguments, said):
    done = subprocess.run(_command(*arguments), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
