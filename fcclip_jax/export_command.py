"""`fcclip export`: a model as programs for CPU, CUDA and TPU that run without its code.

Only argparse is imported at the top, so that `fcclip --help` answers at once.
"""

import argparse
import re
import sys

_DESCRIPTION = (
    "Writes a folder that `--checkpoint` takes like a model folder, and that any program with jax can run "
    "(docs/export.md). Each program holds CPU, CUDA and TPU; the device compiles its own on first use."
)


def add_arguments(commands) -> None:
    """Adds `export` to the subparsers of the command line; `run` of the parsed options does it."""
    parser = commands.add_parser(
        "export", help="write programs that run without the model's code", description=_DESCRIPTION
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a converted model")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or an export to make anew")
    parser.add_argument(
        "--min_size", type=int, default=800, help="pixels of the shorter edge in the network (%(default)s)"
    )
    parser.add_argument("--max_size", type=int, default=1333, help="and of the longer edge at most (%(default)s)")
    parser.add_argument(
        "--shapes", metavar="HxW,...", help="only these of the shapes that images are stored in; default: all of them"
    )
    parser.add_argument("--batch_size", type=int, default=1, help="images at a time, fixed (%(default)s)")
    parser.add_argument("--platforms", default="cpu,cuda,tpu", help="default: %(default)s")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--vocabulary", help="bake these words in, written as for `fcclip segment`; default: any words")
    words.add_argument("--labels", metavar="FILE", help="bake in a label file")
    words.add_argument("--dataset", help="bake in a built-in list, such as ade20k_150")
    parser.add_argument("--stuff", help="those of the words that are stuff")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exports. Returns the exit code.

    Raises:
        ValueError, OSError: the input cannot be used; the command line turns them into one line and code 2.
    """
    shapes = None if options.shapes is None else [_shape(text) for text in options.shapes.split(",")]
    platforms = [name.strip() for name in options.platforms.split(",")]
    if options.batch_size < 1 or min(options.min_size, options.max_size) < 1:
        raise ValueError("--batch_size, --min_size and --max_size must be at least 1")

    from fcclip_jax import model_export
    from fcclip_jax.segment_files import read_vocabulary
    from fcclip_jax.segmenter import Segmenter

    vocabulary = rows = None
    if options.vocabulary or options.labels or options.dataset:
        vocabulary = read_vocabulary(options.vocabulary, options.labels, options.dataset, options.stuff)
        rows = Segmenter.from_checkpoint(options.checkpoint).text_rows(vocabulary)
    folder = model_export.export_model(
        options.checkpoint,
        options.output,
        min_size=options.min_size,
        max_size=options.max_size,
        shapes=shapes,
        batch_size=options.batch_size,
        platforms=platforms,
        vocabulary=vocabulary,
        rows=rows,
        progress=lambda name: print(name, file=sys.stderr),
    )
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.0f} MB. Next: fcclip segment photo.jpg --checkpoint {options.output} ...")
    return 0


def _shape(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d+)x(\d+)\s*", text)
    if not found:
        raise ValueError(f"--shapes takes HxW, such as 800x1216, parted by commas, not {text!r}")
    return int(found[1]), int(found[2])
