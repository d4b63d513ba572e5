"""One training step of the tiny model against the original program: matches, losses, gradients, update."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from convert.fcclip import convert
from convert.mapping import plan
from convert.name_maps import FCCLIP_ROWS
from fcclip_jax.losses.criterion import CriterionConfig, Targets, match
from fcclip_jax.models import weights
from fcclip_jax.ops.linear_assignment import linear_assignment
from fcclip_jax.training import train_state
from fcclip_jax.training.optimizer import (
    DECAY,
    FROZEN,
    OptimizerConfig,
    group_of,
    make_optimizer,
    split_frozen,
)
from fcclip_jax.training.sharding import make_mesh
from fcclip_jax.training.train_step import make_loss
from tests import formula_weights

QUERIES, SEGMENTS, CONFIG = 24, 12, CriterionConfig(points=512)
# Prediction i of ours -> its name and its first draw in the reference's order (last prediction first).
PREDICTIONS = {0: ("0", 4), 1: ("1", 8), 2: ("final", 0)}


@pytest.fixture(scope="module")
def reference(golden):
    arrays = dict(np.load(golden / "training.npz"))
    return arrays | json.loads((golden / "training.json").read_text())


@pytest.fixture(scope="module")
def model(golden, tmp_path_factory):
    """(card, graphdef without text tower, trainable, frozen) with formula weights and 24 queries."""
    manifest = formula_weights.read_manifest(golden / "manifest_tiny.json")
    for name, (shape, dtype) in manifest.items():
        if name.endswith(("query_feat.weight", "query_embed.weight")):
            manifest[name] = ((QUERIES, *shape[1:]), dtype)
    folder = tmp_path_factory.mktemp("training")
    formula_weights.write_checkpoint(manifest, folder / "tiny.pth")
    convert(folder / "tiny.pth", folder / "model")
    card = weights.read_card(folder / "model")
    graphdef, trainable, frozen = train_state.abstract_model(card.config, train_state.ModelOptions())
    parameters = weights.load_parameters(folder / "model")
    fill = weights.state_from_parameters
    to_device = lambda state: jax.tree.map(jnp.asarray, state)  # noqa: E731
    return card, graphdef, to_device(fill(trainable, parameters)), to_device(fill(frozen, parameters))


@pytest.fixture(scope="module")
def batch(reference):
    labels, valid = np.zeros((2, SEGMENTS), np.int32), np.zeros((2, SEGMENTS), bool)
    for b in range(2):
        classes = reference[f"batch{b}.gt_classes"]
        labels[b, : len(classes)], valid[b, : len(classes)] = classes, True
    stack = lambda key: np.stack([reference[f"batch{b}.{key}"] for b in range(2)])  # noqa: E731
    arrays = {"image": stack("image_hwc_uint8"), "ids": stack("ids"), "labels": labels, "valid": valid}
    return {key: jnp.asarray(value) for key, value in arrays.items()}


@pytest.fixture(scope="module")
def text(reference, golden):
    counts = np.load(golden / "forward.npz")["coco/num_templates"]
    return {
        "rows": jnp.asarray(reference["train_text_classifier"]),
        "synonym_to_class": jnp.asarray(np.repeat(np.arange(len(counts), dtype=np.int32), counts)),
        "classes": jnp.zeros(len(counts), bool),
    }


@pytest.fixture(scope="module")
def draw(reference):
    """The reference's own random points, laid out as [image, segment]."""

    def draw(layer, purpose, shape):
        name, first = PREDICTIONS[layer]
        if purpose == "matcher":
            return jnp.asarray(np.concatenate([reference[f"rand{first + b:02d}"] for b in range(2)]))
        points = reference[f"rand{first + (2 if purpose == 'candidates' else 3):02d}"]
        out = np.zeros(shape, np.float32)
        order = [(b, n) for b in range(2) for n in reference[f"match.{name}.batch{b}.tgt"]]
        for (b, n), values in zip(order, points, strict=True):
            out[b, n] = values
        return jnp.asarray(out)

    return draw


@pytest.fixture(scope="module")
def gradients(model, batch, text, draw):
    _, graphdef, trainable, frozen = model
    loss = make_loss(graphdef, CONFIG, make_mesh(1, 1, jax.devices()[:1]))
    grad = jax.jit(jax.value_and_grad(lambda p, f, b: loss(p, f, b, text, draw), has_aux=True))
    return grad(trainable, frozen, batch)


