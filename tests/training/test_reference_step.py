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
from fcclip_jax.training.train_step import make_loss, normalize_images
from tests import formula_weights

CONFIG = CriterionConfig(points=512)
# Prediction i of ours -> its name and its first draw in the reference's order (last prediction first).
PREDICTIONS = {0: ("0", 4), 1: ("1", 8), 2: ("final", 0)}


@pytest.fixture(scope="module", params=["24 queries", pytest.param("10 queries", marks=pytest.mark.slow)])
def reference(request, golden):
    """Arrays and numbers of two training steps: on two drawn pictures with 7 and 12 segments, and on two photos with 17
    and 30, more than there are queries."""
    queries = int(request.param.split()[0])
    if queries == 24:
        arrays = dict(np.load(golden / "training.npz")) | json.loads((golden / "training.json").read_text())
    else:
        folder = request.getfixturevalue("oracle")
        arrays = dict(np.load(folder / "train_tiny.npz")) | json.loads((folder / "train_tiny.json").read_text())
        arrays["weight_decay"] = {group["name"]: group["weight_decay"] for group in arrays["param_groups"]}
        for b in range(2):
            arrays[f"batch{b}.ids"] = np.full((128, 128), -1, np.int8)
            for row, mask in enumerate(arrays[f"batch{b}.gt_masks"]):
                arrays[f"batch{b}.ids"][mask] = row
    return arrays | {"queries": queries, "segments": max(len(arrays[f"batch{b}.gt_classes"]) for b in range(2))}


@pytest.fixture(scope="module")
def model(golden, tmp_path_factory, reference):
    """(card, graphdef without text tower, trainable, frozen) with formula weights."""
    manifest = formula_weights.read_manifest(golden / "manifest_tiny.json")
    for name, (shape, dtype) in manifest.items():
        if name.endswith(("query_feat.weight", "query_embed.weight")):
            manifest[name] = ((reference["queries"], *shape[1:]), dtype)
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
    labels, valid = (np.zeros((2, reference["segments"]), dtype) for dtype in (np.int32, bool))
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


def layers(model, params, batch, text):
    """(logits, masks) of all predictions."""
    _, graphdef, _, frozen = model

    def forward(params, frozen, batch, text):
        net = nnx.merge(graphdef, params, frozen)
        decoder = net(normalize_images(batch["image"])).decoder
        rows, classes = text["rows"], text["synonym_to_class"]
        return [net.in_vocabulary_logits(x, rows, classes, 133) for x in decoder.class_embeds], decoder.masks

    return jax.jit(forward)(params, frozen, batch, text)


def matches(model, params, batch, text, reference, step, solver="host"):
    """Our matching on the reference's points: for each prediction, `[B,N]` queries."""
    targets = Targets(batch["ids"].astype(jnp.int32), batch["labels"], batch["valid"])

    def draw(layer, purpose, shape):
        first = PREDICTIONS[layer][1]
        return jnp.asarray(np.concatenate([reference[f"{step}rand{first + b:02d}"] for b in range(2)]))

    assign = lambda c, v: linear_assignment(c, v, solver=solver)  # noqa: E731
    return [np.asarray(x) for x in match(*layers(model, params, batch, text), targets, draw, assign, CONFIG)]


def reference_draw(reference, step, matched):
    """The reference's own random points, laid out as [image, segment]; it lists masks by image and query."""

    def draw(layer, purpose, shape):
        first = PREDICTIONS[layer][1]
        if purpose == "matcher":
            return jnp.asarray(np.concatenate([reference[f"{step}rand{first + b:02d}"] for b in range(2)]))
        points = reference[f"{step}rand{first + (2 if purpose == 'candidates' else 3):02d}"]
        out = np.zeros(shape, np.float32)
        order = [(b, n) for b in range(2) for n in np.argsort(matched[layer][b]) if matched[layer][b][n] >= 0]
        for (b, n), values in zip(order, points, strict=True):
            out[b, n] = values
        return jnp.asarray(out)

    return draw


