import dataclasses
import pickle

import numpy as np
import pytest

from fcclip_jax.data.loader import TrainLoader
from fcclip_jax.vocabulary.tokenizer import tokenize
from fcclip_jax.world.names import STUFF, THINGS
from fcclip_jax.world.pairs import CLASSES, PARTS, PairBatches, name_rows, shares
from fcclip_jax.world.scenes import Piece


@pytest.fixture(scope="module")
def batches(sprite_folder):
    return PairBatches(str(sprite_folder), batch_size=16, seed=7)


@pytest.fixture(scope="module")
def batch(batches):
    return batches[3]


def test_canvases_hold_nine_four_or_one_pictures(batch):
    pictures = (batch["present"].sum(-1) > 0).sum(-1)
    assert pictures.tolist() == [9] * 9 + [4] * 5 + [1] * 2
    for parts, count in zip(batch["parts"], pictures, strict=True):
        # All parts are of one size, and no cell is left out.
        assert np.bincount(parts.ravel()).tolist() == [36 // count] * count


def test_what_a_picture_shows_adds_up_to_one(batch):
    total = batch["present"].sum(-1)
    assert np.isin(np.round(total, 5), (0, 1)).all()
    things = batch["present"][..., : len(THINGS)].sum(-1)[total > 0]
    assert (np.isclose(things, 0) | np.isclose(things, 0.8)).all()  # stuff has a fifth, or all
    assert 0 < (things == 0).mean() < 0.4  # one in ten shows stuff alone


def test_a_caption_stands_where_a_picture_is(batch):
    blank = tokenize([""], 24)[0]
    has_words = (batch["tokens"] != blank).any(-1)
    assert np.array_equal(has_words, batch["present"].sum(-1) > 0)


def test_every_batch_brings_a_sentence_of_every_class(batch):
    assert batch["names"].shape[0] * batch["names"].shape[1] >= CLASSES
    order = np.concatenate([name_rows(place, 16) for place in range(16)])
    assert order[:CLASSES].tolist() == list(range(CLASSES))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one(batches, batch, processes):
    parts = [dataclasses.replace(batches, process_index=n, process_count=processes)[3] for n in range(processes)]
    for key, whole in batch.items():
        assert np.array_equal(np.concatenate([part[key] for part in parts]), whole), key


def test_the_loader_resumes_where_it_stood(sprite_folder):
    small = PairBatches(str(sprite_folder), batch_size=1, seed=7)
    assert len(pickle.dumps(small)) < 1000
    with TrainLoader(small, workers=0, threads=1, buffered=1) as loader:
        next(loader)
        place = loader.get_state()
        second = next(loader)
        loader.set_state(place)
        again = next(loader)
    assert all(np.array_equal(second[key], again[key]) for key in second)
    assert second["image_id"] == 1 and not np.array_equal(second["image"], small[0]["image"])


def test_shares_by_hand():
    row = shares((Piece(False, 2), Piece(True, 5, "noto"), Piece(True, 9, "noto"), Piece(True, 5, "twemoji")))
    expected = np.zeros(len(THINGS) + len(STUFF))
    expected[[5, 9]] = 0.4
    expected[len(THINGS) + 2] = 0.2
    np.testing.assert_allclose(row, expected, atol=1e-7)  # float32
    assert PARTS == 9
