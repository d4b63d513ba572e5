"""A line from every process of a run to process 0: who has come, who is gone, and what each one has to tell.

jax notices a lost process by its heartbeats and then aborts, and it aborts too where somebody does not come at the
start; neither says who. The lines are plain TCP on the coordinator's port, which jax takes over when all have come:
the system closes a dead process's line at once, and a host that fell silent is noticed by the beats.

Standard library alone. One JSON object a line.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fcclip_jax.training.places import Place, this_host
from fcclip_jax.version import __version__

# What a process exits with when another one of the run is lost: EX_UNAVAILABLE. The same command resumes.
EXIT_LOST = 69
# Ends that concern nobody else: done, and told to stop (EX_TEMPFAIL), which all are told together.
_QUIET = (0, 75)

_LONGEST = 1 << 16  # bytes of a line
_BEATS = 5  # in the time after which a silent process counts as lost
# Seconds in which a process that hears of a loss may still end by itself, with a message of its own.
GRACE = 3.0


class ProcessesMissing(RuntimeError):
    """Not all processes of a run came: who did, and who did not."""


@dataclasses.dataclass
class _Line:
    """One connection: what has been read of an unfinished line, when it was last heard, who is at the other end."""

    socket: socket.socket
    index: int = 0
    host: str = ""
    heard: float = dataclasses.field(default_factory=time.monotonic)
    unread: bytes = b""
    left: bool = False
    sending: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def send(self, **message: Any) -> None:
        with self.sending, contextlib.suppress(OSError):  # a line that is gone is noticed where it is read
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """What has come, None when the other end is gone. Raises ValueError for what is not ours."""
        try:
            read = self.socket.recv(_LONGEST)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError:
            return None
        if not read:
            return None
        self.heard = time.monotonic()
        *lines, self.unread = (self.unread + read).split(b"\n")
        if len(self.unread) > _LONGEST:
            raise ValueError("a line without an end")
        found = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in found):
            raise ValueError("not an object")
        return found


def process_name(index: int, hosts: Mapping[int, str]) -> str:
    """`process 3 (its-host)`, without the host where it is not known."""
    return f"process {index} ({hosts[index]})" if hosts.get(index) else f"process {index}"


def _names(indices: Iterable[int], hosts: Mapping[int, str]) -> str:
    first, *rest = [process_name(i, hosts) for i in sorted(indices)]
    return ", ".join(
        [first.replace("process", "processes", 1) if rest else first, *(r.removeprefix("process ") for r in rest)]
    )


def gather(place: Place, timeout: float, say: Callable[[str], None] = lambda text: None) -> tuple[list[_Line], dict]:
    """Waits until every process of the run has come. Returns the open lines (of process 0 to all others, of the others
    to process 0) and the host of each process.

    Args:
        timeout: seconds.
        say: is told now and then whom process 0 is waiting for.

    Raises:
        ProcessesMissing: somebody did not come in time, and who; in every process that did come.
        ValueError: two processes claim the same place, or count differently.
    """
    return (_listen if place.index == 0 else _call)(place, timeout, say)


def _listen(place: Place, timeout: float, say: Callable[[str], None]) -> tuple[list[_Line], dict]:
    deadline, told = time.monotonic() + timeout, time.monotonic()
    hosts, lines, strangers = {0: this_host()}, {}, []
    with selectors.DefaultSelector() as selector, _listener(place) as listener:
        selector.register(listener, selectors.EVENT_READ)
        while len(hosts) < place.count and time.monotonic() < deadline:
            for key, _ in selector.select(min(1.0, max(0.0, deadline - time.monotonic()))):
                if key.fileobj is listener:
                    line = _Line(listener.accept()[0])
                    line.socket.setblocking(False)
                    strangers.append(line)
                    selector.register(line.socket, selectors.EVENT_READ, line)
                    continue
                line = key.data
                known = line in lines.values()
                if (refusal := _greet(line, place, hosts, known)) is None:
                    continue
                if refusal == "":
                    lines[line.index] = line
                    strangers.remove(line)
                    continue
                selector.unregister(line.socket)
                line.socket.close()
                if known:  # it came, and went again: it may come back
                    del lines[line.index], hosts[line.index]
                else:
                    strangers.remove(line)
                if refusal != "gone":
                    for other in lines.values():
                        other.send(refused=refusal)
                    raise ValueError(refusal)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                say(f"waiting for {_names(set(range(place.count)) - set(hosts), {})} of {place.count}")
    for line in strangers:
        line.socket.close()
    absent = sorted(set(range(place.count)) - set(hosts))
    verdict = {"hosts": {str(i): host for i, host in hosts.items()}, "absent": absent, "seconds": timeout}
    for line in lines.values():
        line.send(**verdict)
    return _came(place, list(lines.values()), verdict)


def _listener(place: Place) -> socket.socket:
    try:
        return socket.create_server(("", place.port), backlog=min(place.count, 1024))
    except OSError as error:
        raise ValueError(f"process 0 cannot listen at {place.address}: {error.strerror or error}") from error


def _greet(line: _Line, place: Place, hosts: dict[int, str], known: bool) -> str | None:
    """Reads a newcomer's first line. None: not whole yet; "": it is one of us; "gone"; else why the run cannot be."""
    try:
        messages = line.receive()
        if messages is None:
            return "gone"
        if known or not messages:
            return None
        hello = messages[0]
        index, count, host, version = (
            int(hello["index"]),
            int(hello["count"]),
            str(hello["host"]),
            str(hello["version"]),
        )
    except (ValueError, KeyError, TypeError):
        return "gone"  # somebody else's client, or a scanner
    host = "".join(c for c in host if c.isprintable())[:200]
    if version != __version__:
        return f"process {index} ({host}) is of version {version[:40]!r}, process 0 ({hosts[0]}) of {__version__!r}"
    if count != place.count or not 0 < index < count:
        return f"process {index} ({host}) is one of {count}, process 0 ({hosts[0]}) one of {place.count}"
    if index in hosts:
        return f"two processes say that they are process {index}: on {hosts[index]} and on {host}"
    line.index, line.host = index, host
    hosts[index] = host
    return ""


