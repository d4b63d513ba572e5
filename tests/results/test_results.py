import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import results_reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fcclip_jax.results import TASKS, compute_results, pixels, results

VOCABULARIES = [(name, pad) for name in ("ade", "coco") for pad in ("", ".pad")]


def log_probs_of(probs):
    """Log-probabilities whose softmax is `probs`, given without void: void has the rest."""
    probs = np.asarray(probs, np.float64)
    return np.log(np.concatenate([probs, 1 - probs.sum(axis=1, keepdims=True)], axis=1)).astype(np.float32)


def run(masks, log_probs, output_size, network_size=None, isthing=None, **options):
    masks = np.asarray(masks, np.float32)
    isthing = np.ones(log_probs.shape[1] - 1, bool) if isthing is None else isthing
    return compute_results(
        masks,
        log_probs,
        network_size=network_size or (4 * masks.shape[1], 4 * masks.shape[2]),
        output_size=output_size,
        names=[f"class {k}" for k in range(len(isthing))],
        isthing=isthing,
        **options,
    )


def golden_run(golden, name, pad, **options):
    return run(
        golden["mask_logits" + pad],
        golden[f"{name}{pad}/class_log_probs"],
        tuple(golden["output_size" + pad].tolist()),
        tuple(golden["network_size" + pad].tolist()),
        golden[name + "/isthing"],
        max_instances=20,  # what the golden was made with
        **options,
    )


@pytest.mark.parametrize(("name", "pad"), VOCABULARIES)
@pytest.mark.parametrize("overlap_threshold", [0.8, 0.3, 0.0])
def test_panoptic_equals_the_reference(golden, name, pad, overlap_threshold):
    got = golden_run(golden, name, pad, tasks=["panoptic"], overlap_threshold=overlap_threshold)
    key = f"{name}{pad}/{{}}.{overlap_threshold}"
    assert got.panoptic.dtype == np.int32
    np.testing.assert_array_equal(got.panoptic, golden[key.format("panoptic")])
    segments = [(s.id, s.category_id, s.isthing) for s in got.segments]
    assert segments == [tuple(row) for row in golden[key.format("segments")].tolist()]
    assert [s.area for s in got.segments] == [(got.panoptic == s.id).sum() for s in got.segments]
    assert got.semantic is None and got.instances is None


@pytest.mark.parametrize(("name", "pad"), [("ade", ""), ("ade", ".pad"), ("coco", ".pad")])
def test_semantic_equals_the_reference(golden, name, pad):
    got = golden_run(golden, name, pad, tasks=["semantic"]).semantic
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, golden[f"{name}{pad}/semantic"])


@pytest.mark.parametrize(("name", "pad"), VOCABULARIES)
def test_instances_equal_the_reference(golden, name, pad):
    got = golden_run(golden, name, pad, tasks=["instance"]).instances
    scores = golden[f"{name}{pad}/instance_scores"]
    order = np.argsort(-scores, kind="stable")
    # 1e-5: the reference sums up to 66000 sigmoids in float32
    np.testing.assert_allclose([i.score for i in got], scores[order], rtol=1e-5)
    assert [i.category_id for i in got] == golden[f"{name}{pad}/instance_classes"][order].tolist()
    size = golden["output_size" + pad]
    masks = np.unpackbits(golden[f"{name}{pad}/instance_masks"], axis=1, count=size.prod())
    for instance, mask in zip(got, masks[order], strict=True):
        np.testing.assert_array_equal(instance.mask, mask.reshape(size))


def test_two_queries_by_hand():
    """Cells [4, -4] and [-4, 4] across 8 columns: 4, 4, 3, 1, -1, -3, -4, -4, and the mirror image."""
    masks = [[[4, -4]], [[-4, 4]]]
    log_probs = log_probs_of([[0.9, 0.05], [0.1, 0.6]])
    got = run(masks, log_probs, (4, 8), isthing=np.array([True, False]), tasks=TASKS, max_instances=2)
    # column 4: query 0 has 0.9 x sigmoid(-1) = 0.24, query 1 has 0.6 x sigmoid(1) = 0.44
    np.testing.assert_array_equal(got.panoptic, [[1, 1, 1, 1, 2, 2, 2, 2]] * 4)
    np.testing.assert_array_equal(got.semantic, [[0, 0, 0, 0, 1, 1, 1, 1]] * 4)
    first, second = got.segments
    assert (first.id, first.name, first.isthing, first.area) == (1, "class 0", True, 16)
    assert (second.id, second.name, second.isthing, second.area) == (2, "class 1", False, 16)
    assert [first.score, second.score] == pytest.approx([0.9, 0.6], rel=1e-6)
    (instance,) = got.instances  # the best two pairs are (0, class 0) and (1, class 1), which is stuff
    sigmoids = [1 / (1 + np.exp(-x)) for x in (4, 4, 3, 1)]
    assert instance.score == pytest.approx(0.9 * np.mean(sigmoids), rel=1e-6)
    np.testing.assert_array_equal(instance.mask, [[1, 1, 1, 1, 0, 0, 0, 0]] * 4)
    assert (instance.category_id, instance.name) == (0, "class 0")


