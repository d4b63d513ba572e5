"""`fcclip supervise`: runs a training, and runs it again where that can help.

Standard library alone: it has to live where everything else fails.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fcclip_jax.training.lifeline import EXIT_LOST
from fcclip_jax.training.meeting import Meeting, NobodyCame, Part
from fcclip_jax.training.places import this_host

EXIT_PREEMPTED = 75
# Done; told to stop; and what another try would only repeat: input that cannot be used, a loss that is not finite.
FINAL = (0, EXIT_PREEMPTED, 2, 3)

_LONGEST_PAUSE = 300.0
_DESCRIPTION = (
    "Runs a training and, where it ends by accident, runs it again: it goes on from its last checkpoint. Exit codes "
    "0, 2, 3 and 75 are final and passed on; TERM and Ctrl-C are handed to the command, and then it is not run again. "
    "With --hosts each host of a run has a supervisor, and before each start they agree in --meeting, a folder that "
    "all see, who takes part: the command finds its place in JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
    "JAX_PROCESS_ID."
)


def add_arguments(commands) -> None:
    """Adds `supervise` to the subparsers of the command line."""
    parser = commands.add_parser(
        "supervise", help="run a training, again after accidents", description=_DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument("--restarts", type=int, default=3, metavar="N", help="at most so many (%(default)s)")
    parser.add_argument(
        "--pause",
        type=float,
        default=5.0,
        metavar="S",
        help="before the first restart, then twice as long (%(default)g)",
    )
    hosts = parser.add_argument_group("several hosts")
    hosts.add_argument("--hosts", metavar="N,N,...", help="numbers of hosts that the run may have, such as 4,2,1")
    hosts.add_argument("--meeting", metavar="DIR", help="a folder on a file system that all hosts share")
    hosts.add_argument("--name", metavar="NAME", default=this_host(), help="of this host (%(default)s)")
    hosts.add_argument("--address", metavar="HOST", help="under which the others reach this host (its name)")
    hosts.add_argument(
        "--gather", type=float, default=60.0, metavar="S", help="for the largest number to come (%(default)g)"
    )
    hosts.add_argument(
        "--give_up", type=float, default=1800.0, metavar="S", help="when too few have come (%(default)g)"
    )
    parser.add_argument("words", nargs="+", metavar="COMMAND", help="after --: fcclip train ...")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns the exit code of the last try.

    Raises:
        ValueError: options that do not go together, or a command that cannot be started.
    """
    if options.restarts < 0 or options.pause < 0 or options.gather < 0 or options.give_up < 0:
        raise ValueError("--restarts, --pause, --gather and --give_up must not be below 0")
    if (options.hosts is None) != (options.meeting is None):
        raise ValueError("--hosts and --meeting go together")
    with _Supervisor(options) as supervisor:
        return supervisor.run()


class _Supervisor:
    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._child: subprocess.Popen | None = None
        self._told = False
        self._meeting = None
        if options.hosts is not None:
            self._meeting = Meeting(
                Path(options.meeting),
                options.name,
                options.address or options.name,
                _sizes(options.hosts),
                gather=options.gather,
                give_up=options.give_up,
                stopped=lambda: self._told,
            )

    def __enter__(self) -> "_Supervisor":
        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._forward) for number in handled}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame) -> None:
        if number != signal.SIGUSR1:  # which asks for a profile
            self._told = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def run(self) -> int:
        restarts = 0
        while True:
            part = None
            if self._meeting is not None:
                part = self._part()
                if isinstance(part, int):
                    return part
            began = time.monotonic()
            code = self._start(part)
            seconds = time.monotonic() - began
            if self._told or code in FINAL or restarts == self._options.restarts:
                if code not in FINAL and not self._told:
                    _say(f"{_what(code)} after {seconds:.0f} s; no restart is left of {restarts}")
                if self._meeting is not None:
                    self._meeting.finish(code)
                return code
            pause = min(self._options.pause * 2**restarts, _LONGEST_PAUSE)
            restarts += 1
            _say(
                f"{_what(code)} after {seconds:.0f} s; restart {restarts} of {self._options.restarts} in {pause:.0f} s"
            )
            if not self._sleep(pause):
                return EXIT_PREEMPTED

    def _part(self) -> Part | int:
        """This host's part in the next start, or the exit code of a run that ended without it."""
        while True:
            try:
                part = self._meeting.next()
            except NobodyCame as error:
                _say(f"error: {error}")
                return EXIT_LOST
            if part is None:
                return EXIT_PREEMPTED
            if isinstance(part, int):
                return part
            if part.index is not None:
                _say(f"host {part.index} of {part.count}; the first one is at {part.coordinator}")
                return part
            _say(f"the run goes on with {part.count} others; waiting for its next start")

    def _start(self, part: Part | None) -> int:
        environment = dict(os.environ)
        if part is not None:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": part.coordinator,
                "JAX_NUM_PROCESSES": str(part.count),
                "JAX_PROCESS_ID": str(part.index),
            }
        try:
            self._child = subprocess.Popen(self._options.words, env=environment)
        except OSError as error:
            raise ValueError(f"{self._options.words[0]} cannot be started: {error.strerror}") from error
        if self._told:  # between the last look and the start
            self._child.terminate()
        code = self._child.wait()
        return code if code >= 0 else 128 - code

    def _sleep(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._told and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
        return not self._told


def _sizes(text: str) -> list[int]:
    sizes = text.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise ValueError(f"--hosts takes numbers such as 4,2,1, not {text!r}")
    return [int(size) for size in sizes]


def _what(code: int) -> str:
    if code > 128:
        try:
            return f"ended by {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    return f"ended with exit code {code}"


def _say(text: str) -> None:
    print(f"supervise: {text}", file=sys.stderr, flush=True)
