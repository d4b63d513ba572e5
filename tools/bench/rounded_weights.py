"""A model whose CLIP towers are rounded to fewer bits, to measure what that costs.

    python -m tools.bench.rounded_weights --model fcclip_jax/assets/emoji_model --kind int8 --output rounded
    python -m tools.emoji.claims --models rounded --scenes emoji_scenes --sizes 1

The output is an ordinary model folder in float32, its values rounded: what is lost is known before anyone writes the
code that would gain from it. int8 has one scale for each output channel; vectors (norms, biases, layer scales) stay.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from fcclip_jax.models import weights
from tools.emoji.ship import save_changed


def to_int8(array: np.ndarray) -> np.ndarray:
    """Of an array `[...,C]` the nearest of 255 values, symmetric, of each output channel (the last axis)."""
    axes = tuple(range(array.ndim - 1))
    scale = np.maximum(np.abs(array).max(axes, keepdims=True), np.finfo(np.float32).tiny) / 127
    return (np.round(array / scale) * scale).astype(np.float32)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The nearest values with eight bits, of an array of any shape."""
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


KINDS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {"int8": (1, to_int8), "bfloat16": (2, to_bfloat16)}


def rounded(model: Path, output: Path, kind: str) -> tuple[int, int]:
    """Writes `output`; returns the bytes of the towers in float32, and in `kind`."""
    size, convert = KINDS[kind]
    card = weights.read_card(model)
    found = {name: array.astype(np.float32) for name, array in weights.load_parameters(model).items()}
    before = after = 0
    for name, array in found.items():
        if name.startswith(weights.TOWERS):
            before += array.size * 4
            if array.ndim >= 2:
                found[name] = convert(array)
            after += array.size * (size if array.ndim >= 2 else 4)
    card = dataclasses.replace(card, provenance=card.provenance | {"towers_rounded_to": kind})
    save_changed(output, card, found, dtype=np.float32)
    return before, after


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True, type=Path, metavar="DIR")
    options.add_argument("--kind", required=True, choices=sorted(KINDS))
    options.add_argument("--output", required=True, type=Path, metavar="DIR")
    given = options.parse_args()
    before, after = rounded(given.model, given.output, given.kind)
    print(f"{given.output}: towers of {before / 1e6:.1f} MB in float32, {after / 1e6:.1f} MB in {given.kind}")


if __name__ == "__main__":
    main()