def test_a_covered_query_is_dropped_and_its_pixels_stay_empty():
    """Query 0 covers all 32 pixels and wins the right half: 16 / 32."""
    masks, log_probs = [[[4, 4]], [[4, -4]]], log_probs_of([[0.5, 0.1], [0.1, 0.9 - 1e-3]])
    got = run(masks, log_probs, (4, 8), tasks=["panoptic"])
    np.testing.assert_array_equal(got.panoptic, [[1, 1, 1, 1, 0, 0, 0, 0]] * 4)
    assert [(s.category_id, s.area) for s in got.segments] == [(1, 16)]
    got = run(masks, log_probs, (4, 8), tasks=["panoptic"], overlap_threshold=0.5)
    np.testing.assert_array_equal(got.panoptic, [[2, 2, 2, 2, 1, 1, 1, 1]] * 4)


def test_first_of_equal_queries_wins():
    masks = np.full((3, 1, 1), 2.0)
    got = run(masks, log_probs_of([[0.1, 0.2], [0.2, 0.6], [0.6, 0.2]]), (4, 4), tasks=["panoptic"])
    assert [(s.category_id, s.area) for s in got.segments] == [(1, 16)]


predictions = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "cells": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "cut": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "output": st.tuples(st.integers(1, 24), st.integers(1, 24)),
        "overlap_threshold": st.sampled_from([0.0, 0.3, 0.8]),
        "object_threshold": st.sampled_from([0.0, 0.5]),
        "max_instances": st.sampled_from([1, 5, 100]),
    }
)


@given(predictions)
@settings(deadline=None, max_examples=40)
def test_random_predictions_against_the_slow_way(p):
    rng = np.random.default_rng(p["seed"])
    masks = rng.normal(size=(6, *p["cells"])).astype(np.float32) * 4
    masks[5] = -3  # an empty mask
    log_probs = (rng.normal(size=(6, 5)) * 2).astype(np.float32)
    log_probs[:2, 3] += 5  # two queries of one stuff class
    isthing = np.array([True, True, False, False])
    network = (4 * p["cells"][0] - p["cut"][0], 4 * p["cells"][1] - p["cut"][1])
    options = {key: p[key] for key in ("overlap_threshold", "object_threshold", "max_instances")}
    got = run(masks, log_probs, p["output"], network, isthing, **options)

    logits = results_reference.upsample(masks, network, p["output"])
    probs, sigmoids = results_reference.softmax(log_probs), results_reference.sigmoid(logits)
    scores = results_reference.class_scores(probs, sigmoids)
    # Where two candidates or a threshold are closer than float32 can tell, either answer is right.
    weighted = np.sort(probs.max(axis=1)[:, None, None] * sigmoids, axis=0)
    gaps = [
        np.diff(weighted, axis=0).min(),
        np.diff(np.sort(scores, axis=0), axis=0).min(),
        np.abs(logits).min(),
    ]
    assume(min(gaps) > 1e-6)
    expected, segments = results_reference.panoptic(
        probs, sigmoids, isthing, p["overlap_threshold"], p["object_threshold"]
    )
    np.testing.assert_array_equal(got.panoptic, expected)
    assert [(s.id, s.category_id, s.area) for s in got.segments] == [(s[0], s[1], s[3]) for s in segments]
    # 1e-5: float32 softmax of logits up to about 10
    np.testing.assert_allclose([s.score for s in got.segments], [s[2] for s in segments], rtol=1e-5)
    np.testing.assert_array_equal(got.semantic, scores.argmax(axis=0))
    scores_got = [i.score for i in got.instances]
    assert scores_got == sorted(scores_got, reverse=True)
    # Equal scores (of empty masks) have no order: compare as sets.
    found = sorted((i.category_id, i.mask.tobytes(), i.score) for i in got.instances)
    instances = results_reference.instances(probs, logits, isthing, p["max_instances"])
    expected = sorted((label, mask.tobytes(), score) for label, mask, score in instances)
    assert [i[:2] for i in found] == [i[:2] for i in expected]
    np.testing.assert_allclose([i[2] for i in found], [i[2] for i in expected], rtol=1e-5)


