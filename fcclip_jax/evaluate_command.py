"""`fcclip evaluate`: a benchmark's configuration and a model in; the paper's figures, a report and predictions out.

Only argparse is imported at the top, so that `fcclip --help` answers at once.
"""

import argparse
import sys
from pathlib import Path

from fcclip_jax import run_options

EXIT_SKIPPED = 1

_DESCRIPTION = (
    "Evaluates a model on a benchmark, or goes on where the output folder stands. Written to --output: figures.json, "
    "report.md with the paper's row beside one's own, and what else is asked for. Any key of the configuration can be "
    "overridden: --config.root=/data --config.classifier in_vocabulary. Exit codes: 0; 1 some images were passed over; "
    "2 the configuration, the model or the data cannot be used; 130 interrupted, the same command goes on."
)


def add_arguments(commands) -> None:
    """Adds `evaluate` to the subparsers of the command line; `run` of the parsed options does it."""
    evaluate = commands.add_parser(
        "evaluate", help="figures of a model on a benchmark", description=_DESCRIPTION, allow_abbrev=False
    )
    evaluate.add_argument("--checkpoint", required=True, metavar="DIR", help="a converted or trained model")
    evaluate.add_argument("--output", metavar="DIR", help="default: evaluation/ and the configuration's name")
    evaluate.add_argument("--labels", metavar="FILE", help="a label file to name the benchmark's classes with")
    evaluate.add_argument("--predictions", action="store_true", help="write them in the official formats")
    evaluate.add_argument("--worst", type=int, metavar="N", help="pictures of the N images with the lowest figures")
    evaluate.add_argument("--skip_bad", action="store_true", help="pass over images that cannot be used, and list them")
    run_options.add_config_arguments(evaluate)
    run_options.add_process_arguments(evaluate)
    evaluate.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluates. Returns the exit code.

    Raises:
        ValueError, OSError: the input cannot be used; the command line turns them into one line and code 2.
    """
    return run_options.run_together(options, lambda lifeline: _evaluate(options), common=(0, EXIT_SKIPPED))


def _evaluate(options: argparse.Namespace) -> int:
    run_options.set_up_logging()

    try:
        from fcclip_jax import benchmark_run
        from fcclip_jax.evaluation_configuration import load_evaluation_config
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: pip install 'fcclip_jax[evaluate]'") from None
    from fcclip_jax.evaluation.report import comparison

    overrides = [*_as_overrides(options), *options.overrides]
    config = load_evaluation_config(options.config, overrides)
    output = Path(options.output or Path("evaluation") / Path(options.config).stem)
    try:
        report = benchmark_run.run_benchmark(config, options.checkpoint, output)
    except benchmark_run.OtherProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if report is None:
        return 0
    print(comparison(report))
    print(f"{report.images} images, {len(report.skipped)} passed over; figures and report in {output}")
    return EXIT_SKIPPED if report.skipped else 0


def _as_overrides(options: argparse.Namespace) -> list[tuple[str, str]]:
    found = [] if options.labels is None else [("labels", options.labels)]
    found += [] if options.worst is None else [("worst", str(options.worst))]
    return found + [(name, "true") for name in ("predictions", "skip_bad") if getattr(options, name)]
