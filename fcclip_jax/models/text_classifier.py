"""Words to rows of the classifier: prompts through the text tower, averaged over the templates (ViLD)."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Array, Float, Int

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
