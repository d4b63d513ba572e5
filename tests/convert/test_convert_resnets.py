"""Checkpoints with a ResNet: found by their shapes, and both directions to the bit."""

import json

import numpy as np
import pytest
from checkpoints import MANIFESTS, refused, run, write

from convert import detection, fcclip, open_clip, to_fcclip
from convert.checkpoint_files import open_checkpoint
from convert.mapping import plan
from convert.model_folders import REPORT_FILE
from convert.name_maps import (
    BATCH_COUNTER,
    EMPTY_WEIGHT,
    FCCLIP_PREFIX,
    FCCLIP_ROWS,
    LAST_OF_BATCH_NORM,
)
from fcclip_jax.models import weights
from fcclip_jax.models.fcclip import VARIANTS
from tests.formula_weights import fill, read_manifest, write_checkpoint
from tests.models.tiny_resnet import TINY_RESNET

RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")


@pytest.fixture(autouse=True)
def tiny_is_a_variant(monkeypatch):
    monkeypatch.setitem(VARIANTS, TINY_RESNET.name, TINY_RESNET)


@pytest.fixture(scope="module")
def state_dict():
    """The tiny model as FC-CLIP would store it. Not to be written to."""
    arrays = {}
    for step in plan(FCCLIP_ROWS, weights.parameter_shapes(TINY_RESNET)):
        if step.source == "void_embedding.weight":
            arrays[EMPTY_WEIGHT] = fill(EMPTY_WEIGHT, (134,))
        arrays[step.source] = fill(step.source, step.shapes[0])
        if step.source.endswith(LAST_OF_BATCH_NORM):
            arrays[step.source.removesuffix(LAST_OF_BATCH_NORM) + BATCH_COUNTER] = np.zeros((), np.int64)
    return arrays


def towers(state_dict):
    return {n.removeprefix(FCCLIP_PREFIX): a for n, a in state_dict.items() if n.startswith(FCCLIP_PREFIX)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_there_and_back_gives_the_same_bits(state_dict, suffix, tmp_path, capsys):
    source, back = write(tmp_path / "fcclip.pth", state_dict), tmp_path / f"back{suffix}"
    assert run(fcclip.main, capsys, "--input", source, "--output", tmp_path / "model")[0] == 0
    card, _, state = weights.load_model(tmp_path / "model")
    # Heads cannot be seen in shapes: a known variant has them.
    assert card.config == TINY_RESNET
    theirs = state_dict[FCCLIP_PREFIX + "visual.layer3.1.conv2.weight"]
    kernel = np.asarray(state["clip"]["visual"]["stages"][2]["blocks"][1]["conv2"]["kernel"][...])
    np.testing.assert_array_equal(kernel, np.einsum("oihw->hwio", theirs), strict=True)
    assert run(to_fcclip.main, capsys, "--checkpoint", tmp_path / "model", "--output", back)[0] == 0
    with open_checkpoint(back) as checkpoint:
        assert list(checkpoint.arrays) == list(state_dict)
        for name, array in state_dict.items():
            assert (checkpoint.arrays[name].dtype, checkpoint.shapes[name]) == (array.dtype.name, array.shape), name
            assert checkpoint.read(name).tobytes() == array.tobytes(), name


def test_the_layouts_of_the_attention(state_dict, tmp_path, capsys):
    """The three projections are of one shape, so that a mistaken row would fit."""
    source = write(tmp_path / "fcclip.pth", state_dict)
    assert run(fcclip.main, capsys, "--input", source, "--output", tmp_path / "model")[0] == 0
    found = weights.load_parameters(tmp_path / "model", "clip.visual.")
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "c_proj")):
        name = f"{FCCLIP_PREFIX}visual.attnpool.{theirs}"
        np.testing.assert_array_equal(
            found[f"clip.visual.attention_pool.{ours}.kernel"], state_dict[f"{name}.weight"].T
        )
        np.testing.assert_array_equal(found[f"clip.visual.attention_pool.{ours}.bias"], state_dict[f"{name}.bias"])
    for ours, theirs in (("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var")):
        array = state_dict[f"{FCCLIP_PREFIX}visual.layer2.0.downsample.1.{theirs}"]
        np.testing.assert_array_equal(found[f"clip.visual.stages.1.blocks.0.downsample_norm.{ours}"], array)


