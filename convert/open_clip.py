"""open_clip's weights to a model folder that holds the frozen towers alone, to start a training from:

python -m convert.open_clip --model convnext_large_d_320 --input open_clip_model.safetensors --output towers_large
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from convert import detection
from convert.checkpoint_files import open_checkpoint
from convert.command_line import guarded, parser, script
from convert.mapping import Source, without_text_module
from convert.model_folders import check_output, write_model_folder
from convert.name_maps import OPEN_CLIP_IGNORED, OPEN_CLIP_ROWS
from convert.stored_arrays import CheckpointError
from fcclip_jax.models.fcclip import VARIANTS
from fcclip_jax.models.weights import ModelCard, parameter_shapes


def convert(model: str, source: str | Path, output: str | Path) -> str:
    """Writes the model folder `output` from open_clip's weights of the variant `model`.

    Returns:
        one line about what was written.

    Raises:
        CheckpointError, WeightsError, OSError: nothing is left behind.
    """
    started = time.monotonic()
    check_output(output, source)
    with open_checkpoint(source) as checkpoint:
        names = without_text_module(checkpoint, "")
        try:
            detection.require_towers(names, "")
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
        config = VARIANTS[model]
        shapes = parameter_shapes(config, towers_only=True)
        arrays = Source(checkpoint, OPEN_CLIP_ROWS, OPEN_CLIP_IGNORED, shapes, names=names)
        card = ModelCard(config, towers_only=True)
        return write_model_folder(output, card, arrays, checkpoint, OPEN_CLIP_ROWS, started=started)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser("convert.open_clip", __doc__)
    options.add_argument("--model", required=True, choices=VARIANTS, help="open_clip's name of the model")
    options.add_argument("--input", required=True, metavar="FILE", help="its weights: .safetensors, .bin or .pt")
    options.add_argument(
        "--output", required=True, metavar="DIR", help="model folder to write; an older one is replaced"
    )
    args = options.parse_args(argv)
    return guarded(_command, args)


def _command(args: argparse.Namespace) -> str:
    return convert(args.model, args.input, args.output)


if __name__ == "__main__":
    script(main)
