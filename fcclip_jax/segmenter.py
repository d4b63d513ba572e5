"""The public API: an image and any words in, segments out.

    import fcclip_jax

    segmenter = fcclip_jax.Segmenter.from_checkpoint("models/fcclip_convnext_large")
    result = segmenter(image, ["cat", "sofa,couch", "window"], stuff="window")
    result.panoptic, result.segments, result.semantic, result.instances, result.draw()

The expensive part knows no words: `encode` an image once, then `name` it with as many vocabularies as you like.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from fcclip_jax.cache_folder import open_cache
from fcclip_jax.compiled_model import CompiledModel
from fcclip_jax.data import buckets, transforms
from fcclip_jax.exported_model import ExportedModel, ExportError, is_export
from fcclip_jax.models import shipped, weights
from fcclip_jax.models.text_classifier import TextClassifier
from fcclip_jax.results.results import TASKS, compute_results
from fcclip_jax.segment_result import PanopticMap, Result
from fcclip_jax.structures import MaskPredictions
from fcclip_jax.vocabulary.vocabulary import Vocabulary

VocabularyLike = Vocabulary | str | os.PathLike | Iterable[str]
Progress = Callable[[int, int], None]

# Photos that wait for others of their padded size are worked off when they take more memory than this.
_WAITING_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """One image after the forward pass, before any word: the predictions (batch of 1, on one device), `network_size`,
    the `(height, width)` it had in the network before padding, and `padded_size`, with the padding to multiples of 32.
    The masks may be stored larger; what lies beyond `padded_size` / 4 is filling."""

    image: np.ndarray
    predictions: MaskPredictions
    network_size: tuple[int, int]
    padded_size: tuple[int, int]


class Segmenter:
    """A model, compiled on first use for each of the few shapes that images are stored in (data/buckets.py), with its
    text cache."""

    def __init__(
        self,
        card: weights.ModelCard,
        graphdef: nnx.GraphDef,
        state: nnx.State,
        *,
        min_size: int = 800,
        max_size: int = 1333,
        cache_dir: str | os.PathLike | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """
        Args:
            card, graphdef, state: the model; `from_checkpoint` reads them.
            min_size: the length, in pixels, that the shorter edge has in the network.
            max_size: the most that the longer edge may have, which comes first.
            cache_dir: as `cache_directory()`, which is the default.
            devices: of this process, that share the batches of a stream; jax's first one where None.
        """
        self._begin(card, CompiledModel(graphdef, state, devices), min_size, max_size, cache_dir)

    def _begin(
        self,
        card: weights.ModelCard,
        model: CompiledModel | ExportedModel,
        min_size: int,
        max_size: int,
        cache_dir: str | os.PathLike | None,
    ) -> None:
        self.card, self.min_size, self.max_size = card, min_size, max_size
        self.train_vocabulary = Vocabulary.from_dict(card.train_classes) if card.train_classes else None
        self._model = model
        cache = open_cache(cache_dir)
        self._text = TextClassifier(
            self._model.encode_text,
            embed_dim=card.config.embed_dim,
            fingerprint=card.text_sha256,
            cache_dir=cache / "text",
        )

    @property
    def device_count(self) -> int:
        """Devices that share a batch, or the batch size of an export: `stream` takes multiples of it."""
        return self._model.device_count

    @classmethod
    def from_checkpoint(cls, directory: str | os.PathLike, **options: Any) -> "Segmenter":
        """Loads a converted model, or what `fcclip export` made of one; `options` as in `Segmenter(...)`.

        Raises:
            WeightsError, ExportError (ValueErrors): the folder is missing, damaged, or not a model that can segment.
        """
        if is_export(directory):
            return cls._from_export(directory, **options)
        return cls(*weights.load_model(directory), **options)

    @classmethod
    def _from_export(cls, directory: str | os.PathLike, *, cache_dir: str | os.PathLike | None = None, **options: Any):
        model = ExportedModel(directory)
        for key in ("min_size", "max_size"):
            if options.pop(key, getattr(model, key)) != getattr(model, key):
                raise ExportError(f"{directory} was exported with min_size {model.min_size}, max_size {model.max_size}")
        if options.pop("devices", None) is not None:
            raise ExportError(f"{directory} is an export, which runs on one device; give the model folder for several")
        if options:
            raise TypeError(f"unknown options: {', '.join(options)}")
        segmenter = cls.__new__(cls)
        segmenter._begin(weights.read_card(directory), model, model.min_size, model.max_size, cache_dir)
        if model.vocabulary is not None:
            segmenter._text.remember(Vocabulary.from_dict(model.vocabulary).synonyms, model.rows)
        return segmenter

    @classmethod
    def shipped(cls, **options: Any) -> "Segmenter":
        """The small model that comes with the package, for pictures like those of `fcclip demo`; `options` as in
        `Segmenter(...)`, but for sizes, which are its own where they are not given."""
        return cls.from_checkpoint(shipped.shipped_model(), **(shipped.SIZES | options))

    def __call__(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        vocabulary: VocabularyLike,
        *,
        stuff: str | Iterable[str] | None = None,
        tasks: Sequence[str] = TASKS,
        overlap_threshold: float = 0.8,
        object_threshold: float = 0.0,
    ) -> Result:
        """Segments one photo.

        Args:
            image: uint8 RGB `[H,W,3]`, any size.
            vocabulary: words, `name,synonym` lines, a label file, or the name of a built-in list
                (`Vocabulary.parse` says exactly).
            stuff: those of the classes that are stuff, not countable things.
            tasks: among "panoptic", "semantic", "instance".
            overlap_threshold: a segment is dropped when others win more than 1 minus this share of its mask.
            object_threshold: a segment needs a class probability above this.

        Raises:
            ValueError: the image or the vocabulary cannot be used.
        """
        words = Vocabulary.parse(vocabulary, stuff)
        thresholds = {"overlap_threshold": overlap_threshold, "object_threshold": object_threshold}
        return self.name(self.encode(image), words, tasks=tasks, **thresholds)

    def encode(self, image: UInt8[np.ndarray, "H W 3"]) -> EncodedImage:
        """Runs the network on one photo. The result can be named with any number of vocabularies."""
        return self._encode([self._preprocess(image)])[0]

    def name(
        self,
        encoded: EncodedImage,
        vocabulary: VocabularyLike,
        *,
        stuff: str | Iterable[str] | None = None,
        tasks: Sequence[str] = TASKS,
        overlap_threshold: float = 0.8,
        object_threshold: float = 0.0,
    ) -> Result:
        """Names the masks of an encoded image with a vocabulary; arguments as in a call of the segmenter."""
        words = Vocabulary.parse(vocabulary, stuff)
        found = compute_results(
            encoded.predictions.masks[0],
            self.class_log_probs(encoded, words),
            network_size=encoded.network_size,
            padded_size=encoded.padded_size,
            output_size=encoded.image.shape[:2],
            names=words.names,
            isthing=words.isthing,
            tasks=tasks,
            overlap_threshold=overlap_threshold,
            object_threshold=object_threshold,
        )
        panoptic = found.panoptic
        if panoptic is not None:
            panoptic = panoptic.view(PanopticMap)
            panoptic.segments = found.segments
        return Result(encoded.image, words, panoptic, found.segments, found.semantic, found.instances)

    def class_log_probs(self, encoded: EncodedImage, vocabulary: VocabularyLike) -> Float[jax.Array, "Q K1"]:
        """The logarithm of each mask's class probabilities, void last: what `name` makes its results from."""
        text = self._text_arguments(Vocabulary.parse(vocabulary))
        return self._model.classify(encoded.predictions, *text).class_log_probs[0]

    def encode_view(
        self, image: UInt8[np.ndarray, "H W 3"], view: UInt8[np.ndarray, "_ _ 3"], min_size: int, max_size: int
    ) -> EncodedImage:
        """As `encode`, of a photo that is already resized, to `min_size` and `max_size`, or mirrored as well."""
        return self._encode([self._stored(_checked(image), _checked(view), min_size, max_size)])[0]

    def encode_masks(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        masks: Bool[np.ndarray, "N h w"],
        dense_masks: Bool[np.ndarray, "N h2 w2"],
    ) -> EncodedImage:
        """Runs the network on one photo, and describes given masks in the place of those that it finds.

        Args:
            masks: at stride 4 of the photo in the network, padded to a multiple of 32.
            dense_masks: the same at stride 32.
        """
        x = self._preprocess(image)
        grids = []
        for given, stride in ((masks, 4), (dense_masks, 32)):
            grid = np.zeros((1, len(given), x.stored.shape[0] // stride, x.stored.shape[1] // stride), bool)
            grid[0, :, : given.shape[1], : given.shape[2]] = given
            grids.append(grid)
        predictions = self._model.describe(x.stored[None], np.array([x.padded_size], np.int32), *grids)
        return EncodedImage(image, predictions, x.size, x.padded_size)

    def text_rows(self, vocabulary: VocabularyLike) -> Float[np.ndarray, "S E"]:
        """The unit text embedding of each name of a vocabulary, in its order."""
        return self._text.rows(Vocabulary.parse(vocabulary))

    def prepare(self, vocabulary: VocabularyLike, progress: Progress | None = None) -> Vocabulary:
        """Embeds a vocabulary's words ahead of the first image; `progress` gets (prompts done, prompts in all)."""
        words = Vocabulary.parse(vocabulary)
        self._text.rows(words, progress=progress)
        return words

    def stream(
        self,
        images: "Iterable[UInt8[np.ndarray, '_ _ 3'] | _Input]",
        vocabulary: VocabularyLike,
        *,
        stuff: str | Iterable[str] | None = None,
        batch_size: int = 1,
        **options: Any,
    ) -> Iterator[tuple[int, Result]]:
        """Segments many photos, in batches of one stored shape, yielding (index, result) as they are ready.

        The device works on one batch while the host finishes the one before and reads the next photos. An image's
        result is the one it would have alone. Photos wait for others of their shape up to a gigabyte in all, so with
        `batch_size` above 1 the results are not in order.

        Args:
            images: photos, or what `prepared` makes of one.
            batch_size: photos at a time, of all devices together. A batch that cannot be filled is filled up with
                copies, so that there is one program to compile for each shape.
            options: `tasks`, `overlap_threshold` and `object_threshold`, as in a call of the segmenter.

        Raises:
            ValueError: as a call of the segmenter, at the first image that cannot be used; a batch that the devices
                cannot share.
        """
        if batch_size < 1:
            raise ValueError(f"a batch has at least one photo, not {batch_size}")
        if batch_size % self.device_count:
            raise ValueError(f"batch_size must be a multiple of {self.device_count} here, not {batch_size}")
        words = Vocabulary.parse(vocabulary, stuff)
        self._text.rows(words)
        running: list[tuple[int, EncodedImage]] = []
        for batch in self._batches(images, batch_size):
            # Named before the next batch starts, or the device would keep the names waiting until that is done.
            finished = [(index, self.name(encoded, words, **options)) for index, encoded in running]
            indices, inputs = zip(*batch, strict=True)
            encoded = self._encode([*inputs, *[inputs[-1]] * (batch_size - len(inputs))])
            running = list(zip(indices, encoded[: len(inputs)], strict=True))
            while finished:  # so that none is kept while the next photo is read
                yield finished.pop(0)
        yield from ((index, self.name(encoded, words, **options)) for index, encoded in running)

    def _batches(
        self, images: "Iterable[np.ndarray | _Input]", batch_size: int
    ) -> Iterator[list[tuple[int, "_Input"]]]:
        """Photos of one stored shape, with their places among `images`; up to `batch_size` of them."""
        waiting: dict[tuple[int, ...], list[tuple[int, _Input]]] = {}
        size = 0
        for index, image in enumerate(images):
            prepared = image if isinstance(image, _Input) else self._preprocess(image)
            group = waiting.setdefault(prepared.stored.shape, [])
            group.append((index, prepared))
            size += prepared.nbytes
            while waiting and (len(group) == batch_size or size > _WAITING_BYTES):
                group = waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
                size -= sum(prepared.nbytes for _, prepared in group)
                yield group
                group = []
        yield from waiting.values()

    def forward(self, image: UInt8[np.ndarray, "H W 3"], vocabulary: VocabularyLike) -> dict[str, Any]:
        """All named intermediates of one photo, as numpy arrays with a batch axis of 1 (lists hold one a layer).

        Keys: stem, res2..res5 `[1,h,w,C]`; input_proj, multi_scale (strides 32, 16, 8), encoder_layers `[1,T,D]`,
        mask_features; queries `[1,Q,D]`, masks `[1,Q,h,w]`, logits `[1,Q,K+1]` (before the first and after each
        decoder layer), blocked `[1,Q,T]`; pooled `[1,Q,C]`, clip_embed `[1,Q,E]`, out_vocabulary_logits and
        class_log_probs `[1,Q,K+1]`.
        """
        words = Vocabulary.parse(vocabulary)
        padded = transforms.pad_to_multiple(transforms.normalize(self._resize(image)))
        return self.intermediates(padded[None], *self._text_arguments(words))

    def intermediates(
        self,
        inputs: Float[np.ndarray, "B H W 3"],
        rows: Float[np.ndarray, "S E"],
        synonym_to_class: Int[np.ndarray, " S"],
        seen: Bool[np.ndarray, " K"],
    ) -> dict[str, Any]:
        """What `forward` returns, for a normalised and padded batch and unit text rows."""
        return self._model.intermediates(inputs, rows, synonym_to_class, seen)

    def _text_arguments(self, words: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen = (
            words.seen(self.train_vocabulary)
            if self.train_vocabulary is not None
            else np.zeros(words.num_classes, bool)
        )
        return self._text.rows(words), words.synonym_to_class, seen

    def _resize(self, image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        return transforms.resize_shortest_edge(_checked(image), self.min_size, self.max_size)

    def _preprocess(self, image: np.ndarray) -> "_Input":
        return self._stored(image, self._resize(image), self.min_size, self.max_size)

    def prepared(
        self, image: UInt8[np.ndarray, "H W 3"], stored: Float[np.ndarray, "_ _ 3"], size: tuple[int, int]
    ) -> "_Input":
        """A photo that others have resized to `size`, normalised and put into its bucket (data/evaluation_loader.py),
        for `stream`."""
        return _Input(image, stored, size, buckets.extent(*size))

    def _stored(self, image: np.ndarray, resized: np.ndarray, min_size: int, max_size: int) -> "_Input":
        size = resized.shape[:2]
        shape = buckets.bucket(*size, min_size, max_size)
        return _Input(image, buckets.fill(transforms.normalize(resized), shape), size, buckets.extent(*size))

    def _encode(self, inputs: Sequence["_Input"]) -> list[EncodedImage]:
        """Starts the devices; the predictions are there when they are first looked at."""
        # Fewer photos than devices: copies fill up, as in a stream.
        filled = [*inputs, *[inputs[-1]] * (-len(inputs) % self.device_count)]
        images = np.stack([x.stored for x in filled])
        extent = np.array([x.padded_size for x in filled], np.int32)
        predictions = self._model.predict(images, extent)[: len(inputs)]
        return [
            EncodedImage(x.image, found, x.size, x.padded_size) for x, found in zip(inputs, predictions, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class _Input:
    """A photo, what the network gets of it, and the size, `(height, width)`, that it has there without padding and with
    the padding to multiples of 32."""

    image: np.ndarray
    stored: np.ndarray
    size: tuple[int, int]
    padded_size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + self.stored.nbytes


def _checked(image: Any) -> UInt8[np.ndarray, "H W 3"]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"an image is a numpy array, uint8 RGB [H,W,3], not {kind}; data.image_files reads files")
    if min(image.shape[:2]) < 1:
        raise ValueError(f"the image has no pixels: {image.shape[0]} x {image.shape[1]}")
    return image
