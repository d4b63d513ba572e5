"""The public API on the tiny model, with weights by formula."""

import pickle
from itertools import pairwise

import numpy as np
import pytest

import fcclip_jax
from fcclip_jax import segmenter as segmenter_module
from fcclip_jax.models import weights
from fcclip_jax.segmenter import Segmenter
from fcclip_jax.structures import Instance
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from tests.pictures import photo

WORDS = ["cup", "saucer,plate", "table [stuff]"]
# Every photo is stored in 64 x 64: one program to compile.
SIZES = {"min_size": 64, "max_size": 64}


@pytest.fixture(scope="module")
def segmenter(tiny_model, tmp_path_factory):
    return Segmenter.from_checkpoint(tiny_model, cache_dir=tmp_path_factory.mktemp("cache"), **SIZES)


@pytest.fixture(scope="module")
def result(segmenter):
    return segmenter(photo(90, 120), WORDS, overlap_threshold=0.3)


# ------------------------------------------------------------------------------------------------- results


def test_a_result_is_consistent(result):
    assert result.panoptic.shape == (90, 120) and result.panoptic.dtype == np.int32
    assert result.vocabulary.names == ("cup", "saucer", "table")
    # The formula weights find something in this picture, or the checks below would check nothing.
    assert len(result.segments) >= 2
    assert [s.id for s in result.segments] == list(range(1, len(result.segments) + 1))
    for segment in result.segments:
        assert segment.area == (result.panoptic == segment.id).sum() > 0
        assert segment.name == result.vocabulary.names[segment.category_id]
        assert segment.isthing == (segment.name != "table")
        assert 0 < segment.score <= 1
    assert set(np.unique(result.panoptic)) <= {0, *(s.id for s in result.segments)}
    assert result.semantic.shape == (90, 120) and result.semantic.dtype == np.uint8 and result.semantic.max() < 3
    assert result.instances and all(isinstance(i, Instance) and i.name != "table" for i in result.instances)
    assert all(a.score >= b.score for a, b in pairwise(result.instances))
    assert result.instances[0].mask.shape == (90, 120)


def test_the_panoptic_map_knows_its_segments(result):
    assert result.panoptic.segments is result.segments
    assert result.panoptic[:10].segments is result.segments
    again = pickle.loads(pickle.dumps(result))
    assert again.panoptic.segments == result.segments == again.segments
    np.testing.assert_array_equal(again.panoptic, result.panoptic)


def test_drawing(segmenter, result):
    drawn = result.draw()
    assert drawn.shape == result.image.shape and drawn.dtype == np.uint8
    assert (drawn != result.image).any()
    np.testing.assert_array_equal(
        result.draw(alpha=0.0, labels=False)[result.panoptic == 0], result.image[result.panoptic == 0]
    )
    semantic = segmenter(photo(90, 120), WORDS, tasks=["semantic"])
    assert (semantic.draw() != semantic.draw(labels=False)).any()
    with pytest.raises(ValueError, match="panoptic or the semantic"):
        segmenter(photo(90, 120), WORDS, tasks=["instance"]).draw()


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_one_task_gives_what_all_together_give(segmenter, result, task):
    alone = segmenter(photo(90, 120), WORDS, tasks=[task], overlap_threshold=0.3)
    for name, attributes in {
        "panoptic": ("panoptic", "segments"),
        "semantic": ("semantic",),
        "instance": ("instances",),
    }.items():
        for attribute in attributes:
            value = getattr(alone, attribute)
            if name != task:
                assert value is None
            else:
                np.testing.assert_equal(value, getattr(result, attribute))


def test_thresholds_change_the_segments(segmenter):
    encoded = segmenter.encode(photo(90, 120))
    loose, strict = (segmenter.name(encoded, WORDS, overlap_threshold=t) for t in (0.0, 1.0))
    assert len(loose.segments) > len(strict.segments)
    best = max(s.score for s in loose.segments)
    assert segmenter.name(encoded, WORDS, overlap_threshold=0.0, object_threshold=best).segments == []


def test_an_image_is_encoded_once_for_many_vocabularies(segmenter, result, monkeypatch):
    encoded = segmenter.encode(result.image)
    monkeypatch.setattr(segmenter, "_encode", None)
    again = segmenter.name(encoded, WORDS, overlap_threshold=0.3)
    assert again.segments == result.segments
    other = segmenter.name(encoded, ["dog", "street,road", "sky"], overlap_threshold=0.3)
    assert other.vocabulary.names == ("dog", "street", "sky")
    assert other.semantic.shape == (90, 120)


