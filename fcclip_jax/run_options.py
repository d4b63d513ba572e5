"""What the commands that run a configuration have in common: overrides, several processes, the log.

Only argparse is imported at the top, so that `fcclip --help` answers at once.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

_PREFIX = "--config."
_DISTRIBUTED = (
    "one of several processes, each on its own devices: found by jax on TPU pods, SLURM and Open MPI, or given by "
    "JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID"
)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--config`, its overrides (`options.overrides`, pairs of key and value) and `--distributed`."""
    parser.add_argument("--config", required=True, metavar="FILE", help="a configuration, such as configs/tiny.py")
    parser.add_argument("--config.KEY", metavar="VALUE", dest="unused", help="overrides one key; any number of these")
    parser.add_argument("--distributed", action="store_true", help=_DISTRIBUTED)
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


def join_processes() -> None:
    """Makes this process one of several. Must come before jax looks for devices."""
    import jax

    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    if any(given[1:]) and not all(given):
        missing = ", ".join(name for name, value in zip(names, given, strict=True) if not value)
        raise ValueError(f"--distributed: {missing} is not set")
    try:
        if all(given):
            jax.distributed.initialize(given[0], int(given[1]), int(given[2]))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--distributed: {error} ({_DISTRIBUTED})") from error


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
    for name in ("absl", "jax", "orbax", "grain", "etils", "tensorstore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if jax.process_index() != 0:
        logging.getLogger("fcclip_jax").setLevel(logging.WARNING)
