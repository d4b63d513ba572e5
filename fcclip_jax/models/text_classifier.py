"""Words to rows of the classifier: prompts through the text tower, averaged over the templates (ViLD)."""

import contextlib
import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from fcclip_jax.vocabulary.prompts import TEMPLATES, fill_templates
from fcclip_jax.vocabulary.tokenizer import tokenize
from fcclip_jax.vocabulary.vocabulary import Vocabulary

EncodeText = Callable[[np.ndarray], Array]

# Shapes of the token batches are rounded up to these, so that few are compiled.
_LENGTHS, _ROWS = 8, 16

_DIGEST = hashlib.sha256().digest_size


def embed_prompts(
    encode: EncodeText,
    tokens: Int[np.ndarray, "T L"],
    *,
    batch: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "T E"]:
    """Embeds prompts in batches of similar length, each cut behind its longest prompt.

    Cutting changes nothing, attention being causal, and short prompts cost a sixth of a full context (measured).

    Args:
        encode: the text tower, int32 `[b,l]` to `[b,E]`; `b` is a power of two from 16 up to `batch`, `l` a multiple
            of 8 (or the whole context).
        tokens: as the tokenizer gives them, padded with 0.
        progress: called with (done, all) after each batch.

    Raises:
        ValueError: there are no prompts.
    """
    if not len(tokens):
        raise ValueError("there are no prompts to embed: the vocabulary is empty")
    lengths = tokens.argmax(axis=-1) + 1  # end-of-text has the highest id
    order = np.argsort(lengths, kind="stable")
    parts = []
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        length = min(-(-lengths[rows[-1]] // _LENGTHS) * _LENGTHS, tokens.shape[1])
        block = np.zeros((min(max(_ROWS, 1 << (len(rows) - 1).bit_length()), batch), length), np.int32)
        block[: len(rows)] = tokens[rows, :length]
        parts.append(np.asarray(encode(block), np.float32)[: len(rows)])
        if progress is not None:
            progress(start + len(rows), len(order))
    embedded = np.empty((len(order), parts[0].shape[1]), np.float32)
    embedded[order] = np.concatenate(parts)
    return embedded


def average_templates(embeddings: Float[np.ndarray, "T E"], templates: int) -> Float[np.ndarray, "S E"]:
    """Unit embeddings of a synonym's `templates` prompts, averaged and normalised again: one row a synonym."""
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    rows = unit.reshape(-1, templates, unit.shape[-1]).mean(axis=1)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class TextClassifier:
    """Rows of text for any vocabulary. Every synonym is embedded once per text tower, then read from disk.

    The cache is a folder of one small file a synonym, under a key made of the tower's fingerprint and the templates,
    so a new vocabulary costs only its new words. A file holds the row as little-endian float32 and the SHA-256 of
    that; one that is damaged in any way is made anew. A cache that cannot be written or read is only slower.
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

        Args:
            progress: called with (prompts done, prompts in all) while new words are embedded.

        Raises:
            ValueError: a prompt is longer than CLIP's context (the words are named), or the text tower gives what is
                no number.
        """
        words = list(dict.fromkeys(vocabulary.synonyms))
        new = [word for word in words if word not in self._memory and not self._read(word)]
        if new:
            self._embed(new, vocabulary, progress)
        return np.stack([self._memory[word] for word in vocabulary.synonyms])

    def remember(self, words: Sequence[str], rows: Float[np.ndarray, "S E"]) -> None:
        """Takes unit rows that were embedded before, one a word."""
        self._memory.update(zip(words, rows, strict=True))

    def _embed(self, words: list[str], vocabulary: Vocabulary, progress: Callable[[int, int], None] | None) -> None:
        overlong = vocabulary.overlong()
        if overlong:
            shown = ", ".join(repr(word[:60]) for word in overlong[:3])
            more = f" and {len(overlong) - 3} more" if len(overlong) > 3 else ""
            raise ValueError(f"too long for CLIP's text tower, which reads 77 tokens a prompt: {shown}{more}")
        # What is kept on disk must not depend on how an accelerator multiplies by default.
        with jax.default_matmul_precision("float32"):
            embedded = embed_prompts(self._encode, tokenize(fill_templates(words)), progress=progress)
        rows = average_templates(embedded, len(TEMPLATES))
        if not np.isfinite(rows).all():
            raise ValueError("the text tower gives NaN or infinite embeddings: the weights are not sound")
        for word, row in zip(words, rows, strict=True):
            self._memory[word] = row
            self._write(word, row)

    def _path(self, word: str) -> Path:
        return self._folder / hashlib.sha256(word.encode("utf-8")).hexdigest()

    def _read(self, word: str) -> bool:
        if self._folder is None:
            return False
        try:
            data = self._path(word).read_bytes()
        except OSError:
            return False
        row, digest = data[:-_DIGEST], data[-_DIGEST:]
        if len(row) != 4 * self._embed_dim or hashlib.sha256(row).digest() != digest:
            return False
        self._memory[word] = np.frombuffer(row, "<f4").astype(np.float32)
        return True

    def _write(self, word: str, row: np.ndarray) -> None:
        if self._folder is None:
            return
        path = self._path(word)
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            data = row.astype("<f4").tobytes()
            aside.write_bytes(data + hashlib.sha256(data).digest())
            aside.replace(path)
        except OSError as error:
            logging.getLogger(__name__).warning("text embeddings are not kept for the next run: %s", error)
            self._folder = None
            with contextlib.suppress(OSError):
                aside.unlink()
