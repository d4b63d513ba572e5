"""The scenes that are shipped, and what the demo says of them."""

import numpy as np
import pytest

from fcclip_jax import emoji_demo
from fcclip_jax.segmenter import PanopticMap, Result
from fcclip_jax.structures import Segment
from fcclip_jax.training.validation import new_counts
from fcclip_jax.vocabulary import Vocabulary
from fcclip_jax.world.names import THINGS, vocabulary


@pytest.fixture(scope="module")
def records():
    return emoji_demo.records()


def truth(record):
    colours = np.asarray(record.decode()[1]).astype(np.int32)
    return colours[..., 0] + 256 * colours[..., 1]


def test_shipped_scenes_show_things_that_no_mask_was_trained_on(records):
    assert len(records) == len(emoji_demo.SCENES)
    unseen = {row for row, thing in enumerate(THINGS) if not thing.seen}
    for record in records:
        assert record.decode()[0].size == (256, 256)
        assert len(unseen & set(record.classes.tolist())) >= 2


def told(record, words, spoiled=()):
    """A result that is the truth in other words, but for segments that are missed."""
    ids, segments = truth(record), []
    for id_, row in zip(record.segment_ids, record.classes, strict=True):
        names = set(vocabulary().classes[row].names)
        ours = [n for n, cls in enumerate(words.classes) if names & set(cls.names)]
        if ours and row not in spoiled:
            cls = words.classes[ours[0]]
            segments.append(Segment(int(id_), ours[0], cls.name, cls.isthing, 1.0, int((ids == id_).sum())))
        else:
            ids = np.where(ids == id_, 0, ids)
    panoptic = ids.astype(np.int32).view(PanopticMap)
    panoptic.segments = segments
    image = np.asarray(record.decode()[0])
    return Result(image, words, panoptic, segments, None, None)


def test_quality_is_counted_over_the_words_alone(records):
    record = records[0]
    names = [vocabulary().classes[row].names[-1] for row in record.classes]  # a synonym where there is one
    words = emoji_demo.as_stuff(Vocabulary.parse([names[0], names[-1], "zeppelin"]))
    counts = new_counts(words)
    emoji_demo._count(counts, told(record, words), truth(record), record.segment_ids, record.classes)
    assert counts.compute()["PQ"] == pytest.approx(100) and counts.compute()["n"] == 2
    counts = new_counts(words)
    missed = told(record, words, spoiled=(record.classes[-1],))
    emoji_demo._count(counts, missed, truth(record), record.segment_ids, record.classes)
    assert counts.compute()["PQ"] == pytest.approx(50)


def test_words_for_stuff_are_taken_as_stuff():
    words = emoji_demo.as_stuff(Vocabulary.parse("fox; lawn; zeppelin"))
    assert words.isthing.tolist() == [True, False, True]


def test_the_demo_writes_and_says_what_to_do_next(tiny_model, tmp_path, capsys):
    assert emoji_demo.run(tmp_path / "out", words="fox; grass", checkpoint=tiny_model) == 0
    said = capsys.readouterr().out
    assert "--vocabulary" in said and str(tmp_path / "out") in said
    for stem in emoji_demo.SCENES:
        assert (tmp_path / "out" / f"{stem}.overlay.png").is_file() and stem in said
