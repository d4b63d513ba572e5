"""The command line: `fcclip segment IMAGE... --vocabulary "cat; sofa, couch"` and `fcclip demo`.

Only argparse is imported at the top, so that `fcclip --help` answers at once.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fcclip_jax import (
    evaluate_command,
    export_command,
    plan_command,
    prepare_command,
    score_files,
    supervise_command,
    train_command,
)
from fcclip_jax.version import __version__

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0, 1 where some images failed, 2 where the input cannot be used (then
    stderr has one line, `error: ...`), 130 where it was interrupted.

    Raises:
        SystemExit: after `--help` and `--version` (0), and where the command line is wrong (2).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end the run
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return EXIT_BAD_INPUT
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted: the files that are written are complete", file=sys.stderr)
        return _leave_at_once(EXIT_INTERRUPTED)
    except BrokenPipeError:  # who reads our output has gone; neither may Python write to it when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _leave_at_once(code: int) -> NoReturn:
    """Ends the process without Python's own way out, on which it crashes where jax is still compiling."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    head, *rest = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return f"{head} {'; '.join(rest)}".strip()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"error: {message} (see `{self.prog} --help`)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fcclip", description="Open-vocabulary segmentation: type words, see masks.")
    parser.add_argument("--version", action="version", version=f"fcclip_jax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_segment(commands)
    _add_demo(commands)
    train_command.add_arguments(commands)
    supervise_command.add_arguments(commands)
    plan_command.add_arguments(commands)
    evaluate_command.add_arguments(commands)
    export_command.add_arguments(commands)
    score_files.add_arguments(commands)
    prepare_command.add_arguments(commands)
    return parser


def _add_segment(commands) -> None:
    segment = commands.add_parser("segment", help="segment photos with any words", description=_SEGMENT)
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, or globs in quotes")
    words = segment.add_mutually_exclusive_group(required=True)
    words.add_argument(
        "--vocabulary",
        help='words: "cat; sofa, couch" (`;` parts classes, `,` synonyms; without any `;`, `,` parts classes)',
    )
    words.add_argument("--labels", metavar="FILE", help="a label file, lines of `id:name,synonym,...`")
    words.add_argument("--dataset", help="a built-in list, such as coco_panoptic or ade20k_150")
    segment.add_argument("--stuff", help='those of the words that are stuff, not countable: "sky, road"')
    segment.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="a converted model, see `python -m convert.fcclip --help` (default: the small one that comes with the "
        "package, for pictures like the demo's)",
    )
    segment.add_argument("--output", metavar="DIR", default="fcclip_output", help="default: %(default)s")
    segment.add_argument("--task", default="panoptic,semantic,instance", help="some of these; default: %(default)s")
    segment.add_argument(
        "--min_size",
        type=_positive,
        help="pixels of the shorter edge in the network (800; 256 for the model of the package)",
    )
    segment.add_argument("--max_size", type=_positive, help="and of the longer edge at most, which wins (1333; 512)")
    segment.add_argument(
        "--overlap_threshold",
        type=_share,
        default=0.8,
        help="drop a segment that keeps less than this share of its mask (%(default)s)",
    )
    segment.add_argument(
        "--object_threshold", type=_share, default=0.0, help="least class probability of a segment (%(default)s)"
    )
    segment.add_argument("--batch_size", type=_positive, default=1, help="photos at a time (%(default)s)")
    segment.set_defaults(run=_run_segment)


_SEGMENT = (
    "Writes for each photo.jpg: photo.overlay.png, photo.panoptic.png (id = R + 256 G + 65536 B), "
    "photo.semantic.png (class index) and photo.json (segments, instances), as asked for by --task. Exit code: 0; 1 "
    "where some photos failed, the others are done; 2 where nothing could be done."
)


def _add_demo(commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="segment the scenes that come with the package",
        description="Scenes of emoji, with things that no mask was ever trained on, and one in a style that nothing "
        "was trained on; what is found is held against the truth.",
    )
    demo.add_argument("--vocabulary", help='words to look for: "fox; hot dog; sand" (default: all names of that world)')
    demo.add_argument("--output", metavar="DIR", default="demo_output", help="default: %(default)s")
    demo.add_argument("--checkpoint", metavar="DIR", help="another model of the small world than the package's")
    demo.set_defaults(run=_run_demo)


def _run_segment(options: argparse.Namespace) -> int:
    from fcclip_jax import segment_files

    return segment_files.run(
        options.images,
        vocabulary=segment_files.read_vocabulary(options.vocabulary, options.labels, options.dataset, options.stuff),
        checkpoint=options.checkpoint,
        output=options.output,
        tasks=segment_files.parse_tasks(options.task),
        min_size=options.min_size,
        max_size=options.max_size,
        overlap_threshold=options.overlap_threshold,
        object_threshold=options.object_threshold,
        batch_size=options.batch_size,
    )


def _run_demo(options: argparse.Namespace) -> int:
    from fcclip_jax import emoji_demo

    return emoji_demo.run(options.output, words=options.vocabulary, checkpoint=options.checkpoint)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
