"""CLIP's byte-pair tokenizer: text to the integers that the text tower reads.

Equal to open_clip's `SimpleTokenizer(clean='lower')` on any text (tests/parity compares them on 100,000 strings).
The method is that of Sennrich et al. (arXiv 1508.07909) on UTF-8 bytes; the table of merges is OpenAI CLIP's.

Token ids: 0..255 the bytes, 256..511 the bytes at the end of a word, then one id for each merge in order of rank,
then `START` and `END`. So the merge of rank r makes the token 512 + r, and no string can be made by two merges.
"""

import functools
import gzip
import heapq
import html
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise

import numpy as np
import regex
from jaxtyping import Int32

CONTEXT_LENGTH = 77
START, END, PAD = 49406, 49407, 0

_TABLE = "bpe_simple_vocab_16e6.txt.gz"
_FIRST_MERGE = 512
_NUM_MERGES = START - _FIRST_MERGE
_SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}
# The text is lower case already; blindness to case still counts outside ASCII, where a long s stands for an s.
_WORD = regex.compile(
    "|".join(_SPECIAL) + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def _clean(text: str) -> str:
    """Repaired (mojibake, curly quotes, ligatures, control characters), unescaped twice, one blank between words,
    lower case."""
    # Printable ASCII without an ampersand is what ftfy and html.unescape leave as it is; most prompts are that.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy  # seldom needed, and slow to come

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _read_merges(table: bytes) -> tuple[list[int], dict[tuple[int, int], int]]:
    """(token id of each byte, rank of each pair of tokens) from the gzipped table of merges.

    The table writes a byte that is not printable Latin-1 as a letter from U+0100 on; the ids count the printable
    bytes first.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    letters = [chr(byte) for byte in printable] + [chr(0x100 + n) for n in range(len(others))]
    byte_ids = [0] * 256
    for token, byte in enumerate(printable + others):
        byte_ids[byte] = token
    tokens = {letter: token for token, letter in enumerate(letters + [letter + "</w>" for letter in letters])}
    ranks = {}
    # The first line is a comment; the table goes on beyond the merges that CLIP uses.
    lines = gzip.decompress(table).decode("utf-8").split("\n")[1 : _NUM_MERGES + 1]
    for rank, line in enumerate(lines):
        left, right = line.split()
        ranks[tokens[left], tokens[right]] = rank
        tokens[left + right] = _FIRST_MERGE + rank
    return byte_ids, ranks


class Tokenizer:
    """Text to token ids. One instance remembers the words it has met; `tokenize` and `encode` below share one."""

    def __init__(self):
        table = (resources.files("fcclip_jax.vocabulary") / _TABLE).read_bytes()
        self._byte_ids, self._ranks = _read_merges(table)
        self._encode_word = functools.lru_cache(maxsize=1 << 16)(self._merge)

    def _merge(self, word: str) -> tuple[int, ...]:
        """Token ids of one word: the adjacent pair of lowest rank is joined, leftmost first, until none is left.

        A heap of pairs over a linked list of tokens: n log n, so that a long run of letters costs no n^2. A new
        token's own pairs always rank after the merge that made it, so the heap visits the ranks in order.
        """
        if word in _SPECIAL:
            return (_SPECIAL[word],)
        tokens: list[int | None] = [self._byte_ids[byte] for byte in word.encode("utf-8")]
        tokens[-1] += 256
        size = len(tokens)
        before, after = list(range(-1, size - 1)), list(range(1, size + 1))
        heap = [(self._ranks[pair], i) for i, pair in enumerate(pairwise(tokens)) if pair in self._ranks]
        heapq.heapify(heap)
        while heap:
            rank, i = heapq.heappop(heap)
            j = after[i]
            if j == size or self._ranks.get((tokens[i], tokens[j])) != rank:
                continue  # one of the two has been merged meanwhile
            tokens[i], tokens[j] = _FIRST_MERGE + rank, None
            after[i] = after[j]
            if after[i] < size:
                before[after[i]] = i
            for left, right in ((before[i], i), (i, after[i])):
                if left >= 0 and right < size and (tokens[left], tokens[right]) in self._ranks:
                    heapq.heappush(heap, (self._ranks[tokens[left], tokens[right]], left))
        return tuple(token for token in tokens if token is not None)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, however many, without start, end and padding. Blank text gives an empty list; a lone
        surrogate becomes U+FFFD, as in open_clip (ftfy does it).

        Raises TypeError when `text` is not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text to tokenize must be a string, this is {type(text).__name__}: {text!r:.60}")
        return [token for word in _WORD.findall(_clean(text)) for token in self._encode_word(word)]

    def token_count(self, text: str) -> int:
        """How many tokens `text` takes with start and end; `tokenize` cuts what exceeds its `context_length`."""
        return len(self.encode(text)) + 2

    def tokenize(self, texts: Sequence[str], context_length: int = CONTEXT_LENGTH) -> Int32[np.ndarray, "T _"]:
        """One row a text: START, its tokens, END, zeros. `[T, context_length]` int32.

        A text that is too long is cut so that END stands last, as open_clip does; `token_count` tells beforehand.

        Raises TypeError for anything but a sequence of strings, ValueError for a context shorter than 2.
        """
        if isinstance(texts, str):
            raise TypeError(f"tokenize takes a list of texts, this is one string: {texts!r:.60}")
        if context_length < 2:
            raise ValueError(f"a context of {context_length} tokens has no room for start and end: give at least 2")
        rows = np.full((len(texts), context_length), PAD, dtype=np.int32)
        for row, text in zip(rows, texts, strict=True):
            tokens = [START, *self.encode(text)[: context_length - 2], END]
            row[: len(tokens)] = tokens
        return rows


@functools.cache
def _shared() -> Tokenizer:
    """Built on first use: reading the table takes about a tenth of a second."""
    return Tokenizer()


def encode(text: str) -> list[int]:
    """`Tokenizer.encode` of the shared tokenizer."""
    return _shared().encode(text)


def token_count(text: str) -> int:
    """`Tokenizer.token_count` of the shared tokenizer."""
    return _shared().token_count(text)


def tokenize(texts: Sequence[str], context_length: int = CONTEXT_LENGTH) -> Int32[np.ndarray, "T _"]:
    """`Tokenizer.tokenize` of the shared tokenizer."""
    return _shared().tokenize(texts, context_length)
