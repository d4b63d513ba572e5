"""Words to rows: batches of prompts, the mean over the templates, and the cache on disk."""

import concurrent.futures
import logging
import math
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.models.clip_text import ClipText, TextConfig
from fcclip_jax.models.text_classifier import TextClassifier, average_templates, embed_prompts
from fcclip_jax.vocabulary.prompts import TEMPLATES
from fcclip_jax.vocabulary.tokenizer import CONTEXT_LENGTH, END, START, tokenize
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from tests.models.modules import filled

EMBED = 6


def encode(tokens):
    """A text tower of a kind: what it gives depends on all tokens up to END and their places, and on nothing behind."""
    tokens = np.asarray(tokens)
    end = tokens.argmax(axis=1)
    places = np.arange(tokens.shape[1])
    used = np.where(places <= end[:, None], tokens * (1.0 + places), 0).sum(axis=1)
    return np.sin(used[:, None] / 1e4 + np.arange(1, EMBED + 1)).astype(np.float32) + 1.5


def prompts(lengths):
    """Token rows of these lengths, all different."""
    rows = np.zeros((len(lengths), CONTEXT_LENGTH), np.int32)
    for number, length in enumerate(lengths):
        rows[number, 0] = START
        rows[number, 1 : length - 1] = 1 + (number * 7 + np.arange(length - 2)) % 40000
        rows[number, length - 1] = END
    return rows


# ---------------------------------------------------------------------------------------------------- batches


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, CONTEXT_LENGTH), min_size=1, max_size=70), st.sampled_from([16, 32, 128]))
def test_prompts_come_back_in_their_order(lengths, batch):
    tokens = prompts(lengths)
    shapes, progress = [], []

    def watched(block):
        shapes.append(block.shape)
        return encode(block)

    out = embed_prompts(watched, tokens, batch=batch, progress=lambda *state: progress.append(state))
    np.testing.assert_array_equal(out, encode(tokens))
    # No batch is larger than it needs to be, and few shapes are compiled.
    assert len(shapes) == math.ceil(len(lengths) / batch)
    assert all(rows in (16, 32, 64, 128) and (length % 8 == 0 or length == CONTEXT_LENGTH) for rows, length in shapes)
    assert sum(rows for rows, _ in shapes) < max(2 * len(lengths), 17)
    assert [length for _, length in shapes] == sorted(length for _, length in shapes)
    assert min(CONTEXT_LENGTH, max(lengths)) <= shapes[-1][1] < max(lengths) + 8
    assert [done for done, _ in progress] == [min(batch * (n + 1), len(lengths)) for n in range(len(shapes))]
    assert {total for _, total in progress} == {len(lengths)}


def test_short_prompts_do_not_wait_for_long_ones():
    shapes = []
    lengths = [70] + [9] * 127 + [7] * 128
    embed_prompts(lambda block: shapes.append(block.shape) or encode(block), prompts(lengths))
    assert shapes == [(128, 8), (128, 72)]


def test_without_prompts():
    with pytest.raises(ValueError, match="vocabulary is empty"):
        embed_prompts(encode, np.zeros((0, CONTEXT_LENGTH), np.int32))


def test_the_text_tower_gives_the_same_for_a_cut_context():
    config = TextConfig(width=8, heads=2, layers=2, vocab_size=END + 1)
    tower = filled(lambda rngs: ClipText(config, EMBED, rngs=rngs))
    run = jax.jit(lambda tokens: tower(tokens))
    tokens = tokenize(["a photo of a cat.", "sky", "There is a large wooden table in the scene.", "", "x " * 75])
    whole = np.asarray(run(jnp.asarray(tokens)))
    # Sums of a row's terms are cut differently in each shape.
    np.testing.assert_allclose(embed_prompts(lambda x: run(jnp.asarray(x)), tokens[:4]), whole[:4], atol=1e-4)
    # What stands behind the end of a text never reaches it.
    noisy = np.where(np.arange(CONTEXT_LENGTH) > tokens.argmax(1)[:, None], 1234, tokens)
    assert (noisy != tokens).any()
    np.testing.assert_allclose(run(jnp.asarray(noisy)), whole, atol=1e-4)


