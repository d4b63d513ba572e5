"""The public API: an image and any words in, segments out.

    import fcclip_jax

    segmenter = fcclip_jax.Segmenter.from_checkpoint("models/fcclip_convnext_large")
    result = segmenter(image, ["cat", "sofa,couch", "window"], stuff="window")
    result.panoptic, result.segments, result.semantic, result.instances, result.draw()

The expensive part knows no words: `encode` an image once, then `name` it with as many vocabularies as you like.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from fcclip_jax import visualization
from fcclip_jax.data import transforms
from fcclip_jax.models import weights
from fcclip_jax.models.fcclip import FCCLIP, VARIANTS
from fcclip_jax.models.text_classifier import TextClassifier
from fcclip_jax.results.results import TASKS, compute_results
from fcclip_jax.structures import Instance, MaskPredictions, Segment
from fcclip_jax.vocabulary.vocabulary import Vocabulary

VocabularyLike = Vocabulary | str | os.PathLike | Iterable[str]
Progress = Callable[[int, int], None]


def cache_directory() -> Path:
    """Where text embeddings and compiled programs are kept: $FCCLIP_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FCCLIP_CACHE") or Path(base) / "fcclip_jax")


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """One image after the forward pass, before any word: the predictions (batch of 1), and `network_size`, the
    `(height, width)` it had in the network before padding."""

    image: np.ndarray
    predictions: MaskPredictions
    network_size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Result:
    """What was found, at the photo's own resolution. A task that was not asked for is None.

    Attributes:
        image: uint8 `[H,W,3]`.
        vocabulary: the classes; `category_id` and `semantic` index it.
        panoptic: int32 `[H,W]`, ids of `segments`, 0 where nothing was found.
        segments: the segments of `panoptic`.
        semantic: uint8 or uint16 `[H,W]`, a class everywhere.
        instances: things, the best first; may overlap.
    """

    image: np.ndarray
    vocabulary: Vocabulary
    panoptic: np.ndarray | None
    segments: list[Segment] | None
    semantic: np.ndarray | None
    instances: list[Instance] | None

    def draw(self, *, alpha: float = 0.5, labels: bool = True) -> UInt8[np.ndarray, "H W 3"]:
        """The photo with its panoptic segments, or else its semantic map, in colour and with names."""
        if self.panoptic is not None:
            return visualization.draw_panoptic(self.image, self.panoptic, self.segments, alpha=alpha, labels=labels)
        if self.semantic is not None:
            return visualization.draw_semantic(self.image, self.semantic, self.vocabulary.names, alpha=alpha)
        raise ValueError("there is nothing to draw: ask for the panoptic or the semantic task")


