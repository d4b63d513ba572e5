"""A released FC-CLIP checkpoint to a model folder:

python -m convert.fcclip --input fcclip_cocopan.pth --output fcclip_large
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convert import detection
from convert.checkpoint_files import Checkpoint, open_checkpoint
from convert.command_line import guarded, parser, script
from convert.mapping import Source, without_text_module
from convert.model_folders import check_output, write_model_folder
from convert.name_maps import EMPTY_WEIGHT, FCCLIP_IGNORED, FCCLIP_PREFIX, FCCLIP_ROWS
from convert.stored_arrays import CheckpointError
from fcclip_jax.models.fcclip import VARIANTS, FCCLIPConfig
from fcclip_jax.models.weights import ModelCard, parameter_shapes
from fcclip_jax.vocabulary.vocabulary import Vocabulary

DEFAULT_LABELS = "coco_panoptic"


def convert(
    source: str | Path,
    output: str | Path,
    *,
    train_labels: str | Path | None = None,
    model: str | None = None,
    config_file: str | Path | None = None,
) -> str:
    """Writes the model folder `output` from an FC-CLIP checkpoint.

    Args:
        train_labels: label file of the classes it was trained on; the built-in COCO panoptic list without.
        model: name of the variant; found from the shapes without.
        config_file: JSON of the whole configuration, where nothing is to be found from shapes: that of a `config.json`.

    Returns:
        one line about what was written.

    Raises:
        CheckpointError, WeightsError, OSError: nothing is left behind.
    """
    started = time.monotonic()
    check_output(output, source)
    with open_checkpoint(source) as checkpoint:
        names = without_text_module(checkpoint, FCCLIP_PREFIX)
        config = _config(checkpoint, names, model, config_file)
        train_classes, count = _train_classes(train_labels)
        arrays = Source(
            checkpoint,
            FCCLIP_ROWS,
            FCCLIP_IGNORED,
            parameter_shapes(config),
            names=names,
            apart=[EMPTY_WEIGHT],
        )
        no_object_weight = _no_object_weight(checkpoint, count)
        card = ModelCard(config, train_classes=train_classes, no_object_weight=no_object_weight)
        return write_model_folder(output, card, arrays, checkpoint, FCCLIP_ROWS, started=started, consumed=1)


def _config(
    checkpoint: Checkpoint, names: dict[str, str], model: str | None, config_file: str | Path | None
) -> FCCLIPConfig:
    if config_file is not None:
        return _read_config(Path(config_file))
    shapes = {name: checkpoint.arrays[stored].shape for name, stored in names.items()}
    try:
        base = VARIANTS[model or detection.towers(shapes, FCCLIP_PREFIX)]
        return detection.with_decoder_sizes(base, shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


def _read_config(path: Path) -> FCCLIPConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return FCCLIPConfig.from_dict(values.get("config", values))
    except OSError:
        raise
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a configuration ({error}): take the config.json of a model folder"
        ) from None


def _train_classes(path: str | Path | None) -> tuple[dict, int]:
    try:
        vocabulary = Vocabulary.builtin(DEFAULT_LABELS) if path is None else Vocabulary.from_file(path)
    except ValueError as error:
        raise CheckpointError(f"--train_labels: {error}") from None
    return vocabulary.to_dict(), vocabulary.num_classes


def _no_object_weight(checkpoint: Checkpoint, classes: int) -> float:
    """The loss weight of "no object". The array it stands in also tells the number of training classes."""
    if EMPTY_WEIGHT not in checkpoint.arrays:
        raise CheckpointError(f"{checkpoint.path}: {EMPTY_WEIGHT} is missing, which an FC-CLIP checkpoint has")
    shape = checkpoint.arrays[EMPTY_WEIGHT].shape
    if shape != (classes + 1,):
        raise CheckpointError(
            f"{checkpoint.path}: trained on {shape[0] - 1 if len(shape) == 1 else shape} classes ({EMPTY_WEIGHT}), "
            f"but the label list has {classes}: give the list it was trained on with --train_labels"
        )
    values = np.asarray(checkpoint.read(EMPTY_WEIGHT), np.float32)
    if not (values[:-1] == 1).all() or not 0 <= values[-1] < np.inf:
        raise CheckpointError(
            f"{checkpoint.path}: {EMPTY_WEIGHT} should be 1 for all classes and one number for no object; "
            "classes of different weights cannot be kept"
        )
    return float(values[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser("convert.fcclip", __doc__)
    options.add_argument("--input", required=True, metavar="FILE", help="the checkpoint: .pth or .safetensors")
    options.add_argument(
        "--output", required=True, metavar="DIR", help="model folder to write; an older one is replaced"
    )
    options.add_argument(
        "--train_labels",
        metavar="FILE",
        help="label file of the classes it was trained on (default: the built-in COCO panoptic list of 133)",
    )
    options.add_argument("--model", choices=VARIANTS, help="the model, where the shapes do not tell it")
    options.add_argument(
        "--config", metavar="FILE.json", help="the whole configuration, for a model of sizes of your own"
    )
    args = options.parse_args(argv)
    return guarded(_command, args)


def _command(args: argparse.Namespace) -> str:
    return convert(args.input, args.output, train_labels=args.train_labels, model=args.model, config_file=args.config)


if __name__ == "__main__":
    script(main)