def test_every_way_to_give_a_vocabulary(segmenter, result, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("cup\nsaucer,plate\ntable [stuff]\n")
    for words, stuff in (
        ("cup; saucer, plate; table", "table"),
        (labels, None),
        (str(labels), None),
        (Vocabulary.parse(WORDS), None),
        (iter(WORDS), None),
        (["cup", "saucer,plate", "table"], ["table"]),
    ):
        again = segmenter(result.image, words, stuff=stuff, overlap_threshold=0.3)
        assert again.segments == result.segments
        np.testing.assert_array_equal(again.panoptic, result.panoptic)


def test_seen_classes_lean_on_the_other_classifier(segmenter):
    # "cup" was trained on, "zyzzyva" was not; the same rows under another name would give the same logits.
    assert segmenter.train_vocabulary.num_classes == 133
    words = Vocabulary.parse(["cup", "zyzzyva"])
    assert words.seen(segmenter.train_vocabulary).tolist() == [True, False]
    rows, classes, seen = segmenter._text_arguments(words)
    assert seen.tolist() == [True, False]
    predictions = segmenter.encode(photo(90, 120)).predictions
    right, wrong = (
        segmenter._model.classify(predictions, rows, classes, flags).class_log_probs
        for flags in (seen, np.zeros(2, bool))
    )
    assert np.abs(right - wrong).max() > 1e-3


@pytest.mark.parametrize(
    "image, problem",
    [
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8), np.uint8), "8, 8"),
        (np.zeros((8, 8, 4), np.uint8), "8, 8, 4"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
    ],
)
def test_what_is_no_image_is_refused(segmenter, image, problem):
    # The suite's type checks would refuse these first, with a message for programmers.
    with pytest.raises(ValueError, match=problem):
        segmenter_module._checked(image)


@pytest.mark.parametrize("options, problem", [
    ({"tasks": []}, "tasks"),
    ({"tasks": ["panoptc"]}, "panoptc"),
    ({"stuff": "dog"}, "dog"),
])  # fmt: skip
def test_options_that_make_no_sense(segmenter, options, problem):
    with pytest.raises(ValueError, match=problem):
        segmenter(photo(90, 120), WORDS, **options)


@pytest.mark.parametrize("words", ["", [], ["cup", "Cup"], ["cup", " "], ["cup", "x" * 400], ["cup", "\udc80"]])
def test_vocabularies_that_make_no_sense(segmenter, words):
    with pytest.raises(ValueError):
        segmenter(photo(90, 120), words)


def test_any_script_is_a_word(segmenter):
    found = segmenter(photo(90, 120), ["猫", "🐈‍⬛", "<|endoftext|>", "naïve\tcafé", "&amp;", "{}"])
    assert found.semantic.max() < 6


# ----------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("height, width", [(1, 1), (1, 5000), (2, 3), (64, 96)])
def test_photos_of_extreme_shapes(segmenter, height, width):
    found = segmenter(photo(height, width), WORDS)
    assert found.panoptic.shape == found.semantic.shape == (height, width)
    assert found.draw().shape == (height, width, 3)
    assert all(i.rle["size"] == [height, width] for i in found.instances)


def test_the_longer_edge_wins_over_the_shorter(tiny_model, private_cache):
    segmenter = Segmenter.from_checkpoint(tiny_model, min_size=800, max_size=64)
    assert segmenter.encode(photo(90, 120)).network_size == (48, 64)
    assert segmenter(photo(90, 120), WORDS).panoptic.shape == (90, 120)


# ---------------------------------------------------------------------------------------------------- stream

# One stored shape, several sizes in it with and without padding, and a last batch that is not full.
SHAPES = [(90, 120), (60, 80), (44, 33), (60, 60), (96, 200)]


@pytest.fixture(scope="module")
def alone(segmenter):
    photos = [photo(*shape, seed) for shape, seed in zip(SHAPES, (25, 5, 8, 18, 21), strict=True)]
    return photos, [segmenter(image, WORDS, overlap_threshold=0.3) for image in photos]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_stream_gives_what_each_photo_gives_alone(segmenter, alone, batch_size):
    photos, expected = alone
    assert sum(len(result.segments) for result in expected) > len(photos)
    streamed = dict(segmenter.stream(photos, WORDS, batch_size=batch_size, overlap_threshold=0.3))
    assert streamed.keys() == set(range(len(photos)))
    for index, result in enumerate(expected):
        found = streamed[index]
        np.testing.assert_array_equal(found.image, photos[index])
        # A batch changes how matrix products are cut, and so the order of sums: a pixel on the border between two
        # segments may fall to the other one. (On the machine where this was written none did.)
        few = 0.001 if batch_size > 1 else 0
        assert np.mean(found.panoptic != result.panoptic) <= few
        assert np.mean(found.semantic != result.semantic) <= few
        assert [s.category_id for s in found.segments] == [s.category_id for s in result.segments]
        np.testing.assert_allclose([s.score for s in found.segments], [s.score for s in result.segments], atol=1e-5)