def _call(place: Place, timeout: float, say: Callable[[str], None]) -> tuple[list[_Line], dict]:
    deadline, reason = time.monotonic() + timeout, "no answer"
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection((place.host, place.port), timeout=5)
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
            continue
        line = _Line(connection)
        line.send(index=place.index, count=place.count, host=this_host(), version=__version__)
        # Process 0 may have begun to wait only now.
        connection.settimeout(timeout + 10)
        verdict = _answer(line)
        if verdict is not None:
            if "refused" in verdict:
                raise ValueError(str(verdict["refused"]))
            line.host = verdict["hosts"]["0"]
            return _came(place, [line], verdict)
        connection.close()  # of an earlier try of the run, on its way out
        time.sleep(0.2)
    raise ProcessesMissing(
        f"process 0 of {place.count} cannot be reached at {place.address} within {timeout:.0f} s ({reason}): see "
        "its log"
    )


def _answer(line: _Line) -> dict[str, Any] | None:
    try:
        while not (messages := line.receive()):
            if messages is None:
                return None
        return messages[0] if messages[0].keys() & {"hosts", "refused"} else None
    except ValueError:
        return None


def _came(place: Place, lines: list[_Line], verdict: dict) -> tuple[list[_Line], dict]:
    hosts = {int(i): host for i, host in verdict["hosts"].items()}
    if not verdict["absent"]:
        return lines, hosts
    for line in lines:
        line.socket.close()
    raise ProcessesMissing(
        f"{_names(verdict['absent'], {})} of {place.count} did not come within {verdict['seconds']:.0f} s (here: "
        f"{_names(hosts, hosts)}): start them, or see why they ended"
    )


