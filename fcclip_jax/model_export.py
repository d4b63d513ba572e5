"""Writes a model as programs for several platforms, for use without its code (`exported_model.py` runs them).

Each program is a `jax.export` artifact that CPU, CUDA and TPU compile for themselves; the weights lie beside them once.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from fcclip_jax.data import buckets
from fcclip_jax.exported_model import (
    CLASSIFY_FILE,
    EXPORT_FILE,
    FORMAT,
    FORMAT_VERSION,
    ROWS_FILE,
    TEXT_FILE,
    predict_file,
)
from fcclip_jax.models import weights
from fcclip_jax.models.clip_text import ClipText
from fcclip_jax.models.fcclip import FCCLIP, FCCLIPConfig
from fcclip_jax.models.weights_file import write_safetensors
from fcclip_jax.ops.platform import every_platform
from fcclip_jax.structures import MaskPredictions
from fcclip_jax.vocabulary.vocabulary import Vocabulary

PLATFORMS = ("cpu", "cuda", "tpu")


def all_shapes(min_size: int, max_size: int) -> list[tuple[int, int]]:
    """Every shape, `(height, width)`, that images of any size are stored in."""
    shortest = buckets.round_up(min(min_size, max_size))
    wide = [(shortest, longest) for longest in buckets.long_edges(min_size, max_size)]
    return sorted({*wide, *((width, height) for height, width in wide)})


def export_model(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    shapes: Sequence[tuple[int, int]] | None = None,
    batch_size: int = 1,
    platforms: Sequence[str] = PLATFORMS,
    vocabulary: Vocabulary | None = None,
    rows: np.ndarray | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Path:
    """Writes the folder `output`: aside first, then renamed.

    Args:
        min_size: pixels of the shorter edge in the network; max_size: of the longer at most.
        shapes: those of `all_shapes` that are wanted; None for all of them.
        batch_size: images at a time, fixed in the programs.
        platforms: some of PLATFORMS.
        vocabulary, rows: bake these words in, with their unit text rows `[S,E]`; the text tower is then left out.
            Without them any words can be given.
        progress: called with the name of each file that is about to be made.

    Raises:
        ValueError: a model that cannot be used, a shape that no image is stored in, a folder that is something else.
    """
    card = weights.read_card(checkpoint)
    possible = all_shapes(min_size, max_size)
    wanted = possible if shapes is None else list(dict.fromkeys(shapes))
    if strange := [shape for shape in wanted if shape not in possible]:
        known = ", ".join(f"{h}x{w}" for h, w in possible)
        raise ValueError(f"no image is stored in {strange[0][0]}x{strange[0][1]} at these sizes; there are: {known}")
    if unknown := [platform for platform in platforms if platform not in PLATFORMS]:
        raise ValueError(f"no platform {unknown[0]!r}; there are: {', '.join(PLATFORMS)}")
    target = Path(output).resolve()
    _check_replaceable(target)
    parameters = weights.load_parameters(checkpoint)
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        programs = _Programs(card.config, batch_size, platforms)
        for shape in wanted:
            progress(predict_file(shape))
            (aside / predict_file(shape)).write_bytes(programs.predict(shape))
        progress(CLASSIFY_FILE)
        (aside / CLASSIFY_FILE).write_bytes(programs.classify())
        names = list(programs.image_names)
        if vocabulary is None:
            progress(TEXT_FILE)
            (aside / TEXT_FILE).write_bytes(programs.text())
            names += programs.text_names
        else:
            np.save(aside / ROWS_FILE, np.asarray(rows, np.float32), allow_pickle=False)
        progress(weights.WEIGHTS_FILE)
        stored = {name: parameters[name].shape for name in names}
        write_safetensors(aside / weights.WEIGHTS_FILE, stored, parameters.__getitem__)
        (aside / weights.CONFIG_FILE).write_text(card.to_json(), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "jax": jax.__version__,
            "platforms": list(platforms),
            "batch_size": batch_size,
            "min_size": min_size,
            "max_size": max_size,
            "shapes": [list(shape) for shape in wanted],
            "image_parameters": programs.image_names,
            "text_parameters": [] if vocabulary is not None else programs.text_names,
            "vocabulary": None if vocabulary is None else vocabulary.to_dict(),
        }
        (aside / EXPORT_FILE).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def _check_replaceable(target: Path) -> None:
    """An empty place, or an export that may be made anew."""
    if target.exists() and not (target / EXPORT_FILE).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists and is no export: choose another place for the output")


class _Programs:
    """The programs of one model. Their first argument is a list of arrays, in the order of `image_names` or
    `text_names`."""

    def __init__(self, config: FCCLIPConfig, batch_size: int, platforms: Sequence[str]):
        self._config, self._batch_size, self._platforms = config, batch_size, list(platforms)
        self._model = nnx.split(nnx.eval_shape(lambda: FCCLIP(config, with_text=False, rngs=nnx.Rngs(0))))
        self._text = nnx.split(nnx.eval_shape(lambda: ClipText(config.text, config.embed_dim, rngs=nnx.Rngs(0))))
        self.image_names = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(self._model[1])]
        prefix = weights.TEXT_TOWER
        self.text_names = [prefix + ".".join(map(str, path)) for path, _ in nnx.to_flat_state(self._text[1])]

    def predict(self, shape: tuple[int, int]) -> bytes:
        """(parameters, images `[B,H,W,3]`, extent `[B,2]`) -> masks, class_embed, clip_embed, valid."""

        def run(model: FCCLIP, images, extent):
            found = model(images, extent).predictions
            return found.masks, found.class_embed, found.clip_embed, found.valid

        images = jax.ShapeDtypeStruct((self._batch_size, *shape, 3), jnp.float32)
        return self._export(self._model, run, images, jax.ShapeDtypeStruct((self._batch_size, 2), jnp.int32))

    def classify(self) -> bytes:
        """(parameters, class_embed, clip_embed, valid, rows `[S,E]`, synonym_to_class `[S]`, seen `[K]`) -> the fields
        of Classification, for one image and any S and K."""

        def run(model: FCCLIP, class_embed, clip_embed, valid, rows, synonym_to_class, seen):
            no_masks = jnp.zeros((*valid.shape, 0, 0))
            predictions = MaskPredictions(no_masks, class_embed, clip_embed, valid)
            named = model.classify(predictions, rows, synonym_to_class, seen)
            return named.in_vocabulary, named.out_vocabulary, named.class_log_probs

        queries, width = self._config.transformer_decoder.queries, self._config.embed_dim
        synonyms, classes = export.symbolic_shape("S, K", constraints=["S >= K"])
        embeddings = jax.ShapeDtypeStruct((1, queries, width), jnp.float32)
        valid = jax.ShapeDtypeStruct((1, queries), bool)
        rows = jax.ShapeDtypeStruct((synonyms, width), jnp.float32)
        numbers, seen = jax.ShapeDtypeStruct((synonyms,), jnp.int32), jax.ShapeDtypeStruct((classes,), bool)
        return self._export(self._model, run, embeddings, embeddings, valid, rows, numbers, seen)

    def text(self) -> bytes:
        """(parameters, tokens `[T,n]`) -> text embeddings `[T,E]`, not normalised, for any T and any n up to the
        context's length."""
        length = self._config.text.context_length
        prompts, tokens = export.symbolic_shape("T, n", constraints=[f"n <= {length}"])
        return self._export(
            self._text, lambda tower, tokens: tower(tokens), jax.ShapeDtypeStruct((prompts, tokens), jnp.int32)
        )

    def _export(self, module: tuple[Any, nnx.State], run: Callable, *inputs: jax.ShapeDtypeStruct) -> bytes:
        graphdef, state = module
        paths = [path for path, _ in nnx.to_flat_state(state)]

        def program(parameters, *arguments):
            whole = nnx.from_flat_state([(p, nnx.Param(x)) for p, x in zip(paths, parameters, strict=True)])
            with every_platform(), jax.default_matmul_precision("float32"):
                return run(nnx.merge(graphdef, whole), *arguments)

        parameters = [jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for _, leaf in nnx.to_flat_state(state)]
        return bytes(export.export(jax.jit(program), platforms=self._platforms)(parameters, *inputs).serialize())