def test_photos_of_many_sizes_share_a_batch(tiny_model, tmp_path):
    # Two sizes in one bucket of 64 x 96; tests/models/test_extent.py has more, at every stage.
    segmenter = Segmenter.from_checkpoint(tiny_model, cache_dir=tmp_path, min_size=64, max_size=96)
    photos = [photo(60, 90, 1), photo(50, 200, 2)]
    inputs = [segmenter._preprocess(image) for image in photos]
    assert {x.stored.shape for x in inputs} == {(64, 96, 3)}
    assert {x.padded_size for x in inputs} == {(64, 96), (32, 96)}
    text = segmenter._text_arguments(Vocabulary.parse(WORDS))
    for image, together in zip(photos, segmenter._encode(inputs), strict=True):
        # The reference: the image alone, padded to multiples of 32 and no further.
        alone = segmenter.forward(image, WORDS)
        h, w = (size // 4 for size in together.padded_size)
        assert alone["masks"][-1].shape[2:] == (h, w)
        masks = np.asarray(together.predictions.masks)
        np.testing.assert_allclose(masks[..., :h, :w], alone["masks"][-1], rtol=1e-4, atol=1e-4 * np.abs(masks).max())
        found = segmenter._model.classify(together.predictions, *text).class_log_probs
        np.testing.assert_allclose(found, alone["class_log_probs"], atol=2e-4)


def test_class_probabilities_in_a_batch_are_those_alone(segmenter):
    photos = [photo(90, 120, seed) for seed in range(2)]
    text = segmenter._text_arguments(Vocabulary.parse(WORDS))
    together = segmenter._encode([segmenter._preprocess(image) for image in photos])
    for image, in_batch in zip(photos, together, strict=True):
        ours, alone = (
            segmenter._model.classify(encoded.predictions, *text).class_log_probs
            for encoded in (in_batch, segmenter.encode(image))
        )
        # As above; logits reach 100, float32 keeps seven digits.
        np.testing.assert_allclose(ours, alone, atol=2e-4)


def test_a_stream_in_single_photos_keeps_the_order(segmenter, alone):
    photos, _ = alone
    assert [index for index, _ in segmenter.stream(photos, WORDS)] == list(range(len(photos)))


@pytest.fixture
def events(segmenter, monkeypatch):
    """What happens in a stream, in order; nothing is computed."""
    seen = []
    monkeypatch.setattr(segmenter, "max_size", 96)
    encode = lambda inputs: (seen.append(("encode", len(inputs), inputs[0].stored.shape)), [None] * len(inputs))[1]  # noqa: E731
    monkeypatch.setattr(segmenter, "_encode", encode)
    monkeypatch.setattr(segmenter, "name", lambda encoded, words, **options: seen.append("name"))
    return seen


def reading(photos, events):
    for index, image in enumerate(photos):
        events.append(f"read {index}")
        yield image


def test_the_next_photo_is_read_while_the_device_works(segmenter, events):
    photos = [photo(90, 120)] * 3
    for index, _ in segmenter.stream(reading(photos, events), WORDS):
        events.append(f"take {index}")
    order = [event if isinstance(event, str) else "start" for event in events]
    assert order == [
        *("read 0", "start"),
        *("read 1", "name", "start", "take 0"),
        *("read 2", "name", "start", "take 1"),
        *("name", "take 2"),
    ]  # fmt: skip


def test_every_stored_shape_is_compiled_for_one_batch_size(segmenter, events):
    shapes = [(90, 120), (120, 90), (60, 80), (80, 80), (80, 60), (33, 44), (70, 95), (40, 30)]
    photos = [photo(*shape) for shape in shapes]
    assert len(list(segmenter.stream(photos, WORDS, batch_size=3))) == len(photos)
    batches = [event[1:] for event in events if event != "name"]
    assert {size for size, _ in batches} == {3}
    # Four landscapes, three portraits, one square: two batches, one, one.
    assert sorted(shape for _, shape in batches) == [(64, 64, 3), (64, 96, 3), (64, 96, 3), (96, 64, 3)]


def test_few_photos_wait_for_others_of_their_size(segmenter, events, monkeypatch):
    # Room for two photos and what the network gets of them: 90 x 120 and 64 x 96 pixels, 3 bytes and 3 floats each.
    monkeypatch.setattr(segmenter_module, "_WAITING_BYTES", 2 * (90 * 120 * 3 + 64 * 96 * 3 * 4))
    shapes = [(90, 120), (120, 90), (90, 120), (90, 90), (120, 90), (90, 120), (120, 90), (90, 90)] * 2
    photos = [photo(*shape) for shape in shapes]
    done, most = set(), 0
    for index, _ in segmenter.stream(reading(photos, events), WORDS, batch_size=8):
        read = sum(str(event).startswith("read") for event in events)
        most = max(most, read - len(done))
        done.add(index)
    assert done == set(range(len(photos)))
    # Two wait, one breaks the bound; the batch that is running holds two more at most, and one is being handed out.
    assert most <= 5


def test_a_stream_without_photos(segmenter):
    assert list(segmenter.stream([], WORDS)) == []


def test_a_stream_refuses_what_it_cannot_use(segmenter):
    with pytest.raises(ValueError, match="at least one photo"):
        next(segmenter.stream([photo(9, 9)], WORDS, batch_size=0))
    with pytest.raises(ValueError, match="dog"):
        next(segmenter.stream([photo(9, 9)], WORDS, stuff="dog"))


# ------------------------------------------------------------------------------------------------ the forward pass


def test_the_named_intermediates(tiny_model):
    # The size of the goldens, whose program another file of this suite has compiled.
    out = Segmenter.from_checkpoint(tiny_model, min_size=128, max_size=160).forward(photo(128, 160), WORDS)
    shapes = {key: value.shape for key, value in out.items() if not isinstance(value, list)}
    assert shapes == {
        "stem": (1, 32, 40, 16),
        "res2": (1, 32, 40, 16),
        "res3": (1, 16, 20, 32),
        "res4": (1, 8, 10, 64),
        "res5": (1, 4, 5, 128),
        "mask_features": (1, 32, 40, 32),
        "pooled": (1, 10, 128),
        "clip_embed": (1, 10, 32),
        "out_vocabulary_logits": (1, 10, 4),
        "class_log_probs": (1, 10, 4),
    }
    lists = {key: [x.shape for x in value] for key, value in out.items() if isinstance(value, list)}
    scales = [(1, 4, 5, 32), (1, 8, 10, 32), (1, 16, 20, 32)]
    assert lists == {
        "input_proj": scales,
        "multi_scale": scales,
        "encoder_layers": [(1, 20 + 80 + 320, 32)] * 2,
        "queries": [(1, 10, 32)] * 3,
        "masks": [(1, 10, 32, 40)] * 3,
        "logits": [(1, 10, 4)] * 3,
        "blocked": [(1, 10, 20), (1, 10, 80), (1, 10, 320)],
    }
    # Probabilities with void: they add up to 1 but for the 1e-8 on each.
    np.testing.assert_allclose(np.exp(out["class_log_probs"]).sum(-1), 1, atol=1e-5)


# --------------------------------------------------------------------------------------------- beginnings


def test_the_package_offers_the_segmenter():
    assert fcclip_jax.Segmenter is Segmenter
    with pytest.raises(AttributeError, match="Segmentr"):
        fcclip_jax.Segmentr  # noqa: B018


def test_the_packages_model_has_sizes_of_its_own():
    segmenter = Segmenter.shipped()
    assert (segmenter.min_size, segmenter.max_size) == (256, 512)
    assert Segmenter.shipped(min_size=64).min_size == 64
    assert segmenter.card.provenance.keys() >= {"commit", "config", "hours", "hardware", "claims"}


@pytest.mark.parametrize(
    "name, problem",
    [("clip.visual.stem.kernel", "the weights, or the image"), ("clip.text.positional_embedding", "text tower gives")],
)
def test_weights_that_are_no_numbers_are_said_to_be_so(tiny_model, tmp_path, name, problem):
    card, graphdef, state = weights.load_model(tiny_model)
    parameters = weights.parameters_of(state)
    parameters[name] = np.full_like(parameters[name], np.nan)
    broken = weights.state_from_parameters(state, parameters)
    segmenter = Segmenter(card, graphdef, broken, cache_dir=tmp_path, **SIZES)
    with pytest.raises(ValueError, match=problem):
        segmenter(photo(90, 120), WORDS)
    # Rows of a broken tower are not kept.
    assert (tmp_path / "text").exists() == name.startswith("clip.visual")


@pytest.mark.slow
def test_an_image_of_400_million_pixels(segmenter):
    # 20000 x 20000; a minute and 4 GB on two cores.
    image = np.broadcast_to(photo(200, 200)[:, None, :, None], (200, 100, 200, 100, 3)).reshape(20000, 20000, 3)
    found = segmenter(image, WORDS, tasks=["panoptic"])
    assert found.panoptic.shape == (20000, 20000)
    assert sum(s.area for s in found.segments) == np.count_nonzero(found.panoptic)