def in_our_layout(card, arrays, prefix):
    """The reference's arrays `prefix/NAME` as ours, by our names."""
    shapes = weights.parameter_shapes(card.config)
    ours = {}
    for step in plan(FCCLIP_ROWS, shapes):
        if prefix + step.source in arrays:
            ours |= zip(step.targets, step.transform.to_ours(arrays[prefix + step.source]), strict=True)
    return ours


def test_losses(gradients, reference):
    (total, terms), _ = gradients
    expected = reference["losses_weighted"]
    assert terms.keys() == expected.keys()
    # Float32 sums of thousands of points in another order; measured 3e-7.
    for name, value in expected.items():
        assert abs(float(terms[name]) - value) <= 1e-5 * abs(value), name
    assert abs(float(total) - reference["total"]) <= 1e-5 * reference["total"]


def test_matches(model, batch, text, draw, reference):
    _, graphdef, trainable, frozen = model
    net = nnx.merge(graphdef, trainable, frozen)
    from fcclip_jax.training.train_step import normalize_images

    decoder = jax.jit(lambda s, x: nnx.merge(graphdef, *s)(normalize_images(x)).decoder)(
        (trainable, frozen), batch["image"]
    )
    logits = [net.in_vocabulary_logits(x, text["rows"], text["synonym_to_class"], 133) for x in decoder.class_embeds]
    targets = Targets(batch["ids"].astype(jnp.int32), batch["labels"], batch["valid"])
    for solver in ("host", "device"):
        found = match(
            logits, decoder.masks, targets, draw, lambda c, v, s=solver: linear_assignment(c, v, solver=s), CONFIG
        )
        for layer, (name, _) in PREDICTIONS.items():
            for b in range(2):
                segments = reference[f"match.{name}.batch{b}.tgt"]
                assert found[layer][b][segments].tolist() == reference[f"match.{name}.batch{b}.src"].tolist()


def test_gradients(model, gradients, reference):
    expected = in_our_layout(model[0], reference, "grad/")
    _, grads = gradients
    found = weights.parameters_of(grads)
    assert found.keys() == expected.keys()
    total = reference["grad_norm_total"]
    # Mathematically zero: a bias before a GroupNorm, a key's bias before a softmax. What is there is rounding.
    zero = {name for name, value in expected.items() if np.linalg.norm(value) < 1e-6 * total / 10}
    assert all(name.endswith(".bias") and ("input_proj" in name or ".key." in name) for name in zero)
    for name in expected.keys() - zero:
        error = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert error <= 1e-4, (name, error)  # measured 3e-6
    assert abs(float(optax.global_norm(grads)) - total) <= 1e-5 * total


def test_one_step(model, gradients, reference):
    card, _, trainable, _ = model
    optimizer = make_optimizer(OptimizerConfig())
    updates, state = optimizer.update(gradients[1], optimizer.init(trainable), trainable)
    after = weights.parameters_of(optax.apply_updates(trainable, updates))
    expected = in_our_layout(card, reference, "after/")
    assert after.keys() == expected.keys()
    # The first Adam step divides a gradient by its own size: where the gradient is nothing but rounding (see above),
    # its sign is arbitrary, and a step of up to the learning rate, 1e-4, too.
    for name, value in expected.items():
        gradient = in_our_layout(card, reference, "grad/")[name]
        rounding = np.abs(gradient) < 1e-6
        difference = np.abs(after[name] - value)
        assert difference[~rounding].max(initial=0) <= 1e-6, name
        assert difference.max() <= 2.1e-4, name
    moments = [x for x in jax.tree.leaves(state) if x.ndim or x.size > 1]
    trained = sum(x.size for x in jax.tree.leaves(trainable))
    assert sum(x.size for x in moments if x.ndim) <= 2 * trained


def test_groups(model, reference):
    card = model[0]
    shapes = weights.parameter_shapes(card.config)
    theirs = {target: step.source for step in plan(FCCLIP_ROWS, shapes) for target in step.targets}
    trained = {name for name in shapes if group_of(name) != FROZEN}
    assert {theirs[name] for name in trained} == set(reference["requires_grad"])
    for name in trained:
        decay = reference["weight_decay"][theirs[name]]
        assert decay == (0.05 if group_of(name) == DECAY else 0.0), name
    trainable, frozen = split_frozen(nnx.merge_state(model[2], model[3]))
    assert set(weights.parameters_of(trainable)) == trained
    assert all(group_of(name) == FROZEN for name in weights.parameters_of(frozen))
