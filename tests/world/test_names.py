from collections import Counter

import numpy as np
import pytest

from fcclip_jax.vocabulary import Vocabulary
from fcclip_jax.world.captions import caption, one_name, plural
from fcclip_jax.world.names import STUFF, STYLES, THINGS, thing_id, vocabulary
from fcclip_jax.world.prepare import categories, label_lines
from fcclip_jax.world.scenes import Piece


def test_the_world_is_as_large_as_the_experiment_needs():
    seen = [thing for thing in THINGS if thing.seen]
    assert len(seen) >= 80 and len(THINGS) - len(seen) >= 40 and 12 <= len(STUFF) <= 14
    assert len(STYLES) == 6 and STYLES[-1] == "emojione"


def test_no_word_names_two_classes():
    words = vocabulary().synonyms
    assert [word for word, count in Counter(words).items() if count > 1] == []


def test_seen_classes_are_those_with_a_seen_name():
    seen = vocabulary().seen(vocabulary(seen_only=True))
    assert seen[: len(THINGS)].tolist() == [thing.seen for thing in THINGS]
    assert seen[len(THINGS) :].all()


def test_label_file_reads_back(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text(label_lines(vocabulary()))
    assert Vocabulary.from_file(path) == vocabulary()
    assert [c["id"] for c in categories()] == [cls.id for cls in vocabulary().classes]
    assert [bool(c["isthing"]) for c in categories()] == vocabulary().isthing.tolist()


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("fox", "foxes"),
        ("cherry", "cherries"),
        ("key", "keys"),
        ("slice of pizza", "slices of pizza"),
        ("scissors", "scissors"),
        ("tomato", "tomatoes"),
        ("palm tree", "palm trees"),
    ],
)
def test_plural(name, many):
    assert plural(name) == many


def test_captions_name_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    slugs = [thing.slug for thing in THINGS]
    pieces = [Piece(False, 1), Piece(True, slugs.index("fox"), "noto"), Piece(True, slugs.index("owl"), "noto")]
    texts = [caption(rng, pieces) for _ in range(50)]
    assert all("fox" in text and "owl" in text for text in texts)
    stuff = [any(name in text for name in STUFF[1]) for text in texts]
    assert 5 < sum(stuff) < 45  # 40 % on average; beyond 10 standard deviations
    others = [names for n, names in enumerate(STUFF) if n != 1]
    assert not any(f", {name}" in text for text in texts for names in others for name in names)


def test_one_name_takes_synonyms_and_plurals():
    rng = np.random.default_rng(0)
    texts = " | ".join(one_name(rng, ("bee", "honeybee")) for _ in range(200))
    assert "honeybees" in texts and "a bee" in texts


def test_thing_ids_keep_away_from_stuff():
    assert thing_id(len(THINGS) - 1) < 201
