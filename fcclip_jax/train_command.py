"""`fcclip train`: a configuration file, a work folder, overrides; logging, exit codes.

Only argparse is imported at the top, so that `fcclip --help` answers at once.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from fcclip_jax import run_options

if TYPE_CHECKING:
    from fcclip_jax.training.lifeline import Lifeline

EXIT_FAILED = 1
EXIT_NOT_FINITE = 3

_DESCRIPTION = (
    "Trains, or goes on where the work folder stands. Any key of the configuration can be overridden: "
    "--config.batch_size=32 --config.mesh.fsdp 4. Exit codes: 0 done; 75 told to stop (SIGTERM, Ctrl-C) and saved, the "
    "same command resumes; 69 another process of the run is lost, the same; 2 the configuration, the data or the work "
    "folder cannot be used; 3 a loss is not finite; 1 anything else, such as a full disk."
)


def add_arguments(commands) -> None:
    """Adds `train` to the subparsers of the command line; `run` of the parsed options does it."""
    train = commands.add_parser("train", help="train the mask generator", description=_DESCRIPTION, allow_abbrev=False)
    train.add_argument("--workdir", required=True, metavar="DIR", help="checkpoints, metrics, and the model at the end")
    train.add_argument(
        "--compilation_cache",
        metavar="DIR",
        help="keeps compiled programs; hosts that share it (gs:// too) compile once (default: "
        "JAX_COMPILATION_CACHE_DIR, else the user's cache folder)",
    )
    run_options.add_config_arguments(train)
    run_options.add_process_arguments(train)
    train.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains. Returns the exit code.

    Raises:
        ValueError, OSError: the input cannot be used; the command line turns them into one line and code 2.
    """
    return run_options.run_together(options, lambda lifeline: _train(options, lifeline))


def _train(options: argparse.Namespace, lifeline: "Lifeline | None") -> int:
    import jax

    from fcclip_jax.cache_folder import cache_directory

    run_options.set_up_logging()
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