class Lifeline:
    """Watches the lines while the run goes on, in a thread of its own.

    When a process is lost, every other one says so and exits with EXIT_LOST, or with the lost one's own exit code
    where it gave one, at most `lost_after` seconds (for a dead process: at once) and GRACE seconds later.
    """

    def __init__(self, place: Place, lines: list[_Line], hosts: Mapping[int, str], lost_after: float = 30.0):
        self.place, self.hosts = place, dict(hosts)
        self.lost: str | None = None
        self._lines, self._lost_after = lines, lost_after
        self._told: dict[int, dict[str, Any]] = {}
        self._leaving = threading.Event()
        self._noticed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    def tell(self, **figures: float) -> None:
        """Lets process 0 know; the last ones count."""
        if self.place.index == 0:
            self._told[0] = figures
        else:
            self._lines[0].send(told=figures)

    def told(self) -> dict[int, dict[str, Any]]:
        """In process 0: the last figures of each process that told any."""
        return dict(self._told)

    def explain(self, seconds: float = GRACE) -> str | None:
        """Why a collective failed: the loss that is noticed by then, or None."""
        self._noticed.wait(seconds)
        return self.lost

    def leave(self, code: int) -> None:
        """Says that this process ends, and with what. An unusual end ends the others, too."""
        if not self._leaving.is_set():
            self._leaving.set()
            for line in self._lines:
                line.send(bye=code)

    def _watch(self) -> None:
        beat = self._lost_after / _BEATS
        with selectors.DefaultSelector() as selector:
            for line in self._lines:
                line.heard = time.monotonic()
                line.socket.setblocking(True)
                line.socket.settimeout(self._lost_after)
                selector.register(line.socket, selectors.EVENT_READ, line)
            sent = 0.0
            while not self._leaving.is_set() and not all(line.left for line in self._lines):
                now = time.monotonic()
                if now - sent >= beat:
                    sent = now
                    for line in self._lines:
                        if not line.left:
                            line.send(beat=1)
                for key, _ in selector.select(min(beat, 0.5)):
                    self._read(key.data, selector)
                for line in self._lines:
                    if not line.left and time.monotonic() - line.heard > self._lost_after:
                        self._end(line.index, f"silent for {self._lost_after:.0f} s", None)

    def _read(self, line: _Line, selector: selectors.BaseSelector) -> None:
        try:
            messages = line.receive()
        except ValueError:
            messages = None
        if messages is None and not line.left:
            self._end(line.index, "its process ended without a word", None)
        for message in messages or ():
            if "bye" in message:
                line.left = True
                if message["bye"] not in _QUIET:
                    self._end(line.index, f"it ended with exit code {message['bye']}", message["bye"])
            elif "lost" in message:
                self._end(message["lost"], str(message.get("why")), message.get("code"))
            elif isinstance(message.get("told"), dict):
                self._told[line.index] = message["told"]
        if line.left or messages is None:
            selector.unregister(line.socket)

    def _end(self, index: int, why: str, code: int | None) -> None:
        """Tells the others and the user, and ends this process unless it ends by itself."""
        if self._leaving.is_set() or self.lost is not None:
            return
        self.lost = f"{process_name(index, self.hosts)} is lost: {why}. The run ends in all processes; see its log"
        _say(f"error: {self.lost}")
        self._noticed.set()
        for line in self._lines:
            if line.index != index:
                line.send(lost=index, why=why, code=code)
        if not self._leaving.wait(GRACE):
            leave_at_once(EXIT_LOST if code is None else code)


def _say(text: str) -> None:
    # Past Python's own buffers and locks: jax's abort may be some milliseconds away.
    os.write(sys.stderr.fileno() if hasattr(sys.stderr, "fileno") else 2, (text + "\n").encode(errors="replace"))


def leave_at_once(code: int) -> None:
    """Ends the process without jax's way out, which would wait for the lost one."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
