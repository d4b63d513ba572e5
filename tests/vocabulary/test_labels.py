"""The lists that come with the package, against the datasets' own facts."""

import json
from pathlib import Path

import numpy as np
import pytest

from fcclip_jax.vocabulary import Vocabulary, builtin_names

SHARED = Path(__file__).parents[3] / "shared"
CATEGORIES = SHARED / "samples" / "panoptic_coco_categories.json"
ORACLE = SHARED / "oracle" / "vocabularies.json"


@pytest.mark.parametrize(
    ("name", "num_things", "num_stuff"),
    [("coco_panoptic", 80, 53), ("ade20k_150", 100, 50), ("cityscapes_19", 8, 11)],
)
def test_counts(name, num_things, num_stuff):
    isthing = Vocabulary.builtin(name).isthing
    assert (isthing.sum(), (~isthing).sum()) == (num_things, num_stuff)


@pytest.mark.parametrize("name", builtin_names())
def test_every_list_is_plain(name):
    vocabulary = Vocabulary.builtin(name)
    for cls in vocabulary.classes:
        assert len(set(cls.names)) == len(cls.names), cls
        for word in cls.names:
            assert word.isascii() and word.isprintable() and word == word.strip(), cls
            assert word.replace("-", " ").replace("'", "").replace(" ", "").isalpha(), cls
    assert len({name.lower() for name in vocabulary.names}) == vocabulary.num_classes
    assert all(cls.id is not None for cls in vocabulary.classes)


@pytest.mark.parametrize("name", builtin_names())
def test_every_prompt_fits(name):
    assert Vocabulary.builtin(name).overlong() == []


@pytest.mark.parametrize("name", ["coco_panoptic", "ade20k_150", "cityscapes_19"])
def test_no_word_stands_in_two_classes(name):
    synonyms = Vocabulary.builtin(name).synonyms
    assert len(set(synonyms)) == len(synonyms)


def _natural(name: str) -> str:
    """A COCO category name as words: `wall-brick` is a brick wall, `sky-other-merged` the sky."""
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(suffix)
    noun, dash, kind = name.partition("-")
    if noun == "window":
        return f"{noun} {kind}".strip()
    return f"{kind} {noun}" if dash else {"playingfield": "playing field"}.get(name, name)


@pytest.mark.skipif(not CATEGORIES.exists(), reason="the COCO samples are not beside this checkout")
def test_coco_is_the_datasets_own_list():
    categories = sorted(json.loads(CATEGORIES.read_text(encoding="utf-8")), key=lambda entry: entry["id"])
    classes = Vocabulary.builtin("coco_panoptic").classes
    assert [cls.id for cls in classes] == [entry["id"] for entry in categories]
    assert [cls.isthing for cls in classes] == [bool(entry["isthing"]) for entry in categories]
    assert [cls.name for cls in classes] == [_natural(entry["name"]) for entry in categories]
    assert Vocabulary.builtin("coco_panoptic").isthing[:80].all()


def test_cityscapes_in_order_of_train_ids():
    classes = Vocabulary.builtin("cityscapes_19").classes
    # The label ids that the dataset's own script maps to the train ids 0..18.
    assert [cls.id for cls in classes] == [
        7,
        8,
        11,
        12,
        13,
        17,
        19,
        20,
        21,
        22,
        23,
        24,
        25,
        26,
        27,
        28,
        31,
        32,
        33,
    ]
    assert [cls.isthing for cls in classes] == [False] * 11 + [True] * 8


def test_ade20k_in_order():
    classes = Vocabulary.builtin("ade20k_150").classes
    assert [cls.id for cls in classes] == list(range(150))
    landmarks = {
        0: "wall",
        12: "person",
        20: "car",
        43: "signboard",
        76: "boat",
        100: "poster",
        127: "bicycle",
    }
    assert {n: classes[n].name for n in landmarks} == landmarks
    assert classes[149].name == "flag"


@pytest.mark.skipif(not ORACLE.exists(), reason="the oracle's files are not beside this checkout")
def test_ade20k_against_the_reference():
    facts = json.loads(ORACLE.read_text(encoding="utf-8"))["ade"]
    ade = Vocabulary.builtin("ade20k_150")
    assert np.flatnonzero(ade.isthing).tolist() == facts["thing_contiguous_ids"]
    # Each class shares a word with the reference's class of that index; it calls 25 `house exterior`, we `house`.
    strangers = [
        n
        for n, (cls, words) in enumerate(zip(ade.classes, facts["stuff_classes"], strict=True))
        if set(cls.names).isdisjoint(words.split(","))
    ]
    assert strangers == [25]


@pytest.mark.skipif(not ORACLE.exists(), reason="the oracle's files are not beside this checkout")
def test_seen_classes_are_those_of_the_published_protocol():
    facts = json.loads(ORACLE.read_text(encoding="utf-8"))["ade"]
    seen = Vocabulary.builtin("ade20k_150").seen(Vocabulary.builtin("coco_panoptic"))
    # Our own synonyms, the same split into seen and unseen, but for `house`, which both datasets call so.
    assert np.flatnonzero(seen != np.array(facts["category_overlapping_mask"], bool)).tolist() == [25]