@pytest.fixture(scope="module")
def grad(model, reference):
    _, graphdef, _, frozen = model
    loss = make_loss(graphdef, CONFIG)

    @jax.jit
    def grad(params, batch, text, draws):
        draw = lambda layer, purpose, shape: draws[layer][purpose]  # noqa: E731
        return jax.value_and_grad(loss, has_aux=True)(params, frozen, batch, text, draw)

    def call(params, batch, text, draw):
        count, segments = int(CONFIG.points * CONFIG.important), reference["segments"]
        shapes = {
            "matcher": (2, CONFIG.points, 2),
            "candidates": (2, segments, 3 * CONFIG.points, 2),
            "uniform": (2, segments, CONFIG.points - count, 2),
        }
        draws = [{name: draw(layer, name, shape) for name, shape in shapes.items()} for layer in range(3)]
        return grad(params, batch, text, draws)

    return call


@pytest.fixture(scope="module")
def first_matches(model, batch, text, reference):
    return matches(model, model[2], batch, text, reference, "")


@pytest.fixture(scope="module")
def gradients(model, grad, batch, text, reference, first_matches):
    return grad(model[2], batch, text, reference_draw(reference, "", first_matches))


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


@pytest.mark.parametrize("solver", ["host", "device"])
def test_matches(model, batch, text, reference, solver):
    found = matches(model, model[2], batch, text, reference, "", solver)
    for layer, (name, _) in PREDICTIONS.items():
        for b in range(2):
            segments = reference[f"match.{name}.batch{b}.tgt"]
            assert found[layer][b][segments].tolist() == reference[f"match.{name}.batch{b}.src"].tolist()
            assert (np.delete(found[layer][b], segments) == -1).all()


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
    """Against AdamW written out in float64 (decoupled decay, bias correction, torch's clipping) on the reference's
    gradients."""
    card, _, params, _ = model
    optimizer = make_optimizer(OptimizerConfig())
    updates, state = optimizer.update(gradients[1], optimizer.init(params), params)
    after = weights.parameters_of(optax.apply_updates(params, updates))
    before = weights.parameters_of(params)
    clip = 0.01 / (reference["grad_norm_total"] + 1e-6)
    for name, gradient in in_our_layout(card, reference, "grad/").items():
        g = gradient.astype(np.float64) * clip
        decay = 0.05 if group_of(name) == DECAY else 0.0
        # After one step the corrected moments are g and g * g.
        expected = before[name] * (1 - 1e-4 * decay) - 1e-4 * g / (np.abs(g) + 1e-8)
        assert np.abs(after[name] - expected).max(initial=0) <= 1e-6, name
    # Two moments for every trained number, and nothing for the frozen ones.
    counts = 4  # of steps: one of Adam and one of the schedule in each of two groups
    assert sum(x.size for x in jax.tree.leaves(state)) - counts == 2 * sum(x.size for x in jax.tree.leaves(params))


def test_two_steps(model, grad, gradients, batch, text, reference):
    """The reference's `after` is the state after its second step."""
    card, _, params, _ = model
    optimizer = make_optimizer(OptimizerConfig())
    updates, state = optimizer.update(gradients[1], optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    draw = reference_draw(reference, "step2.", matches(model, params, batch, text, reference, "step2."))
    (_, terms), grads = grad(params, batch, text, draw)
    for name, value in reference["step2_losses_weighted"].items():
        # In the first prediction a mask logit lies 1e-6 from 0: one program pools that pixel, the other does not.
        tolerance = 1e-4 if name == "loss_ce_0" else 1e-5
        assert abs(float(terms[name]) - value) <= tolerance * abs(value), name
    updates, _ = optimizer.update(grads, state, params)
    after = weights.parameters_of(optax.apply_updates(params, updates))
    expected = in_our_layout(card, reference, "after/")
    difference = np.concatenate([np.abs(after[name] - value).ravel() for name, value in expected.items()])
    # Adam divides by the gradients' size. Where those of the two steps nearly cancel, rounding (and the pixel above)
    # is enlarged: 105 of 200,481 numbers move by more than 1e-6, none by more than 1.2e-5, of steps of 1e-4.
    assert np.mean(difference > 1e-6) <= 1e-3
    assert difference.max() <= 2e-5


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
