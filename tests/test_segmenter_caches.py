"""What a second run need not do again: words are embedded and programs compiled once."""

import logging

import jax
import numpy as np
import pytest

from fcclip_jax.cache_folder import cache_directory
from fcclip_jax.models import text_classifier, weights
from fcclip_jax.segmenter import Segmenter
from fcclip_jax.vocabulary.vocabulary import Vocabulary

SIZES = {"min_size": 64, "max_size": 64}


@pytest.fixture
def embedded(monkeypatch):
    """How many prompts go through the text tower."""
    counts = []

    def counted(encode, tokens, **options):
        counts.append(len(tokens))
        return real(encode, tokens, **options)

    real = text_classifier.embed_prompts
    monkeypatch.setattr(text_classifier, "embed_prompts", counted)
    return counts


def test_words_are_embedded_once(tiny_model, tmp_path, embedded):
    first = Segmenter.from_checkpoint(tiny_model, cache_dir=tmp_path, **SIZES)
    progress = []
    first.prepare(["dog", "cat,kitten"], progress=lambda done, total: progress.append((done, total)))
    assert embedded == [3 * 14] and progress[-1] == (42, 42)
    first.prepare("kitten; dog")
    assert embedded == [42]
    # A new process, in effect: only the new word goes through the tower.
    second = Segmenter.from_checkpoint(tiny_model, cache_dir=tmp_path, **SIZES)
    second.prepare(["dog", "cat,kitten"])
    assert embedded == [42]
    second.prepare(["dog", "cow"])
    assert embedded == [42, 14]
    np.testing.assert_array_equal(
        first._text.rows(Vocabulary.parse(["dog", "cat"])), second._text.rows(Vocabulary.parse(["dog", "cat"]))
    )


def test_models_with_other_text_towers_share_no_words(tiny_model, tmp_path, embedded):
    Segmenter.from_checkpoint(tiny_model, cache_dir=tmp_path).prepare("dog;")
    card, graphdef, state = weights.load_model(tiny_model)
    parameters = weights.parameters_of(state)
    name = next(name for name in parameters if name.startswith(weights.TEXT_TOWER))
    parameters[name] = parameters[name] + np.float32(1e-3)
    shapes = weights.parameter_shapes(card.config)
    fingerprint = weights.text_sha256(shapes, parameters.__getitem__)
    other = weights.ModelCard(card.config, card.train_classes, text_sha256=fingerprint)
    Segmenter(other, graphdef, weights.state_from_parameters(state, parameters), cache_dir=tmp_path).prepare("dog;")
    assert embedded == [14, 14]


def test_models_of_one_architecture_share_their_programs(tiny_model):
    first, second = (Segmenter.from_checkpoint(tiny_model) for _ in range(2))
    assert first._model._run is second._model._run


def test_where_the_caches_are(monkeypatch, tmp_path):
    monkeypatch.setenv("FCCLIP_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("FCCLIP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "fcclip_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "fcclip_jax"


def test_a_cache_that_cannot_be_written_only_warns(tiny_model, tmp_path, caplog):
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with caplog.at_level(logging.WARNING):
            segmenter = Segmenter.from_checkpoint(tiny_model, cache_dir=occupied, **SIZES)
            segmenter.prepare(["dog", "cat"])
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert [record.message.split(" are not kept")[0] for record in caplog.records] == [
        "compiled programs",
        "text embeddings",
    ]
    assert occupied.read_text() == "not a folder"


def test_a_place_for_programs_that_the_user_chose_stays(tiny_model, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    try:
        Segmenter.from_checkpoint(tiny_model, cache_dir=tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert not (tmp_path / "xla").exists()
