"""`fcclip train`: a configuration file, a work folder, overrides; logging, exit codes.

Only argparse is imported at the top, so that `fcclip --help` answers at once.
"""

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from fcclip_jax.override_flags import accept_overrides

if TYPE_CHECKING:
    from fcclip_jax.training.lifeline import Lifeline

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NOT_FINITE = 3
EXIT_PREEMPTED = 75

_DESCRIPTION = (
    "Trains, or goes on where the work folder stands. Any key of the configuration can be overridden: "
    "--config.batch_size=32 --config.mesh.fsdp 4. Exit codes: 0 done; 75 told to stop (SIGTERM, Ctrl-C) and saved, the "
    "same command resumes; 69 another process of the run is lost, the same; 2 the configuration, the data or the work "
    "folder cannot be used; 3 a loss is not finite; 1 anything else, such as a full disk."
)
_DISTRIBUTED = (
    "one of several processes, each on its own devices, as TPU slices, SLURM, Kubernetes and Open MPI say, or "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or the three flags"
)


def add_arguments(commands) -> None:
    """Adds `train` to the subparsers of the command line; `run` of the parsed options does it."""
    train = commands.add_parser("train", help="train the mask generator", description=_DESCRIPTION, allow_abbrev=False)
    train.add_argument("--config", required=True, metavar="FILE", help="a configuration, such as configs/tiny.py")
    train.add_argument("--workdir", required=True, metavar="DIR", help="checkpoints, metrics, and the model at the end")
    train.add_argument("--config.KEY", metavar="VALUE", dest="unused", help="overrides one key; any number of these")
    several = train.add_argument_group("several processes (docs/launch.md)")
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
    train.add_argument(
        "--compilation_cache",
        metavar="DIR",
        help="keeps compiled programs; hosts that share it (gs:// too) compile once (default: "
        "JAX_COMPILATION_CACHE_DIR, else the user's cache folder)",
    )
    accept_overrides(train)
    train.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains. Returns the exit code.

    Raises:
        ValueError, OSError: the input cannot be used; the command line turns them into one line and code 2.
    """
    from fcclip_jax.training import distributed

    given = (options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and all(value is None for value in given):
        return _train(options, None)
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
    return _among_others(options, lifeline)


def _among_others(options: argparse.Namespace, lifeline: "Lifeline") -> int:
    """Trains as one of several: an end that is not the common one is told to the others, and waits for nobody."""
    import atexit

    from fcclip_jax.training import distributed

    code = EXIT_FAILED
    try:
        code = _train(options, lifeline)
    except (ValueError, OSError):
        code = EXIT_BAD_INPUT
        raise
    except RuntimeError:
        if lifeline.explain() is None:
            raise
    finally:
        if code == EXIT_FAILED and lifeline.explain() is not None:
            code = distributed.EXIT_LOST  # a collective or a save that failed because somebody is gone
        lifeline.leave(code)
        if code not in (0, EXIT_PREEMPTED):
            # Before jax's own way out, which waits for the others; after what Python has to print.
            atexit.register(distributed.leave_at_once, code)
    return code


def _train(options: argparse.Namespace, lifeline: "Lifeline | None") -> int:
    import jax

    from fcclip_jax.segmenter import cache_directory

    _set_up_logging()
    if options.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", options.compilation_cache)
    elif jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))

    from fcclip_jax import experiment
    from fcclip_jax.training.checkpoint import CheckpointError
    from fcclip_jax.training.trainer import TrainingStopped

    try:
        config = experiment.load_config(options.config, options.overrides)
        return experiment.run_training(config, options.workdir, lifeline)
    except TrainingStopped as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NOT_FINITE
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


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
