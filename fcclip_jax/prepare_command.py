"""`fcclip prepare DATASET`: derived annotations, under the names that the scripts of FC-CLIP give them.

Only argparse is imported at the top, so that `fcclip --help` answers at once.
"""

import argparse
import os
from pathlib import Path

EXIT_SKIPPED = 1
EMOJI_SCENES = "emoji_scenes"
_DESCRIPTION = (
    "Makes what a benchmark needs and its download does not hold: COCO's semantic maps, ADE20K's panoptic maps, and so "
    "on (docs/datasets.md). Run it again after an interruption: what is finished is kept. Exit codes: 0 done; 1 done, "
    "but for bad files that were skipped; 2 nothing could be done, or a bad file."
)


def add_arguments(commands) -> None:
    """Adds `prepare` to the subparsers of the command line; its namespace has `run(options) -> exit code`."""
    prepare = commands.add_parser("prepare", help="make a benchmark's derived annotations", description=_DESCRIPTION)
    prepare.add_argument(
        "dataset", metavar="DATASET", help="such as coco_panoptic, ade20k_150, cityscapes; or emoji_scenes"
    )
    prepare.add_argument(
        "--root", metavar="DIR", help="the folder of all data sets (default: $DETECTRON2_DATASETS, else ./datasets)"
    )
    prepare.add_argument("--split", choices=("val", "train"), help="only this one (default: val, and train if there)")
    prepare.add_argument("--skip_bad", action="store_true", help="pass over files that cannot be used, and list them")
    prepare.add_argument("--workers", type=_positive, help="processes (default: as many as there are processors)")
    prepare.add_argument(
        "--tfds", metavar="DIR", help="then also write the prepared benchmark there as array_record, for tfds"
    )
    prepare.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def default_root() -> Path:
    """`$DETECTRON2_DATASETS`, else `./datasets`, as in detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")


def run(options: argparse.Namespace) -> int:
    """Prepares. Returns 0, or 1 when files were skipped.

    Raises:
        ValueError, OSError: the input cannot be used; the command line turns them into one line and code 2.
    """
    from fcclip_jax.data.benchmarks import BENCHMARKS

    root = Path(options.root) if options.root else default_root()
    if options.dataset == EMOJI_SCENES:
        from fcclip_jax.world.prepare import prepare_emoji_scenes

        prepare_emoji_scenes(root / EMOJI_SCENES, progress=print)
        return 0
    if options.dataset not in BENCHMARKS:
        raise ValueError(f"no data set {options.dataset!r}; there are: {', '.join((*BENCHMARKS, EMOJI_SCENES))}")
    if not root.is_dir():
        raise ValueError(f"no folder {root}; give the folder of all data sets as --root, or set DETECTRON2_DATASETS")
    splits = _splits(options.dataset, root, options.split)
    bad = [message for split in splits for message in _derive(options, root, split)]
    if options.tfds:
        bad += _write_records(options, root, splits)
    for message in bad:
        print(f"skipped: {message}")
    return EXIT_SKIPPED if bad else 0


def _splits(dataset: str, root: Path, asked: str | None) -> list[str]:
    """The one that is asked for, else val, and train where its files are."""
    from fcclip_jax.data.benchmarks import BENCHMARKS, fill
    from fcclip_jax.prepare.datasets import PREPARATIONS

    if asked:
        return [asked]
    source = PREPARATIONS[dataset].source if dataset in PREPARATIONS else BENCHMARKS[dataset].images.partition("/{s")[0]
    train = root / fill(source, "train")
    if train.exists():
        return ["val", "train"]
    print(f"{dataset}: the training split is passed over, there is no {train}")
    return ["val"]


def _derive(options: argparse.Namespace, root: Path, split: str) -> list[str]:
    """Makes what is derived, and returns the messages of the bad files."""
    from fcclip_jax.data.benchmarks import BENCHMARKS, open_benchmark
    from fcclip_jax.prepare.conversion import run as run_job
    from fcclip_jax.prepare.datasets import PREPARATIONS

    if options.dataset not in PREPARATIONS:
        count = len(open_benchmark(options.dataset, root, split=split))
        print(f"{options.dataset}, {split}: {count} images, nothing has to be made")
        return []
    bad: list[str] = []
    for job in PREPARATIONS[options.dataset].jobs(root, split):
        outcome = run_job(job, workers=options.workers, skip_bad=options.skip_bad)
        print(f"{job.title}: {outcome.made} made, {outcome.kept} there already, {len(outcome.bad)} bad")
        bad += outcome.bad
    expected = BENCHMARKS[options.dataset].expected_images
    if split == "val" and len(job.conversions) != expected:
        print(f"note: {len(job.conversions)} images; the whole of {options.dataset} has {expected}")
    return bad


def _write_records(options: argparse.Namespace, root: Path, splits: list[str]) -> list[str]:
    from fcclip_jax.data.benchmarks import open_benchmark

    try:
        from fcclip_jax.data.tfds_evaluation import write_records
    except ImportError as error:
        raise ValueError(f"--tfds needs {error.name}: pip install 'fcclip_jax[train]'") from None
    sources = {split: open_benchmark(options.dataset, root, split=split) for split in splits}
    folder, bad = write_records(options.tfds, options.dataset, sources, skip_bad=options.skip_bad)
    print(f"array_record files in {folder}")
    return bad