class Segmenter:
    """A model, compiled on first use for each padded image size, with its text cache."""

    def __init__(
        self,
        card: weights.ModelCard,
        graphdef: nnx.GraphDef,
        state: nnx.State,
        *,
        min_size: int = 800,
        max_size: int = 1333,
        cache_dir: str | os.PathLike | None = None,
    ):
        """`min_size` and `max_size` bound the shorter and the longer edge, in pixels, that the network sees."""
        self.card, self.min_size, self.max_size = card, min_size, max_size
        self.train_vocabulary = Vocabulary.from_dict(card.train_classes) if card.train_classes else None
        self._state = state
        cache = cache_directory() if cache_dir is None else Path(cache_dir)
        if jax.config.jax_compilation_cache_dir is None:
            jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))

        def model(state: nnx.State) -> FCCLIP:
            return nnx.merge(graphdef, state)

        # float32 means float32: without this, accelerators multiply in tf32 or bfloat16.
        exact = functools.partial(_with_precision, "float32")
        self._predict = exact(jax.jit(lambda state, images: model(state)(images).predictions))
        self._forward = exact(jax.jit(lambda state, images: model(state)(images)))
        self._classify = exact(jax.jit(lambda state, *args: model(state).classify(*args)))
        self._layer_logits = exact(
            jax.jit(
                lambda state, embeds, rows, classes, count: [
                    model(state).in_vocabulary_logits(x, rows, classes, count) for x in embeds
                ],
                static_argnums=4,
            )
        )
        encode_text = exact(jax.jit(lambda state, tokens: model(state).clip.text(tokens)))
        self._text = TextClassifier(
            lambda tokens: encode_text(self._state, tokens),
            embed_dim=card.config.embed_dim,
            fingerprint=card.text_sha256,
            cache_dir=cache / "text",
        )

    @classmethod
    def from_checkpoint(cls, directory: str | os.PathLike, **options: Any) -> "Segmenter":
        """Loads a converted model; `options` as in `Segmenter(...)`.

        Raises:
            WeightsError (a ValueError): the folder is missing, damaged, or not a model that can segment.
        """
        return cls(*weights.load_model(directory), **options)

    @classmethod
    def untrained(cls, variant: str = "convnext_tiny_test", seed: int = 0, **options: Any) -> "Segmenter":
        """Random weights: shows that everything runs, finds nothing."""
        if variant not in VARIANTS:
            raise ValueError(f"no variant {variant!r}; there are: {', '.join(VARIANTS)}")
        config = VARIANTS[variant]
        return cls(weights.ModelCard(config), *weights.initialize(config, seed), **options)

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
        return next(self._encode_batch([image]))

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
        log_probs = self._classify(self._state, encoded.predictions, *self._text_arguments(words)).class_log_probs
        found = compute_results(
            encoded.predictions.masks[0],
            log_probs[0],
            network_size=encoded.network_size,
            output_size=encoded.image.shape[:2],
            names=words.names,
            isthing=words.isthing,
            tasks=tasks,
            overlap_threshold=overlap_threshold,
            object_threshold=object_threshold,
        )
        return Result(encoded.image, words, found.panoptic, found.segments, found.semantic, found.instances)

    def prepare(self, vocabulary: VocabularyLike, progress: Progress | None = None) -> Vocabulary:
        """Embeds a vocabulary's words ahead of the first image; `progress` gets (prompts done, prompts in all)."""
        words = Vocabulary.parse(vocabulary)
        self._text.rows(words, progress=progress)
        return words

    def stream(
        self,
        images: Iterable[UInt8[np.ndarray, "H W 3"]],
        vocabulary: VocabularyLike,
        *,
        batch_size: int = 1,
        **options: Any,
    ) -> Iterator[tuple[int, Result]]:
        """Segments many photos, in batches of equal padded size, yielding (index, result) as they are ready.

        The device works on one batch while the host reads the next images and finishes the last ones. An image's
        result is the one it would have alone. `options` as in a call of the segmenter.
        """
        words = Vocabulary.parse(vocabulary, options.pop("stuff", None))
        self._text.rows(words)
        waiting: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
        running: list[tuple[int, EncodedImage]] = []

        def start(group: list[tuple[int, np.ndarray]]) -> list[tuple[int, EncodedImage]]:
            return [
                (index, encoded)
                for (index, _), encoded in zip(group, self._encode_batch([im for _, im in group]), strict=True)
            ]

        for index, image in enumerate(images):
            shape = self._padded_shape(image)
            group = waiting.setdefault(shape, [])
            group.append((index, image))
            if len(group) == batch_size:
                started = start(waiting.pop(shape))
                yield from ((i, self.name(e, words, **options)) for i, e in running)
                running = started
        for group in waiting.values():
            started = start(group)
            yield from ((i, self.name(e, words, **options)) for i, e in running)
            running = started
        yield from ((i, self.name(e, words, **options)) for i, e in running)

    def forward(self, image: UInt8[np.ndarray, "H W 3"], vocabulary: VocabularyLike) -> dict[str, Any]:
        """All named intermediates of one photo, as numpy arrays with a batch axis of 1 (lists hold one a layer).

        Keys: stem, res2..res5 `[1,h,w,C]`; input_proj, multi_scale (strides 32, 16, 8), encoder_layers `[1,T,D]`,
        mask_features; queries `[1,Q,D]`, masks `[1,Q,h,w]`, logits `[1,Q,K+1]` (before the first and after each
        decoder layer), blocked `[1,Q,T]`; pooled `[1,Q,C]`, clip_embed `[1,Q,E]`, out_vocabulary_logits and
        class_log_probs `[1,Q,K+1]`.
        """
        words = Vocabulary.parse(vocabulary)
        return self.intermediates(self._preprocess(image)[0][None], *self._text_arguments(words))

    def intermediates(
        self,
        inputs: Float[np.ndarray, "B H W 3"],
        rows: Float[np.ndarray, "S E"],
        synonym_to_class: Int[np.ndarray, "S"],
        seen: Bool[np.ndarray, "K"],
    ) -> dict[str, Any]:
        """What `forward` returns, for a normalised and padded batch and unit text rows."""
        out = self._forward(self._state, inputs)
        named = self._classify(self._state, out.predictions, rows, synonym_to_class, seen)
        logits = self._layer_logits(self._state, out.decoder.class_embeds, rows, synonym_to_class, len(seen))
        arrays = {
            **{f.name: getattr(out.features, f.name) for f in dataclasses.fields(out.features)},
            **{f.name: getattr(out.pixels, f.name) for f in dataclasses.fields(out.pixels)},
            "queries": out.decoder.queries,
            "masks": out.decoder.masks,
            "blocked": out.decoder.blocked,
            "logits": logits,
            "pooled": out.pooled,
            "clip_embed": out.predictions.clip_embed,
            "out_vocabulary_logits": named.out_vocabulary,
            "class_log_probs": named.class_log_probs,
        }
        return {
            key: [np.asarray(x) for x in value] if isinstance(value, list | tuple) else np.asarray(value)
            for key, value in arrays.items()
        }

    def _text_arguments(self, words: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen = (
            words.seen(self.train_vocabulary)
            if self.train_vocabulary is not None
            else np.zeros(words.num_classes, bool)
        )
        return self._text.rows(words), words.synonym_to_class, seen

    def _padded_shape(self, image: np.ndarray) -> tuple[int, int]:
        size = transforms.target_size(*_checked(image).shape[:2], self.min_size, self.max_size)
        return tuple(-(-edge // 32) * 32 for edge in size)

    def _preprocess(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        resized = transforms.resize_shortest_edge(_checked(image), self.min_size, self.max_size)
        return transforms.pad_to_multiple(transforms.normalize(resized)), resized.shape[:2]

    def _encode_batch(self, images: Sequence[np.ndarray]) -> Iterator[EncodedImage]:
        inputs, sizes = zip(*map(self._preprocess, images), strict=True)
        batch = self._predict(self._state, np.stack(inputs))
        for i, (image, size) in enumerate(zip(images, sizes, strict=True)):
            yield EncodedImage(image, jax.tree.map(lambda x, i=i: x[i : i + 1], batch), size)


def _checked(image: Int[np.ndarray, "..."]) -> UInt8[np.ndarray, "H W 3"]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"an image is a numpy array, uint8 RGB [H,W,3], not {kind}; data.image_files reads files")
    if min(image.shape[:2]) < 1:
        raise ValueError(f"the image has no pixels: {image.shape[0]} x {image.shape[1]}")
    return image


def _with_precision(precision: str, compiled: Callable) -> Callable:
    @functools.wraps(compiled)
    def call(*args):
        with jax.default_matmul_precision(precision):
            return compiled(*args)

    return call