def random_predictions(queries=20, cells=(12, 10), classes=7, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.normal(size=(queries, *cells)).astype(np.float32) * 4
    return masks, (rng.normal(size=(queries, classes + 1)) * 2).astype(np.float32)


def equal_results(a, b):
    np.testing.assert_array_equal(a.panoptic, b.panoptic)
    np.testing.assert_array_equal(a.semantic, b.semantic)
    assert a.segments == b.segments
    assert [(i.category_id, i.rle) for i in a.instances] == [(i.category_id, i.rle) for i in b.instances]
    # float32 partial sums over other runs of pixels
    np.testing.assert_allclose([i.score for i in a.instances], [i.score for i in b.instances], rtol=1e-5)


def test_the_length_of_a_run_does_not_matter(monkeypatch):
    masks, log_probs = random_predictions()
    whole = run(masks, log_probs, (61, 47), (45, 38))
    for length in (64, 1000, 2867):
        monkeypatch.setattr(results, "run_length", lambda width, length=length: length)
        equal_results(run(masks, log_probs, (61, 47), (45, 38)), whole)


def test_the_order_of_queries_only_numbers_the_segments():
    masks, log_probs = random_predictions()
    isthing = np.arange(7) < 4
    options = {"isthing": isthing, "overlap_threshold": 0.0}
    plain = run(masks, log_probs, (40, 50), **options)
    order = np.random.default_rng(1).permutation(len(masks))
    shuffled = run(masks[order], log_probs[order], (40, 50), **options)
    np.testing.assert_array_equal(plain.semantic, shuffled.semantic)

    def described(result):
        return sorted(
            (s.category_id, s.score, s.area, np.flatnonzero(result.panoptic == s.id).tobytes()) for s in result.segments
        )

    assert len(plain.segments) > 3
    assert described(plain) == described(shuffled)
    assert sorted((i.category_id, i.rle["counts"]) for i in plain.instances) == sorted(
        (i.category_id, i.rle["counts"]) for i in shuffled.instances
    )


def test_the_order_of_classes_only_renames():
    masks, log_probs = random_predictions()
    order = np.random.default_rng(2).permutation(7)
    isthing = np.arange(7) < 4
    plain = run(masks, log_probs, (40, 50), isthing=isthing)
    shuffled = run(masks, log_probs[:, [*order, 7]], (40, 50), isthing=isthing[order])
    np.testing.assert_array_equal(plain.panoptic, shuffled.panoptic)
    np.testing.assert_array_equal(plain.semantic, order[shuffled.semantic])
    assert [s.category_id for s in plain.segments] == [order[s.category_id] for s in shuffled.segments]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_alone_gives_what_it_gives_with_the_others(task):
    masks, log_probs = random_predictions()
    everything, alone = run(masks, log_probs, (33, 21)), run(masks, log_probs, (33, 21), tasks=[task])
    fields = {"panoptic": ("panoptic", "segments"), "semantic": ("semantic",), "instance": ("instances",)}
    for name in ("panoptic", "segments", "semantic", "instances"):
        if name in fields[task]:
            assert repr(getattr(alone, name)) == repr(getattr(everything, name))
        else:
            assert getattr(alone, name) is None


def test_only_void():
    masks, log_probs = random_predictions()
    log_probs[:, -1] = 50
    got = run(masks, log_probs, (9, 7))
    assert got.panoptic.shape == (9, 7) and got.panoptic.dtype == np.int32 and not got.panoptic.any()
    assert got.segments == []
    assert got.semantic.shape == (9, 7)
    assert len(got.instances) == 100  # the reference has no threshold here
    assert max(i.score for i in got.instances) < 1e-10
    assert run(masks, log_probs, (9, 7), tasks=["panoptic"]).segments == []


def test_only_stuff_has_no_instances():
    masks, log_probs = random_predictions()
    assert run(masks, log_probs, (9, 7), isthing=np.zeros(7, bool)).instances == []


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_photos_of_one_pixel_and_one_line(size):
    masks, log_probs = random_predictions()
    got = run(masks, log_probs, size)
    assert got.panoptic.shape == got.semantic.shape == size
    assert all(i.rle["size"] == list(size) for i in got.instances)
    logits = results_reference.upsample(masks, (48, 40), size)
    probs = results_reference.softmax(log_probs)
    expected = results_reference.class_scores(probs, results_reference.sigmoid(logits)).argmax(axis=0)
    np.testing.assert_array_equal(got.semantic, expected)


def test_many_classes_need_16_bits():
    masks, log_probs = random_predictions(classes=300)
    log_probs[:, 299] += 20
    got = run(masks, log_probs, (9, 7), tasks=["semantic"]).semantic
    assert got.dtype == np.uint16 and (got == 299).all()
    assert run(masks, log_probs[:, :257], (9, 7), tasks=["semantic"]).semantic.dtype == np.uint16
    assert run(masks, log_probs[:, :256], (9, 7), tasks=["semantic"]).semantic.dtype == np.uint8


def test_device_arrays_and_half_precision_are_taken():
    masks, log_probs = random_predictions()
    half = jnp.asarray(masks, jnp.bfloat16)
    equal_results(
        run(np.float32(half), log_probs, (20, 20)),
        compute_results(
            half,
            jnp.asarray(log_probs),
            network_size=(48, 40),
            output_size=(20, 20),
            names=[f"class {k}" for k in range(7)],
            isthing=[True] * 7,
        ),
    )


def test_progress_is_told_in_pixels():
    masks, log_probs = random_predictions()
    told = []
    run(masks, log_probs, (300, 300), progress=lambda done, total: told.append((done, total)))
    assert len(told) > 1 and told[-1] == (90000, 90000)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_photos_of_any_size_share_the_compiled_functions():
    masks, log_probs = random_predictions()
    compiled = (pixels.panoptic_run, pixels.semantic_run, pixels.instance_run, pixels._sample_probabilities)
    run(masks, log_probs, (100, 80))
    before = [function._cache_size() for function in compiled]
    for cells, size in (((12, 10), (37, 411)), ((20, 30), (5, 5)), ((10, 12), (600, 300))):
        run(random_predictions(cells=cells)[0], log_probs, size)
    assert [function._cache_size() for function in compiled] == before


@pytest.mark.parametrize("classes", [150, 847, 10000])
def test_a_run_stays_small_whatever_the_vocabulary(classes):
    """Photo sizes do not enter the compiled functions; what they need for 250 queries is bounded here."""
    queries = 250
    length = pixels.run_length(max(queries, classes))

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    count = jax.ShapeDtypeStruct((), jnp.int32)
    lowered = {
        "panoptic": pixels.panoptic_run.lower(array(length, queries), array(queries), count),
        "semantic": pixels.semantic_run.lower(array(length, queries), array(queries, classes)),
        "instance": pixels.instance_run.lower(array(length, queries), count),
    }
    for task, function in lowered.items():
        memory = function.compile().memory_analysis()
        size = memory.temp_size_in_bytes + memory.output_size_in_bytes
        # A few arrays of a run, each at most 8 MiB; a 427 x 640 photo alone would make 164 MB of 150 classes.
        assert 0 < size <= 32 * 2**20, (task, size)


def test_matrix_products_keep_float32_on_accelerators():
    """GPU and TPU would otherwise round the factors to 10 or 8 bits."""
    semantic = pixels.semantic_run.lower(jnp.ones((256, 3)), jnp.ones((3, 4))).as_text()
    instance = pixels.instance_run.lower(jnp.ones((256, 3)), np.int32(256)).as_text()
    for program in (semantic, instance):
        assert program.count("dot_general") == 1 and "HIGHEST" in program


def test_host_memory_is_a_few_bytes_per_pixel():
    masks, log_probs = random_predictions(classes=200)
    size = (1000, 1200)
    run(masks, log_probs, size)
    tracemalloc.start()
    run(masks, log_probs, size, max_instances=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Winners 1, segment ids 4, classes 2 x 1 (as they come, and as an image), run lengths of noisy masks.
    # Float maps of all classes or queries would be 800 and 80.
    assert peak < 12 * size[0] * size[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["masks", "classes"])
def test_unsound_predictions_are_named(bad, where):
    masks, log_probs = random_predictions()
    (masks if where == "masks" else log_probs)[3].flat[5] = bad
    with pytest.raises(ValueError, match=r"1 of 20 queries \(the first is 3\) hold NaN or infinite"):
        run(masks, log_probs, (9, 7))


def test_inputs_that_do_not_fit_are_named():
    masks, log_probs = random_predictions()
    with pytest.raises(ValueError, match="tasks must be some of panoptic, semantic, instance; got depth"):
        run(masks, log_probs, (9, 7), tasks=["panoptic", "depth"])
    with pytest.raises(ValueError, match="got none"):
        run(masks, log_probs, (9, 7), tasks=[])
    with pytest.raises(ValueError, match=r"\(19, 12, 10\) and class log-probabilities \(20, 8\)"):
        # asked directly: with checked signatures the entry would refuse first
        results._check(masks[:19], log_probs, ["a"] * 7, np.ones(7, bool), TASKS, 100)
    with pytest.raises(ValueError, match="6 names and 6 thing-or-stuff marks, the predictions 7 classes"):
        run(masks, log_probs, (9, 7), isthing=np.ones(6, bool))
    with pytest.raises(ValueError, match="max_instances must be at least 1, got 0"):
        run(masks, log_probs, (9, 7), max_instances=0)
    with pytest.raises(ValueError, match="network input of 49 pixels does not fit 12 mask cells"):
        run(masks, log_probs, (9, 7), (49, 40))