def test_templates_are_averaged_on_the_sphere_by_hand():
    # Two words of two templates: (3,4)/5 and (1,0) have the mean (0.8, 0.2 x 2); (0,1) and (1,0) have (0.5, 0.5).
    rows = average_templates(np.array([[3, 4], [1, 0], [0, 2], [5, 0]], np.float32), 2)
    np.testing.assert_allclose(rows, np.array([[2, 1], [1, 1]]) / np.sqrt([[5], [2]]), rtol=1e-6)


# -------------------------------------------------------------------------------------------------------- cache


def vocabulary(*words):
    return Vocabulary.parse(list(words))


class Counting:
    """A text classifier that counts the prompts it embeds."""

    def __init__(self, folder, fingerprint="tower", embed_dim=EMBED):
        self.prompts = 0
        self.classifier = TextClassifier(self.encode, embed_dim=embed_dim, fingerprint=fingerprint, cache_dir=folder)

    def encode(self, tokens):
        self.prompts += int((np.asarray(tokens) == END).any(axis=1).sum())
        return encode(tokens)

    def rows(self, *words):
        return self.classifier.rows(vocabulary(*words))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_rows_are_those_of_the_definition(tmp_path):
    found = Counting(tmp_path).rows("cat,kitten", "sky", "big cat")
    for row, word in zip(found, ("cat", "kitten", "sky", "big cat"), strict=True):
        embedded = encode(tokenize([template.format(word) for template in TEMPLATES])).astype(np.float64)
        mean = (embedded / np.linalg.norm(embedded, axis=1, keepdims=True)).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_only_new_words_are_embedded(tmp_path):
    first = Counting(tmp_path)
    rows = first.rows("cat,kitten", "sky")
    assert first.prompts == 3 * len(TEMPLATES)
    np.testing.assert_array_equal(first.rows("sky", "cat,kitten"), rows[[2, 0, 1]])
    assert first.prompts == 3 * len(TEMPLATES)
    # Another process: the words are read, a new one is embedded, one that stands twice once.
    second = Counting(tmp_path)
    np.testing.assert_array_equal(second.rows("cat,kitten", "sky"), rows)
    assert second.prompts == 0
    second.rows("dog,dog", "sky", "cat,puss")
    assert second.prompts == 2 * len(TEMPLATES)
    assert len(files(tmp_path)) == 5


def test_other_weights_other_rows(tmp_path):
    Counting(tmp_path, "one").rows("cat")
    other = Counting(tmp_path, "two")
    other.rows("cat")
    assert other.prompts == len(TEMPLATES) and len(files(tmp_path)) == 2


def test_without_a_fingerprint_nothing_is_kept(tmp_path):
    for classifier in (Counting(tmp_path, fingerprint=""), Counting(None)):
        classifier.rows("cat")
    assert files(tmp_path) == []


def test_names_of_words_are_safe_file_names(tmp_path):
    words = ["../../escape", "a/b", "x" * 60, "CON", "猫", "🐈", "nul\0byte", "."]
    Counting(tmp_path).rows(*words)
    again = Counting(tmp_path)
    again.rows(*words)
    assert again.prompts == 0
    (folder,) = {path.parent for path in files(tmp_path)}
    assert folder.parent == tmp_path and len(files(tmp_path)) == len(words)


_DAMAGE = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-1],
    "a row short": lambda data: data[4:],
    "grown": lambda data: data + b"\0",
    "a bit flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "not a number": lambda data: b"\xff" * 4 + data[4:],
    "zeros": lambda data: bytes(len(data)),
    "something else": lambda data: b"PK\x03\x04 a zip file",
    "a pickle": lambda data: b"cos\nsystem\n(S'exit 1'\ntR.",
}


