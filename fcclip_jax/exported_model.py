"""A model as programs that were compiled down to StableHLO before: run without the model's code.

A folder holds, beside config.json (the model's card) and model.safetensors:

    export.json            sizes, shapes, platforms, the order of the parameters, and the vocabulary if one is baked in
    predict_HxW.jax        for each shape that images are stored in
    classify.jax           names predictions with text rows
    text.jax               tokens to text embeddings; or else
    rows.npy               the text rows of the vocabulary that is baked in

The programs are plain `jax.export` artifacts (docs/export.md shows how to call them with jax alone).
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.models.mask_classifier import Classification
from fcclip_jax.models.weights_file import WeightsError, WeightsFile
from fcclip_jax.ops.platform import frugal
from fcclip_jax.structures import MaskPredictions

FORMAT, FORMAT_VERSION = "fcclip_jax export", 1
EXPORT_FILE, CLASSIFY_FILE, TEXT_FILE, ROWS_FILE = "export.json", "classify.jax", "text.jax", "rows.npy"
_WEIGHTS_FILE = "model.safetensors"


class ExportError(ValueError):
    """An export that cannot be used, with the reason and what to do."""


def predict_file(shape: tuple[int, int]) -> str:
    """The file of the program for images stored in `(height, width)`."""
    return f"predict_{shape[0]}x{shape[1]}.jax"


def is_export(directory: str | os.PathLike) -> bool:
    """Whether a folder is an export; nothing is checked but the name of a file."""
    return (Path(directory) / EXPORT_FILE).is_file()


class ExportedModel:
    """Runs the programs of a folder, each read and compiled on first use; offers what CompiledModel does.

    Attributes:
        min_size, max_size: of images in the network, pixels.
        vocabulary: what is baked in, as `Vocabulary.to_dict` gives it, with `rows` `[S,E]`; or both None.
    """

    def __init__(self, directory: str | os.PathLike):
        """Raises ExportError: no export, of another version, damaged, or not for this platform."""
        self._folder = Path(directory)
        values = self._manifest()
        self.min_size, self.max_size = values["min_size"], values["max_size"]
        self.vocabulary, self.rows = values["vocabulary"], None
        self._batch_size, self._shapes = values["batch_size"], [tuple(shape) for shape in values["shapes"]]
        platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if platform not in values["platforms"]:
            raise ExportError(
                f"{self._folder} was exported for {', '.join(values['platforms'])}, and jax runs on {platform} here"
            )
        if self.vocabulary is not None:
            self.rows = np.load(self._folder / ROWS_FILE, allow_pickle=False)
        self._image = self._parameters(values["image_parameters"])
        self._text = self._parameters(values["text_parameters"])
        self._programs: dict[str, Any] = {}

    def _manifest(self) -> dict[str, Any]:
        path = self._folder / EXPORT_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.get("format") != FORMAT:
                raise ValueError("it is no export of fcclip_jax")
            if values["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its version is {values['format_version']}, this program reads {FORMAT_VERSION}")
            return values
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ExportError(f"{path} cannot be read: {error}") from None

    def _parameters(self, names: list[str]) -> list[jax.Array]:
        path = self._folder / _WEIGHTS_FILE
        try:
            arrays = WeightsFile(path).mapped()
            return [jnp.asarray(arrays[name], jnp.float32) for name in names]
        except (OSError, WeightsError, KeyError) as error:
            raise ExportError(f"{path} cannot be read ({error}): export again, or copy the whole folder") from None

    @property
    def device_count(self) -> int:
        """Batches must be a multiple of this: the batch size that was exported."""
        return self._batch_size

    def _run(self, name: str, *arguments: Any) -> Any:
        if name not in self._programs:
            try:
                from jax import export

                program = export.deserialize(bytearray((self._folder / name).read_bytes()))
            except ImportError:
                raise ExportError("exports need flatbuffers: pip install 'fcclip_jax[export]'") from None
            except OSError as error:
                raise ExportError(f"{self._folder / name} cannot be read: {error.strerror}") from None
            except Exception as error:  # flatbuffers raises what its bytes make it stumble over
                raise ExportError(f"{self._folder / name} is damaged, or of another version of jax: {error}") from None
            self._programs[name] = jax.jit(program.call, compiler_options=frugal())
        return self._programs[name](*arguments)

    def predict(self, images: Float[np.ndarray, "B H W 3"], extent: Int[np.ndarray, "B 2"]) -> list[MaskPredictions]:
        """As `CompiledModel.predict`. Raises ExportError: the shape is not among those exported."""
        shape = images.shape[1:3]
        if shape not in self._shapes:
            known = ", ".join(f"{h}x{w}" for h, w in self._shapes)
            raise ExportError(
                f"an image is stored in {shape[0]}x{shape[1]}, and {self._folder} holds {known}: export that shape too"
            )
        found = []
        for start in range(0, len(images), self._batch_size):
            part = slice(start, start + self._batch_size)
            batch = self._run(predict_file(shape), self._image, images[part], extent[part])
            found += [MaskPredictions(*(x[i : i + 1] for x in batch)) for i in range(self._batch_size)]
        return found

    def classify(
        self,
        predictions: MaskPredictions,
        rows: Float[np.ndarray, "S E"],
        synonym_to_class: Int[np.ndarray, " S"],
        seen: Bool[np.ndarray, " K"],
    ) -> Classification:
        """As `CompiledModel.classify`."""
        embeddings = (predictions.class_embed, predictions.clip_embed, predictions.valid)
        return Classification(*self._run(CLASSIFY_FILE, self._image, *embeddings, rows, synonym_to_class, seen))

    def encode_text(self, tokens: Int[np.ndarray, "T n"]) -> Float[Array, "T E"]:
        """As `CompiledModel.encode_text`. Raises ExportError where a vocabulary is baked in instead."""
        if self.vocabulary is not None:
            raise ExportError(
                f"{self._folder} knows only the {len(self.rows)} names that are baked in; export without a vocabulary "
                "to give any words"
            )
        return self._run(TEXT_FILE, self._text, tokens)
