"""What the commands that run a configuration have in common: overrides, several processes, the log.

Only argparse is imported at the top, so that `fcclip --help` answers at once.
"""

import argparse
import atexit
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcclip_jax.training.lifeline import Lifeline

_PREFIX = "--config."
_FAILED, _BAD_INPUT = 1, 2
_DISTRIBUTED = (
    "one of several processes, each on its own devices, as TPU slices, SLURM, Kubernetes and Open MPI say, or "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or the three flags"
)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` and its overrides (`options.overrides`, pairs of key and value)."""
    parser.add_argument("--config", required=True, metavar="FILE", help="a configuration, such as configs/tiny.py")
    parser.add_argument("--config.KEY", metavar="VALUE", dest="unused", help="overrides one key; any number of these")
    plain = parser.parse_known_args

    def with_overrides(arguments=None, namespace=None):
        rest, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
        options, unknown = plain(rest, namespace)
        lonely = [argument for argument in rest if argument.startswith(_PREFIX)]
        if lonely:
            parser.error(f"{lonely[0]} needs a value")
        options.overrides = overrides
        return options, unknown

    # The keys are known only once the configuration is read, so argparse never sees them.
    parser.parse_known_args = with_overrides


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes `--config.KEY=VALUE` and `--config.KEY VALUE` out of a command line: (the rest, the pairs in order).

    One without a value stays with the rest.
    """
    rest, overrides, waiting = [], [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        key, equals, value = argument.removeprefix(_PREFIX).partition("=")
        if not argument.startswith(_PREFIX) or not (equals or waiting):
            rest.append(argument)
        else:
            overrides.append((key, value if equals else waiting.pop(0)))
    return rest, overrides


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says which of how many processes this is, for `run_together`."""
    several = parser.add_argument_group("several processes (docs/launch.md)")
    several.add_argument("--distributed", action="store_true", help=_DISTRIBUTED)
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens; a free port of its host")
    several.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
    several.add_argument(
        "--wait",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="for all to come; then it says who did not (%(default)g)",
    )
    several.add_argument(
        "--lost_after",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="of silence after which a process counts as lost and the run ends (%(default)g); a death is seen at once",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def run_together(
    options: argparse.Namespace, work: Callable[["Lifeline | None"], int], *, common: Sequence[int] = (0, 75)
) -> int:
    """Joins the other processes where the options say so, and does the work. Must come before jax looks for devices.

    An end that is not a common one is told to the others, and waits for nobody.

    Args:
        work: is given the line to the others, None where this process is alone, and returns the exit code.
        common: exit codes at which all end together, or that concern this process alone.

    Raises:
        ValueError, OSError: as `work` does, or because the options or the environment make no sense.
    """
    from fcclip_jax.training import distributed

    given = (options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and all(value is None for value in given):
        return work(None)
    try:
        lifeline = distributed.join(
            coordinator=options.coordinator,
            num_processes=options.num_processes,
            process_id=options.process_id,
            wait=options.wait,
            lost_after=options.lost_after,
        )
    except distributed.ProcessesMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return distributed.EXIT_LOST
    code = _FAILED
    try:
        code = work(lifeline)
    except (ValueError, OSError):
        code = _BAD_INPUT
        raise
    except RuntimeError:
        if lifeline.explain() is None:
            raise
    finally:
        if code == _FAILED and code not in common and lifeline.explain() is not None:
            code = distributed.EXIT_LOST  # a collective or a save that failed because somebody is gone
        lifeline.leave(0 if code in common else code)
        if code not in common:
            # Before jax's own way out, which waits for the others; after what Python has to print.
            atexit.register(distributed.leave_at_once, code)
    return code


def set_up_logging() -> None:
    """One line format for all; what libraries tell of their inner life only where it is a warning."""
    import jax

    process = f" [{jax.process_index()}]" if jax.process_count() > 1 else ""
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s{process} %(levelname).1s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for name in ("jax", "grain", "etils", "tensorstore", "gcsfs", "fsspec"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A write that fails is raised, and becomes a line of ours. Until then orbax and tensorstore show each tensor's part
    # in it, with tracebacks, and then what their threads make of the end: a thousand lines for one full disk.
    for name in ("absl", "orbax", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _without_closed_loops
    if jax.process_index() != 0:
        logging.getLogger("fcclip_jax").setLevel(logging.WARNING)


def _without_closed_loops(unraisable) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
