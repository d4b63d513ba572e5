"""Writes a converted model: config.json, model.safetensors, and report.json, which says where it came from."""

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint_files import Checkpoint
from convert.command_line import progress
from convert.mapping import Source
from convert.name_maps import Row
from convert.stored_arrays import CheckpointError
from fcclip_jax.models import weights
from fcclip_jax.models.weights import ModelCard

REPORT_FILE = "report.json"


def check_output(output: str | os.PathLike, source: str | os.PathLike | None = None) -> None:
    """Refuses an output folder early, before anything is read.

    Raises:
        CheckpointError: the input lies inside the folder, and would be replaced together with it.
        WeightsError: there is something other than a model folder.
    """
    folder = Path(output).resolve()
    if source is not None and folder in Path(source).resolve().parents and (folder / weights.CONFIG_FILE).exists():
        raise CheckpointError(
            f"{source} lies in {output}, which would be replaced: choose another place for the output"
        )
    weights.check_replaceable(output)


def write_model_folder(
    output: str | os.PathLike,
    card: ModelCard,
    source: Source,
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    *,
    started: float,
    consumed: int = 0,
) -> str:
    """Converts array by array and writes the folder.

    Args:
        card: without text_sha256 and provenance, which are filled in here.
        started: `time.monotonic()` at the beginning of the command.
        consumed: number of their arrays that went into the card.

    Returns:
        one line about what was written.

    Raises:
        CheckpointError, WeightsError, OSError: nothing is left behind.
    """
    shapes = source.shapes
    with checkpoint.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    card = dataclasses.replace(
        card,
        text_sha256=weights.text_sha256(shapes, source.read),
        provenance={"file": checkpoint.path.name, "bytes": checkpoint.size, "sha256": sha256},
    )
    parameters = sum(math.prod(shape) for shape in shapes.values())
    counts = {
        "source_arrays": len(checkpoint.arrays),
        "converted": len(source.steps),
        "into_the_card": consumed,
        "ignored": len(source.ignored),
        "parameter_arrays": len(shapes),
    }

    def report() -> str:
        values: dict[str, Any] = {
            "model": card.config.name,
            "input": card.provenance,
            "kind": checkpoint.kind,
            "counts": counts,
            "parameters": parameters,
            "ignored": {row.name: row.meaning for row in source.ignored},
            "rows": _row_counts(rows, source),
            "seconds": round(time.monotonic() - started, 2),
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    weights.save_model(output, card, shapes, _with_progress(shapes, source.read), extra_files={REPORT_FILE: report})
    return (
        f"{output}: {card.config.name}, {parameters / 1e6:.1f} million parameters in {len(shapes)} arrays "
        f"from {checkpoint.path.name}"
    )


def _row_counts(rows: Sequence[Row], source: Source) -> list[dict[str, Any]]:
    used = [step.row for step in source.steps]
    return [
        {"source": theirs, "target": ours, "transform": kind, "matches": used.count(index)}
        for index, (theirs, ours, kind) in enumerate(rows)
    ]


def _with_progress(names: Sequence[str], read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """`read`, called once a name, with a bar that moves at each call."""
    bar = iter(progress(names, "converting"))

    def read_next(name: str) -> np.ndarray:
        next(bar, None)
        return read(name)

    return read_next
