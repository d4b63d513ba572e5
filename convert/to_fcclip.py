"""A model folder to a checkpoint that the original FC-CLIP reads:

    python -m convert.to_fcclip --checkpoint fcclip_large --output fcclip.safetensors

`.pth` is written as torch.save does, `{"model": state dict}`, which is what FC-CLIP's `MODEL.WEIGHTS` takes.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from convert.checkpoint_files import open_checkpoint
from convert.command_line import guarded, parser, progress, script
from convert.mapping import plan
from convert.name_maps import BATCH_COUNTER, EMPTY_WEIGHT, FCCLIP_ROWS, LAST_OF_BATCH_NORM
from convert.stored_arrays import CheckpointError
from convert.torch_writer import write_torch
from fcclip_jax.models import weights
from fcclip_jax.models.weights import ModelCard
from fcclip_jax.models.weights_file import write_safetensors

# Before this name the loss weights stand in FC-CLIP's order.
_AFTER_EMPTY_WEIGHT = "void_embedding.weight"


def convert(folder: str | Path, output: str | Path) -> str:
    """Writes an FC-CLIP checkpoint, float32, in FC-CLIP's order, from a model folder.

    Returns:
        one line about what was written.

    Raises:
        CheckpointError, WeightsError, OSError: nothing is left behind.
    """
    output = Path(output)
    _check_output(output)
    card = weights.read_card(folder)
    if card.towers_only:
        raise CheckpointError(f"{folder} holds only CLIP's towers: FC-CLIP takes those from open_clip itself")
    empty_weight = _empty_weight(folder, card)
    shapes = weights.parameter_shapes(card.config)
    with open_checkpoint(Path(folder) / weights.WEIGHTS_FILE) as ours:
        weights.check_shapes(ours.path, ours.shapes, shapes)
        steps = {step.source: step for step in plan(FCCLIP_ROWS, shapes)}

        def read(name: str) -> np.ndarray:
            if name == EMPTY_WEIGHT:
                return empty_weight
            if name.endswith(BATCH_COUNTER):
                return np.zeros((), np.int64)
            step = steps[name]
            return step.transform.to_theirs(*(np.asarray(ours.read(t), np.float32) for t in step.targets))

        their_shapes: dict[str, tuple[int, ...]] = {}
        for name, step in steps.items():
            if name == _AFTER_EMPTY_WEIGHT:
                their_shapes[EMPTY_WEIGHT] = empty_weight.shape
            their_shapes[name] = step.shapes[0]
            if name.endswith(LAST_OF_BATCH_NORM):
                their_shapes[name.removesuffix(LAST_OF_BATCH_NORM) + BATCH_COUNTER] = ()
        _write(output, their_shapes, read)
    return f"{output}: {len(their_shapes)} arrays of {card.config.name}"


def _empty_weight(folder: str | Path, card: ModelCard) -> np.ndarray:
    """float32 [K+1]: 1 for each training class, then the weight of "no object"."""
    classes = (card.train_classes or {}).get("classes")
    if not isinstance(classes, list) or not classes:
        raise CheckpointError(
            f"{folder} does not say which classes it was trained on, and FC-CLIP's format needs their number: "
            f"add `train_classes` to its {weights.CONFIG_FILE}"
        )
    return np.append(np.ones(len(classes), np.float32), np.float32(card.no_object_weight))


def _check_output(output: Path) -> None:
    if output.suffix not in (".safetensors", ".pth"):
        raise CheckpointError(f"--output {output} must end with .safetensors or .pth")
    if output.is_dir():
        raise CheckpointError(f"--output {output} is a folder: give the file to write")
    if output.exists():
        try:
            open_checkpoint(output).__exit__()
        except CheckpointError:
            raise CheckpointError(f"{output} exists and is not a checkpoint: choose another --output") from None


def _write(output: Path, shapes: dict[str, tuple[int, ...]], read: Callable[[str], np.ndarray]) -> None:
    """Aside first, then renamed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(output.name + ".partial")
    bar = iter(progress(shapes, "writing"))

    def read_next(name: str) -> np.ndarray:
        next(bar, None)
        return read(name)

    counters = dict.fromkeys((name for name in shapes if name.endswith(BATCH_COUNTER)), "int64")
    try:
        if output.suffix == ".pth":
            write_torch(aside, shapes, read_next, dtypes=counters)
        else:
            write_safetensors(aside, shapes, read_next, dtypes=counters, written_as="pt", aligned=False)
        aside.replace(output)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser("convert.to_fcclip", __doc__)
    options.add_argument("--checkpoint", required=True, metavar="DIR", help="model folder")
    options.add_argument("--output", required=True, metavar="FILE", help=".safetensors or .pth to write")
    args = options.parse_args(argv)
    return guarded(_command, args)


def _command(args: argparse.Namespace) -> str:
    return convert(args.checkpoint, args.output)


if __name__ == "__main__":
    script(main)
