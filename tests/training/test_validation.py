"""Panoptic quality during a training: the truth scores 100, what is missed or misnamed is counted."""

import dataclasses

import numpy as np
import pytest

from fcclip_jax import emoji_demo
from fcclip_jax.data.targets import panoptic_ids
from fcclip_jax.structures import Segment
from fcclip_jax.training.validation import evaluate_panoptic, new_counts
from fcclip_jax.world.names import vocabulary


def quality(change):
    """PQ of the shipped scenes, where `change` makes of the true (map, segments) what is found."""
    words, counts = vocabulary(), new_counts(vocabulary())
    records = list(emoji_demo.records())
    answers = []
    for record in records:
        ids = panoptic_ids(np.asarray(record.decode()[1])).astype(np.int32)
        pairs = zip(record.segment_ids, record.classes, strict=True)
        answers.append(change(ids, [Segment(int(i), int(c), words.names[c], True, 1.0, 1) for i, c in pairs]))
    waiting = iter(answers)
    evaluate_panoptic(lambda image: next(waiting), records, counts)
    return counts.compute()["PQ"]


def test_the_truth_scores_100():
    assert quality(lambda ids, segments: (ids, segments)) == 100


def test_nothing_found_scores_0():
    assert quality(lambda ids, segments: (np.zeros_like(ids), [])) == 0


def test_one_segment_in_each_scene_misnamed():
    def misnamed(ids, segments):
        first = dataclasses.replace(segments[0], category_id=(segments[0].category_id + 1) % len(vocabulary().names))
        return ids, [first, *segments[1:]]

    assert 0 < quality(misnamed) < 100


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError):
        quality(lambda ids, segments: (ids[:-1], segments))
