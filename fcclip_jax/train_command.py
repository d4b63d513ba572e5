"""`fcclip train`: a configuration file, a work folder, overrides; logging, exit codes.

Only argparse is imported at the top, so that `fcclip --help` answers at once.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_FAILED = 1
EXIT_NOT_FINITE = 3

_PREFIX = "--config."
_DESCRIPTION = (
    "Trains, or goes on where the work folder stands. Any key of the configuration can be overridden: "
    "--config.batch_size=32 --config.mesh.fsdp 4. Exit codes: 0 done; 75 told to stop (SIGTERM, Ctrl-C) and saved, the "
    "same command resumes; 2 the configuration, the data or the work folder cannot be used; 3 a loss is not finite; "
    "1 anything else, such as a full disk."
)
_DISTRIBUTED = (
    "one of several processes, each on its own devices: found by jax on TPU pods, SLURM and Open MPI, or given by "
    "JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID"
)


def add_arguments(commands) -> None:
    """Adds `train` to the subparsers of the command line; `run` of the parsed options does it."""
    train = commands.add_parser("train", help="train the mask generator", description=_DESCRIPTION, allow_abbrev=False)
    train.add_argument("--config", required=True, metavar="FILE", help="a configuration, such as configs/tiny.py")
    train.add_argument("--workdir", required=True, metavar="DIR", help="checkpoints, metrics, and the model at the end")
    train.add_argument("--config.KEY", metavar="VALUE", dest="unused", help="overrides one key; any number of these")
    train.add_argument("--distributed", action="store_true", help=_DISTRIBUTED)
    train.set_defaults(run=run)
    plain = train.parse_known_args

    def with_overrides(arguments=None, namespace=None):
        rest, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
        options, unknown = plain(rest, namespace)
        lonely = [argument for argument in rest if argument.startswith(_PREFIX)]
        if lonely:
            train.error(f"{lonely[0]} needs a value")
        options.overrides = overrides
        return options, unknown

    # The keys are known only once the configuration is read, so argparse never sees them.
    train.parse_known_args = with_overrides


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


def run(options: argparse.Namespace) -> int:
    """Trains. Returns the exit code.

    Raises:
        ValueError, OSError: the input cannot be used; the command line turns them into one line and code 2.
    """
    import jax

    from fcclip_jax.segmenter import cache_directory

    if options.distributed:
        _join()
    _set_up_logging()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))

    from fcclip_jax import experiment
    from fcclip_jax.training.checkpoint import CheckpointError
    from fcclip_jax.training.trainer import TrainingStopped

    try:
        config = experiment.load_config(options.config, options.overrides)
        return experiment.run_training(config, Path(options.workdir))
    except TrainingStopped as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NOT_FINITE
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED


def _join() -> None:
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


def _set_up_logging() -> None:
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
    for name in ("jax", "grain", "etils", "tensorstore"):
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
