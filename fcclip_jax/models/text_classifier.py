"""Words to rows of the classifier: prompts through the text tower, averaged over the templates (ViLD)."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, Int

from fcclip_jax.vocabulary.prompts import TEMPLATES, fill_templates
from fcclip_jax.vocabulary.tokenizer import tokenize
from fcclip_jax.vocabulary.vocabulary import Vocabulary

EncodeText = Callable[[np.ndarray], Array]

# Context lengths that prompts are cut to, so that few shapes are compiled.
_BUCKET = 8


def embed_prompts(
    encode: EncodeText,
    tokens: Int[np.ndarray, "T L"],
    *,
    batch: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "T E"]:
    """Embeds prompts in batches of equal length, each cut behind its longest prompt.

    Cutting changes nothing, attention being causal, and short prompts cost a sixth of a full context (measured).

    Args:
        encode: the text tower, int32 `[batch, l]` to `[batch, E]`; sees few different shapes.
        tokens: as the tokenizer gives them, padded with 0.
        progress: called with (done, all) after each batch.
    """
    done, total, out = 0, len(tokens), None
    for rows, length in _batches(tokens, batch):
        block = np.zeros((batch, length), np.int32)
        block[: len(rows)] = tokens[rows, :length]
        embedded = np.asarray(encode(block), np.float32)[: len(rows)]
        if out is None:
            out = np.empty((total, embedded.shape[-1]), np.float32)
        out[rows] = embedded
        done += len(rows)
        if progress is not None:
            progress(done, total)
    if out is None:
        raise ValueError("there are no prompts to embed: the vocabulary is empty")
    return out


def _batches(tokens: np.ndarray, batch: int) -> Iterator[tuple[np.ndarray, int]]:
    lengths = tokens.argmax(axis=-1) + 1
    buckets = np.minimum(-(-lengths // _BUCKET) * _BUCKET, tokens.shape[1])
    for length in np.unique(buckets):
        members = np.flatnonzero(buckets == length)
        for start in range(0, len(members), batch):
            yield members[start : start + batch], int(length)


def average_templates(embeddings: Float[np.ndarray, "T E"], templates: int) -> Float[np.ndarray, "S E"]:
    """Unit embeddings of a synonym's `templates` prompts, averaged and normalised again: one row a synonym."""
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    rows = unit.reshape(-1, templates, unit.shape[-1]).mean(axis=1)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class TextClassifier:
    """Rows of text for any vocabulary. Every synonym is embedded once per text tower, then read from disk.

    The cache is a folder of one small file a synonym, under a key made of the tower's fingerprint and the templates,
    so a new vocabulary costs only its new words. A cache that cannot be written or read is only slower.
    """

    def __init__(
        self,
        encode: EncodeText,
        *,
        embed_dim: int,
        fingerprint: str | None = None,
        cache_dir: str | os.PathLike | None = None,
    ):
        """`fingerprint` names the weights of the text tower; without it, or without `cache_dir`, nothing is kept on
        disk."""
        self._encode, self._embed_dim = encode, embed_dim
        self._memory: dict[str, np.ndarray] = {}
        self._folder = None
        if fingerprint and cache_dir is not None:
            key = hashlib.sha256("\n".join([fingerprint, *TEMPLATES]).encode()).hexdigest()
            self._folder = Path(cache_dir) / key[:32]

    def rows(
        self, vocabulary: Vocabulary, *, progress: Callable[[int, int], None] | None = None
    ) -> Float[np.ndarray, "S E"]:
        """One unit row a synonym, in the vocabulary's order.

        Raises:
            ValueError: a prompt is longer than CLIP's context; the words are named.
        """
        words = list(dict.fromkeys(vocabulary.synonyms))
        new = [word for word in words if word not in self._memory and not self._read(word)]
        if new:
            overlong = vocabulary.overlong()
            if overlong:
                shown = ", ".join(repr(word[:60]) for word in overlong[:3])
                raise ValueError(f"too long for CLIP's text tower, which reads 77 tokens a prompt: {shown}")
            embedded = embed_prompts(self._encode, tokenize(fill_templates(new)), progress=progress)
            for word, row in zip(new, average_templates(embedded, len(TEMPLATES)), strict=True):
                self._memory[word] = row
                self._write(word, row)
        return np.stack([self._memory[word] for word in vocabulary.synonyms])

    def _path(self, word: str) -> Path:
        return self._folder / (hashlib.sha256(word.encode("utf-8", "surrogatepass")).hexdigest() + ".npy")

    def _read(self, word: str) -> bool:
        if self._folder is None:
            return False
        try:
            row = np.load(self._path(word), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        if row.shape != (self._embed_dim,) or row.dtype != np.float32 or not np.isfinite(row).all():
            return False
        self._memory[word] = row
        return True

    def _write(self, word: str, row: np.ndarray) -> None:
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".partial", delete=False) as file:
                np.save(file, row)
            Path(file.name).replace(self._path(word))
        except OSError as error:
            logging.getLogger(__name__).warning("text embeddings are not cached: %s", error)
            self._folder = None
