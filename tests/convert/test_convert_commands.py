"""The commands: both directions to the bit, and what they say when something is wrong."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import refused, run, write, write_safetensors
from safetensors.numpy import load_file

from convert import fcclip, open_clip, to_fcclip
from convert.checkpoint_files import open_checkpoint
from convert.name_maps import EMPTY_WEIGHT, FCCLIP_PREFIX
from fcclip_jax.models import weights
from fcclip_jax.models.fcclip import VARIANTS
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from tests.formula_weights import fill


def assert_same_arrays(path, state_dict):
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.arrays) == list(state_dict)
        for name, array in state_dict.items():
            assert checkpoint.arrays[name].dtype == "float32"
            assert checkpoint.shapes[name] == array.shape, name
            assert checkpoint.read(name).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_there_and_back_gives_the_same_bits(folder, state_dict, suffix, tmp_path, capsys):
    output = tmp_path / f"back{suffix}"
    code, out, err = run(to_fcclip.main, capsys, "--checkpoint", folder, "--output", output)
    assert (code, err) == (0, "") and "236 arrays" in out
    assert_same_arrays(output, state_dict)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_the_way_back_is_what_safetensors_reads(folder, state_dict, tmp_path):
    to_fcclip.convert(folder, tmp_path / "back.safetensors")
    found = load_file(tmp_path / "back.safetensors")
    assert found.keys() == state_dict.keys()
    np.testing.assert_array_equal(found["void_embedding.weight"], state_dict["void_embedding.weight"], strict=True)


def test_the_folder_is_a_model(folder, state_dict):
    card, _, state = weights.load_model(folder)
    assert card.config == VARIANTS["convnext_tiny_test"] and not card.towers_only
    assert card.train_classes == Vocabulary.builtin("coco_panoptic").to_dict()
    assert card.no_object_weight == float(np.float32(0.1))
    kernel = np.asarray(state["clip"]["text"]["blocks"][1]["fc1"]["kernel"][...])
    theirs = state_dict[FCCLIP_PREFIX + "transformer.resblocks.1.mlp.c_fc.weight"]
    np.testing.assert_array_equal(kernel, theirs.T)


def test_text_sha256_is_over_names_and_bytes_in_the_order_of_the_file(folder):
    digest = hashlib.sha256()
    with open_checkpoint(folder / weights.WEIGHTS_FILE) as ours:
        names = [name for name in ours.arrays if name.startswith("clip.text.")]
        for name in names:
            digest.update(name.encode() + b"\0" + ours.read(name).tobytes())
    assert len(names) == 37
    assert weights.read_card(folder).text_sha256 == digest.hexdigest()


def test_report(folder, released):
    report = json.loads((folder / "report.json").read_text())
    content = released.read_bytes()
    assert report["input"] == {
        "file": "fcclip_tiny.pth",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert report["model"] == "convnext_tiny_test" and report["kind"] == "torch zip" and report["seconds"] > 0
    assert report["counts"] == {
        "source_arrays": 236,
        "converted": 235,
        "into_the_card": 1,
        "ignored": 0,
        "parameter_arrays": 259,
    }
    # All floats of the file but empty_weight's 134.
    with open_checkpoint(released) as checkpoint:
        assert report["parameters"] == sum(int(np.prod(s)) for s in checkpoint.shapes.values()) - 134
    assert sum(row["matches"] for row in report["rows"]) == 235
    gammas = [row for row in report["rows"] if row["source"].endswith("gamma")]
    assert [row["matches"] for row in gammas] == [8]


def same_parameters(folder, other):
    with open_checkpoint(folder / weights.WEIGHTS_FILE) as a, open_checkpoint(other / weights.WEIGHTS_FILE) as b:
        assert list(a.arrays) == list(b.arrays)
        return all(a.read(name).tobytes() == b.read(name).tobytes() for name in a.arrays)


def test_other_ways_of_writing_the_same_checkpoint(folder, state_dict, tmp_path):
    """safetensors; the bare state dict; `module.`; a text module of its own; a logit scale with an axis."""
    assert fcclip.convert(write_safetensors(tmp_path / "a.safetensors", state_dict), tmp_path / "a")
    assert same_parameters(folder, tmp_path / "a")
    odd = {}
    for name, array in state_dict.items():
        inner = name.removeprefix(FCCLIP_PREFIX)
        if inner.startswith(("transformer.", "token_embedding.", "positional_", "text_projection", "ln_final.")):
            name = f"{FCCLIP_PREFIX}text.{inner}"
        if inner == "logit_scale":
            array = array.reshape(1)
        odd[f"module.{name}"] = array
    odd[f"module.{FCCLIP_PREFIX}text.attn_mask"] = np.triu(np.full((77, 77), -np.inf, np.float32), 1)
    odd[f"module.{FCCLIP_PREFIX}logit_bias"] = np.zeros((), np.float32)
    fcclip.convert(write(tmp_path / "b.pth", odd, entry=None), tmp_path / "b")
    assert same_parameters(folder, tmp_path / "b")
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert report["counts"]["ignored"] == 2 and len(report["ignored"]) == 2


def test_half_precision_is_widened_exactly(state_dict, tmp_path):
    name = "sem_seg_head.predictor.query_feat.weight"
    bits = (state_dict[name].view(np.uint32) >> 16).astype(np.uint16)
    changed = {n: a.astype(np.float16) if a.ndim == 1 and n != EMPTY_WEIGHT else a for n, a in state_dict.items()}
    fcclip.convert(write_safetensors(tmp_path / "x.safetensors", changed | {name: bits}), tmp_path / "out")
    with open_checkpoint(tmp_path / "out" / weights.WEIGHTS_FILE) as ours:
        np.testing.assert_array_equal(
            ours.read("transformer_decoder.query_feat"), (bits.astype(np.uint32) << 16).view(np.float32)
        )
        bias = state_dict[FCCLIP_PREFIX + "ln_final.bias"].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(ours.read("clip.text.norm_final.bias"), bias)


def test_sizes_of_the_decoders_come_from_the_shapes(state_dict, tmp_path):
    """More queries and a decoder layer less than the variant has."""
    changed = {name: a for name, a in state_dict.items() if "_layers.1." not in name}
    for name in ("query_feat", "query_embed"):
        name = f"sem_seg_head.predictor.{name}.weight"
        changed[name] = fill(name, (17, 32))
    fcclip.convert(write(tmp_path / "x.pth", changed), tmp_path / "out")
    decoder = weights.read_card(tmp_path / "out").config.transformer_decoder
    assert (decoder.queries, decoder.layers, decoder.heads) == (17, 1, 4)
    to_fcclip.convert(tmp_path / "out", tmp_path / "back.pth")
    assert_same_arrays(tmp_path / "back.pth", changed)


def test_config_file_takes_the_place_of_shapes(folder, state_dict, tmp_path, capsys):
    card = json.loads((folder / "config.json").read_text())
    card["config"]["transformer_decoder"]["heads"] = 8
    (tmp_path / "eight.json").write_text(json.dumps(card["config"]))
    source = write(tmp_path / "x.pth", state_dict)
    fcclip.convert(source, tmp_path / "out", config_file=tmp_path / "eight.json")
    assert weights.read_card(tmp_path / "out").config.transformer_decoder.heads == 8
    (tmp_path / "bad.json").write_text('{"name": "x"}')
    for file, told in [("bad.json", "is not a configuration"), ("none.json", "No such file")]:
        arguments = ("--input", source, "--output", tmp_path / "no", "--config", tmp_path / file)
        assert told in refused(fcclip.main, capsys, *arguments)


def test_train_labels(released, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"{i}:class {i},other {i}" for i in range(133)))
    fcclip.convert(released, tmp_path / "out", train_labels=labels)
    assert weights.read_card(tmp_path / "out").train_classes["classes"][1]["names"] == ["class 1", "other 1"]
    labels.write_text("cat\ndog\n")
    arguments = ("--input", released, "--output", tmp_path / "no", "--train_labels")
    message = refused(fcclip.main, capsys, *arguments, labels)
    assert "trained on 133 classes" in message and "label list has 2" in message
    labels.write_text("1:cat\n1:dog\n")
    assert "line 2" in refused(fcclip.main, capsys, *arguments, labels)
    assert "No such file" in refused(fcclip.main, capsys, *arguments, tmp_path / "none.txt")
    assert not (tmp_path / "no").exists()


def test_all_mistakes_are_told_at_once(state_dict, tmp_path, capsys):
    changed = dict(state_dict)
    del changed["void_embedding.weight"]
    del changed["sem_seg_head.predictor.decoder_norm.bias"]
    changed["sem_seg_head.predictor.extra.weight"] = np.zeros(3, np.float32)
    changed["sem_seg_head.predictor.level_embed.weight"] = np.zeros((3, 7), np.float32)
    changed["sem_seg_head.predictor.decoder_norm.weight"] = np.zeros(32, np.int64)
    changed[FCCLIP_PREFIX + "logit_bias"] = np.full((), -10, np.float32)
    message = refused(fcclip.main, capsys, "--input", write(tmp_path / "x.pth", changed), "--output", tmp_path / "out")
    assert "2 missing: sem_seg_head.predictor.decoder_norm.bias, void_embedding.weight" in message
    assert "1 not expected: sem_seg_head.predictor.extra.weight" in message
    assert "level_embed.weight (3, 7), expected (3, 32)" in message
    assert "1 not of floating point: sem_seg_head.predictor.decoder_norm.weight int64" in message
    assert f"{FCCLIP_PREFIX}logit_bias is not an unused bias" in message
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.append(np.ones(133), 0.25), None),
        (np.append(np.full(133, 2.0), 0.1), "should be 1 for all classes"),
        (np.append(np.ones(133), np.nan), "should be 1 for all classes"),
        (np.append(np.ones(150), 0.1), "trained on 150 classes"),
        (None, "empty_weight is missing"),
    ],
)
def test_the_weight_of_no_object_is_kept_or_refused(state_dict, tmp_path, capsys, values, told):
    changed = dict(state_dict)
    changed.pop(EMPTY_WEIGHT) if values is None else changed.update({EMPTY_WEIGHT: values.astype(np.float32)})
    arguments = ("--input", write(tmp_path / "x.pth", changed), "--output", tmp_path / "out")
    if told is None:
        assert run(fcclip.main, capsys, *arguments)[0] == 0
        assert weights.read_card(tmp_path / "out").no_object_weight == 0.25
    else:
        assert told in refused(fcclip.main, capsys, *arguments)


def towers(state_dict):
    return {n.removeprefix(FCCLIP_PREFIX): a for n, a in state_dict.items() if n.startswith(FCCLIP_PREFIX)}


def test_open_clip(folder, state_dict, tmp_path, capsys):
    source = write(tmp_path / "open_clip_pytorch_model.bin", towers(state_dict), entry="state_dict")
    arguments = ("--model", "convnext_tiny_test", "--input", source, "--output", tmp_path / "towers")
    assert run(open_clip.main, capsys, *arguments)[0] == 0
    card = weights.read_card(tmp_path / "towers")
    assert card.towers_only and card.train_classes is None
    # The same text tower, the same cached embeddings.
    assert card.text_sha256 == weights.read_card(folder).text_sha256
    with open_checkpoint(tmp_path / "towers" / weights.WEIGHTS_FILE) as ours:
        assert ours.shapes == weights.parameter_shapes(card.config, towers_only=True)
    message = refused(to_fcclip.main, capsys, "--checkpoint", tmp_path / "towers", "--output", tmp_path / "x.pth")
    assert "only CLIP's towers" in message


def test_the_other_command_is_named(released, state_dict, tmp_path, capsys):
    source = write(tmp_path / "x.bin", towers(state_dict))
    message = refused(fcclip.main, capsys, "--input", source, "--output", tmp_path / "out")
    assert "python -m convert.open_clip" in message
    arguments = ("--model", "convnext_tiny_test", "--input", released, "--output", tmp_path / "out")
    assert "python -m convert.fcclip" in refused(open_clip.main, capsys, *arguments)


def test_models_that_are_not_known(state_dict, tmp_path, capsys):
    renamed = {n.replace("visual.trunk.stages.", "visual.layer1."): a for n, a in state_dict.items()}
    for changed, told in [
        (renamed, "projection of kind attention"),
        ({n: a for n, a in state_dict.items() if "visual" not in n}, "no checkpoint of FC-CLIP"),
        ({n: a for n, a in state_dict.items() if "stages.2.blocks.1." not in n}, "depths (2, 2, 1, 2)"),
    ]:
        source = write(tmp_path / "x.pth", changed)
        message = refused(fcclip.main, capsys, "--input", source, "--output", tmp_path / "out")
        assert told in message and "\n" not in message.strip()
    # With the name given, it is told what differs from it.
    arguments = ("--input", source, "--output", tmp_path / "out", "--model", "convnext_tiny_test")
    assert "missing: backbone.clip_model.visual.trunk.stages.2.blocks.1.gamma" in refused(
        fcclip.main, capsys, *arguments
    )


def test_absurd_sizes_are_not_built(state_dict, tmp_path, capsys):
    name = "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.attention_weights.bias"
    source = write(tmp_path / "x.pth", state_dict | {name: np.zeros((1 << 17,), np.float32)})
    assert "which no model has" in refused(fcclip.main, capsys, "--input", source, "--output", tmp_path / "out")


def test_bad_inputs(tmp_path, capsys):
    page = tmp_path / "model.pth"
    page.write_text("<!DOCTYPE html><html>Google Drive can't scan this file for viruses.")
    output = tmp_path / "out"
    assert "web page" in refused(fcclip.main, capsys, "--input", page, "--output", output)
    arguments = ("--model", "convnext_base_w", "--input", tmp_path / "none.bin", "--output", output)
    assert "there is no file" in refused(open_clip.main, capsys, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("main", [fcclip.main, open_clip.main, to_fcclip.main])
def test_help_and_missing_arguments(main, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "python -m convert." in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2 and "required" in capsys.readouterr().err


def test_as_a_program(tmp_path):
    """A process of its own: the exit code, one line, no traceback, and torch nowhere."""
    program = (
        "import runpy, sys; sys.argv = ['convert.fcclip', '--input', 'none.pth', '--output', 'out']\n"
        "try: runpy.run_module('convert.fcclip', run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [Path.cwd(), *filter(None, sys.path)]))}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr == "error: there is no file none.pth\n"
    assert not list(tmp_path.iterdir())