@pytest.mark.parametrize("damage", _DAMAGE.values(), ids=_DAMAGE)
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    rows = Counting(tmp_path).rows("cat", "dog")
    path = files(tmp_path)[0]
    path.write_bytes(damage(path.read_bytes()))
    second = Counting(tmp_path)
    np.testing.assert_array_equal(second.rows("cat", "dog"), rows)
    assert second.prompts == len(TEMPLATES)
    third = Counting(tmp_path)
    np.testing.assert_array_equal(third.rows("cat", "dog"), rows)
    assert third.prompts == 0


def test_rows_of_another_width_are_made_anew(tmp_path):
    Counting(tmp_path).rows("cat")
    wider = TextClassifier(
        lambda tokens: np.tile(encode(tokens), 2), embed_dim=2 * EMBED, fingerprint="tower", cache_dir=tmp_path
    )
    assert wider.rows(vocabulary("cat")).shape == (1, 2 * EMBED)


def test_a_folder_in_place_of_a_file(tmp_path, caplog):
    rows = Counting(tmp_path).rows("cat")
    (path,) = files(tmp_path)
    path.unlink()
    path.mkdir()
    second = Counting(tmp_path)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(second.rows("cat"), rows)
    assert second.prompts == len(TEMPLATES) and "not kept for the next run" in caplog.text
    assert files(tmp_path) == []


@pytest.mark.parametrize("when", ["folder", "write", "rename"])
def test_a_cache_that_cannot_be_written_only_warns_once(tmp_path, caplog, monkeypatch, when):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied", "/read/only")

    method = {"folder": "mkdir", "write": "write_bytes", "rename": "replace"}[when]
    monkeypatch.setattr(f"fcclip_jax.models.text_classifier.Path.{method}", refused)
    classifier = Counting(tmp_path)
    with caplog.at_level(logging.WARNING):
        rows = classifier.rows("cat", "dog", "sky")
        np.testing.assert_array_equal(classifier.rows("sky", "cat"), rows[[2, 0]])
    assert classifier.prompts == 3 * len(TEMPLATES)
    assert len(caplog.records) == 1 and "Permission denied" in caplog.text
    assert files(tmp_path) == []


def test_embeddings_that_are_no_numbers_are_refused_and_not_kept(tmp_path):
    broken = TextClassifier(
        lambda tokens: np.full((len(tokens), EMBED), np.nan, np.float32),
        embed_dim=EMBED,
        fingerprint="tower",
        cache_dir=tmp_path,
    )
    with pytest.raises(ValueError, match="NaN or infinite embeddings"):
        broken.rows(vocabulary("cat"))
    assert files(tmp_path) == []


def test_words_over_77_tokens_are_named(tmp_path):
    words = ["cat", *(f"{n} " + "very " * 80 + "long" for n in range(5))]
    classifier = Counting(tmp_path)
    with pytest.raises(ValueError, match=r"77 tokens a prompt: '0 very.*', '1 very.*', '2 very.*' and 2 more") as error:
        classifier.rows(*words)
    assert "cat" not in str(error.value) and len(str(error.value)) < 400
    assert classifier.prompts == 0


def test_writers_at_the_same_time(tmp_path):
    words = [f"word {n}" for n in range(20)]
    expected = Counting(None).rows(*words)
    start = threading.Barrier(4)

    def work(number):
        start.wait(timeout=30)
        return Counting(tmp_path).rows(*words[number:], *words[:number])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for number, rows in enumerate(pool.map(work, range(4))):
            np.testing.assert_allclose(np.roll(rows, number, axis=0), expected, rtol=1e-6)
    assert len(files(tmp_path)) == len(words)
    last = Counting(tmp_path)
    np.testing.assert_allclose(last.rows(*words), expected, rtol=1e-6)
    assert last.prompts == 0


def test_a_process_that_dies_while_it_writes_leaves_no_row(tmp_path):
    """The row is written beside its place: what is left under another name is never read."""
    rows = Counting(tmp_path).rows("cat")
    (path,) = files(tmp_path)
    path.rename(path.with_name(path.name + ".0123.partial"))
    second = Counting(tmp_path)
    np.testing.assert_array_equal(second.rows("cat"), rows)
    assert second.prompts == len(TEMPLATES)
