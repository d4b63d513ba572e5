import gzip
import html
import json
import subprocess
import sys
import time
from importlib import resources
from itertools import pairwise
from pathlib import Path

import ftfy
import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.vocabulary import Tokenizer, encode, fill_templates, token_count, tokenize
from fcclip_jax.vocabulary.tokenizer import END, START, _clean

ROOT = Path(__file__).parents[2]
ORACLE = ROOT.parent / "shared" / "oracle" / "text_convnext_large_d_320.npz"


class SlowTokenizer:
    """The method as it is told in words, on strings: look for the pair of lowest rank, join it everywhere, again."""

    def __init__(self):
        table = (resources.files("fcclip_jax.vocabulary") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
        merges = [tuple(line.split()) for line in gzip.decompress(table).decode().splitlines()[1:48895]]
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
        rest = [b for b in range(256) if b not in printable]
        self.letters = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(rest)}
        singles = [self.letters[b] for b in printable + rest]
        tokens = singles + [s + "</w>" for s in singles] + [a + b for a, b in merges]
        self.ids = {token: n for n, token in enumerate(tokens)}

    def encode(self, text):
        text = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
        ids = []
        pattern = r"<start_of_text>|<end_of_text>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
        for word in regex.findall(pattern, text, regex.IGNORECASE):
            if word in ("<start_of_text>", "<end_of_text>"):
                ids.append(49406 + (word == "<end_of_text>"))
                continue
            parts = [self.letters[b] for b in word.encode()]
            parts[-1] += "</w>"
            while known := [pair for pair in pairwise(parts) if pair in self.ranks]:
                best = min(known, key=self.ranks.get)
                joined, n = [], 0
                while n < len(parts):
                    hit = tuple(parts[n : n + 2]) == best
                    joined.append("".join(best) if hit else parts[n])
                    n += 2 if hit else 1
                parts = joined
            ids += [self.ids[part] for part in parts]
        return ids


SLOW = SlowTokenizer()


def test_the_published_example():
    # CLIP's ids for this sentence, known from its own documentation and tests.
    row = tokenize(["a photo of a cat."])[0]
    assert row[:8].tolist() == [49406, 320, 1125, 539, 320, 2368, 269, 49407]
    assert not row[8:].any()
    assert row.shape == (77,)
    assert row.dtype == np.int32


def test_golden_of_open_clip():
    golden = json.loads((ROOT / "tests" / "golden" / "tokenizer.json").read_text(encoding="ascii"))
    assert len(golden) > 300
    wrong = [(text, ids, encode(text)) for text, ids in golden if encode(text) != ids]
    assert not wrong, f"{len(wrong)} texts differ, the first: {wrong[0]!a}"


@pytest.mark.skipif(not ORACLE.exists(), reason="the oracle's files are not beside this checkout")
def test_tokens_of_the_oracle():
    oracle = np.load(ORACLE)
    np.testing.assert_array_equal(tokenize(oracle["prompts"].tolist()), oracle["tokens"])
    np.testing.assert_array_equal(tokenize(oracle["ade_first28_prompts"].tolist()), oracle["ade_first28_tokens"])


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=300)
def test_equals_the_slow_reference(text):
    assert encode(text) == SLOW.encode(text)


@given(st.text(alphabet="abcdehilnorst'", max_size=60))
@settings(deadline=None, max_examples=300)
def test_equals_the_slow_reference_where_many_merges_compete(text):
    assert encode(text) == SLOW.encode(text)


@given(st.text(alphabet=st.characters(min_codepoint=0, max_codepoint=0x7F), max_size=60))
@settings(deadline=None, max_examples=300)
def test_short_cut_for_plain_text_changes_nothing(text):
    assert _clean(text) == " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def test_special_tokens_are_read_from_the_text():
    assert encode("<START_OF_TEXT> <end_of_text>") == [START, END]
    assert START not in encode("<|startoftext|>")


def test_empty_texts():
    assert encode("") == encode(" \x00\n") == []
    assert tokenize([""])[0, :3].tolist() == [START, END, 0]
    assert tokenize([]).shape == (0, 77)


@given(st.lists(st.text(max_size=30), max_size=4), st.integers(2, 20))
@settings(deadline=None, max_examples=100)
def test_rows_are_start_tokens_end_zeros(texts, context_length):
    rows = tokenize(texts, context_length)
    assert rows.shape == (len(texts), context_length)
    for text, row in zip(texts, rows, strict=True):
        kept = encode(text)[: context_length - 2]
        assert row.tolist() == [START, *kept, END] + [0] * (context_length - 2 - len(kept))


def test_a_cut_text_is_announced_by_its_count():
    fits, too_long = "cat " * 75, "cat " * 76
    assert (token_count(fits), token_count(too_long)) == (77, 78)
    np.testing.assert_array_equal(tokenize([fits]), tokenize([too_long]))
    assert tokenize([too_long])[0, -1] == END


def test_a_very_long_word_takes_no_quadratic_time():
    letters = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 200_000))
    before = time.perf_counter()
    ids = encode(letters)
    # About half a second; joining the pairs one pass at a time takes hours.
    assert time.perf_counter() - before < 30
    assert 50_000 < len(ids) < 150_000


def test_words_remembered_do_not_change_the_answer():
    fresh = Tokenizer()
    prompts = fill_templates(["cat", "sofa"])
    np.testing.assert_array_equal(fresh.tokenize(prompts), tokenize(prompts))
    np.testing.assert_array_equal(fresh.tokenize(prompts), tokenize(prompts))


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="list of texts"):
        tokenize("cat")
    with pytest.raises(TypeError):
        tokenize(["cat", 3])
    with pytest.raises(ValueError, match="at least 2"):
        tokenize(["cat"], context_length=1)


def test_no_jax_is_loaded_for_words():
    code = "import sys, fcclip_jax.vocabulary as v; v.tokenize(['cat']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