def test_open_clip_and_what_openai_stored(state_dict, tmp_path, capsys):
    """OpenAI's state dict has three sizes more, counts of its batches, and half precision."""
    arrays = {n: a.astype(np.float16) if a.dtype == np.float32 else a + 1000 for n, a in towers(state_dict).items()}
    sizes = {"input_resolution": 96, "context_length": 77, "vocab_size": 49408}
    arrays |= {name: np.array(value, np.int64) for name, value in sizes.items()}
    source = write(tmp_path / "openai.pt", arrays)
    arguments = ("--model", TINY_RESNET.name, "--input", source, "--output", tmp_path / "towers")
    assert run(open_clip.main, capsys, *arguments)[0] == 0
    found = weights.load_parameters(tmp_path / "towers")
    assert found.keys() == weights.parameter_shapes(TINY_RESNET, towers_only=True).keys()
    norm = arrays["visual.bn2.running_var"].astype(np.float32)
    np.testing.assert_array_equal(found["clip.visual.norm2.var"], norm, strict=True)
    report = json.loads((tmp_path / "towers" / REPORT_FILE).read_text())
    counters = [name for name in arrays if name.endswith(BATCH_COUNTER)]
    assert set(report["ignored"]) == {*counters, *sizes} and len(counters) == 3 + 6 * 3 + 4


def test_what_is_ignored_is_looked_at(state_dict, tmp_path, capsys):
    name = FCCLIP_PREFIX + "visual.layer1.0.bn1" + BATCH_COUNTER
    source = write(tmp_path / "x.pth", state_dict | {name: np.ones(8, np.float32)})
    message = refused(fcclip.main, capsys, "--input", source, "--output", tmp_path / "out")
    assert f"{name} is not a counter of training batches" in message
    extra = FCCLIP_PREFIX + "visual.layer1.0.bn4" + BATCH_COUNTER
    source = write(tmp_path / "x.pth", state_dict | {extra: np.zeros((), np.int64)})
    assert f"1 not expected: {extra}" in refused(fcclip.main, capsys, "--input", source, "--output", tmp_path / "out")


def shapes_in(manifest):
    return {name: shape for name, (shape, _) in read_manifest(MANIFESTS / manifest).items()}


def test_detection_by_the_released_names():
    assert detection.towers(shapes_in("fcclip_RN50.json.gz"), FCCLIP_PREFIX) == "RN50"
    assert detection.towers(shapes_in("openclip_RN50.json.gz"), "") == "RN50"


def test_every_size_can_be_told_apart():
    assert len({detection.TowerSizes.of_config(VARIANTS[name]) for name in RESNETS}) == len(RESNETS)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_rn50_there_and_back(suffix, tmp_path):
    """All 792 entries of a released RN50."""
    manifest = read_manifest(MANIFESTS / "fcclip_RN50.json.gz")
    write_checkpoint(manifest, tmp_path / "fcclip.pth")
    assert fcclip.main(["--input", str(tmp_path / "fcclip.pth"), "--output", str(tmp_path / "model")]) == 0
    assert weights.read_card(tmp_path / "model").config == VARIANTS["RN50"]
    (tmp_path / "fcclip.pth").unlink()
    back = tmp_path / f"back{suffix}"
    assert to_fcclip.main(["--checkpoint", str(tmp_path / "model"), "--output", str(back)]) == 0
    with open_checkpoint(back) as checkpoint:
        assert list(checkpoint.arrays) == list(manifest) and len(manifest) == 792
        for name, (shape, dtype) in manifest.items():
            assert (checkpoint.shapes[name], checkpoint.arrays[name].dtype) == (shape, dtype)
            expected = fill(name, shape) if dtype == "float32" else np.zeros(shape, dtype)
            assert checkpoint.read(name).tobytes() == expected.tobytes(), name
