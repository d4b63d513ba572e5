"""Whatever is wrong: one line that says what, exit code 2, and nothing half-written."""

import errno
import json
import shutil
import struct

import jax
import pytest
from PIL import Image

from fcclip_jax import segment_files
from fcclip_jax.models import weights
from fcclip_jax.models.fcclip import VARIANTS
from fcclip_jax.segmenter import Segmenter
from tests.cli.command import SMALL, WORDS, is_one_error, names

# ------------------------------------------------------------------------------------------- arguments

_BAD_ARGUMENTS = {
    "empty vocabulary": (("--vocabulary", ""), "the vocabulary is empty"),
    "blank vocabulary": (("--vocabulary", " ; ;"), "the vocabulary is empty"),
    "blank word": (("--vocabulary", "cup, ,table"), "blank"),
    "duplicate": (("--vocabulary", "cup; table; CUP"), "'CUP' stands already"),
    "overlong": (("--vocabulary", "cup; " + "very " * 80 + "big"), "77 tokens a prompt: 'very very"),
    "lone surrogate": (("--vocabulary", "cup; caf\udce9"), "not valid Unicode"),
    "no label file": (("--labels", "gone.txt"), "gone.txt: No such file or directory"),
    "label folder": (("--labels", "."), "directory"),
    "unknown list": (("--dataset", "ade"), "there are: ade20k_150, "),
    "unknown stuff": (("--vocabulary", "cup; table", "--stuff", "tabel"), "did you mean 'table'"),
    "two vocabularies": (("--vocabulary", "cup", "--dataset", "ade20k_150"), "not allowed with"),
    "no vocabulary": ((), "--vocabulary --labels --dataset"),
    "unknown task": (("--vocabulary", "cup", "--task", "panoptik"), "panoptic, semantic, instance"),
    "no task": (("--vocabulary", "cup", "--task", ""), "panoptic, semantic, instance"),
    "no size": (("--vocabulary", "cup", "--min_size", "0"), "--min_size"),
    "half a size": (("--vocabulary", "cup", "--max_size", "1.5"), "--max_size"),
    "no batch": (("--vocabulary", "cup", "--batch_size", "-1"), "--batch_size"),
    "threshold above 1": (("--vocabulary", "cup", "--overlap_threshold", "1.1"), "from 0 to 1"),
    "threshold nan": (("--vocabulary", "cup", "--object_threshold", "nan"), "from 0 to 1"),
    "unknown flag": (("--vocabulary", "cup", "--speed", "fast"), "--speed"),
}


@pytest.mark.parametrize("arguments, problem", _BAD_ARGUMENTS.values(), ids=_BAD_ARGUMENTS)
def test_bad_arguments(segment, photos, tmp_path, arguments, problem):
    code, out, err = segment(photos / "a.png", *arguments)
    assert code == 2 and out == ""
    assert is_one_error(err) and problem in err
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


def test_a_label_file_that_is_no_label_file(segment, photos, tmp_path):
    for content, problem in (
        (b"", "no class"),
        (b"\xff\xfe", "UTF-8"),
        (b"0:cup\n0:mug", "line 2"),
        (b"0:cup\nx", "line 2"),
    ):
        (tmp_path / "labels.txt").write_bytes(content)
        code, _, err = segment(photos / "a.png", "--labels", tmp_path / "labels.txt")
        assert code == 2 and is_one_error(err) and problem in err and "labels.txt" in err


def write_header(path, change):
    """Rewrites the table at the head of a safetensors file; the data stay."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + size])
    change(table)
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def change_config(folder, **changes):
    path = folder / weights.CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _other_size(folder):
    change_config(folder, config=VARIANTS["convnext_base_w"].to_dict())


def _cut(folder):
    path = folder / weights.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1000])


def _of_dtype(dtype):
    def change(table):
        table["clip.visual.stem.bias"]["dtype"] = dtype

    return lambda folder: write_header(folder / weights.WEIGHTS_FILE, change)


_BAD_MODELS = {
    "no config": (lambda f: (f / "config.json").unlink(), "not a model folder: config.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json cannot be read"),
    "config of others": (lambda f: (f / "config.json").write_text('{"model_type": "clip"}'), '"format": "fcclip_jax"'),
    "config of tomorrow": (lambda f: change_config(f, format_version=2), "format version 2"),
    "config incomplete": (lambda f: change_config(f, config={"name": "x"}), "not an FC-CLIP configuration"),
    "config with more": (lambda f: change_config(f, colour="red"), "colour"),
    "classes broken": (lambda f: change_config(f, train_classes={"classes": [1]}), "class 1"),
    "other size": (_other_size, "it is read as: 659 missing: clip.text.blocks.2.attention.key.bias, "),
    "cut short": (_cut, "cut short"),
    "no header": (lambda f: (f / "model.safetensors").write_bytes(b"PK\x03\x04"), "damaged"),
    "whole numbers": (_of_dtype("I32"), "clip.visual.stem.bias is int32, expected float32 or float16"),
    "towers only": (lambda f: change_config(f, towers_only=True), "no mask generator to segment with"),
}  # fmt: skip


@pytest.mark.parametrize("damage, problem", _BAD_MODELS.values(), ids=_BAD_MODELS)
def test_bad_models(fcclip, photos, tmp_path, tiny_model, damage, problem):
    shutil.copytree(tiny_model, tmp_path / "model")
    damage(tmp_path / "model")
    arguments = ("--checkpoint", tmp_path / "model", "--output", tmp_path / "out", *WORDS, *SMALL)
    code, out, err = fcclip("segment", photos / "a.png", *arguments)
    assert code == 2 and out == ""
    assert is_one_error(err) and problem in err
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    "change",
    [
        {"vision": {"widths": [16, 32, 64, "128"]}},
        {"vision": {"depths": [2, 2, 2, -1]}},
        {"vision": {"head": "attention"}},
        {"text": {"heads": 5}},
        {"text": {"width": 0}},
        {"embed_dim": None},
        {"transformer_decoder": {"queries": 2.5}},
    ],
)
def test_sizes_that_make_no_model(fcclip, photos, tmp_path, tiny_model, change):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / weights.CONFIG_FILE).read_text())["config"]
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    change_config(folder, config=config)
    code, _, err = fcclip("segment", photos / "a.png", *WORDS, "--checkpoint", folder, "--output", tmp_path / "out")
    assert code == 2 and is_one_error(err)
    assert str(folder) in err


def test_a_checkpoint_that_is_not_converted_yet(fcclip, photos, tmp_path, tiny_checkpoint):
    code, _, err = fcclip(
        "segment", photos / "a.png", *WORDS, "--checkpoint", tiny_checkpoint, "--output", tmp_path / "out"
    )
    assert code == 2 and is_one_error(err)
    assert f"python -m convert.fcclip --input {tiny_checkpoint} --output DIR" in err
    code, _, err = fcclip("segment", photos / "a.png", *WORDS, "--checkpoint", tmp_path / "gone", "--output", tmp_path)
    assert code == 2 and is_one_error(err) and "gone is not a model folder" in err


def test_weights_that_are_no_numbers(fcclip, photos, tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / weights.WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    (size,) = struct.unpack("<Q", data[:8])
    first, last = json.loads(data[8 : 8 + size])["clip.visual.stem.bias"]["data_offsets"]
    data[8 + size + first : 8 + size + last] = b"\xff" * (last - first)
    path.write_bytes(data)
    arguments = ("--checkpoint", tmp_path / "model", "--output", tmp_path / "out", *WORDS, *SMALL)
    code, _, err = fcclip("segment", photos / "a.png", *arguments)
    assert code == 2 and is_one_error(err) and "the weights, or the image given to the model, are not sound" in err
    assert names(tmp_path / "out") == []


# ------------------------------------------------------------------------------ where nothing can be written


@pytest.mark.parametrize("place", ["a_file", "a_file/below", "dangling/below", "\0", "x" * 300])
def test_an_output_folder_that_cannot_be(segment, photos, tmp_path, place):
    (tmp_path / "a_file").write_text("here")
    (tmp_path / "dangling").symlink_to(tmp_path / "a_file" / "nothing")
    code, _, err = segment(photos / "a.png", *WORDS, output=f"{tmp_path}/{place}")
    assert code == 2 and is_one_error(err) and "cannot write to the output folder" in err
    assert (tmp_path / "a_file").read_text() == "here"


def test_an_output_folder_without_permission(segment, photos, tmp_path, monkeypatch):
    # Permissions do not bind the administrator, who may run this.
    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(segment_files.tempfile, "TemporaryFile", refused)
    code, _, err = segment(photos / "a.png", *WORDS)
    assert code == 2
    assert err == f"error: cannot write to the output folder {tmp_path / 'out'}: Permission denied\n"


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), OSError("encoder error -2")])
def test_a_full_disk(segment, photos, tmp_path, monkeypatch, problem):
    saved = []

    def save(image, path, *arguments):
        saved.append(path.name)
        if len(saved) == 5:  # the second picture of the second photo
            path.write_bytes(b"half a picture")
            raise problem
        real(image, path, *arguments)

    real = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", save)
    code, _, err = segment(photos, *WORDS)
    assert code == 2 and is_one_error(err)
    assert f"cannot write the results of {photos}/b.jpg to {tmp_path}/out: " in err
    assert ("No space left on device" in err) or ("is the disk full?" in err)
    assert names(tmp_path / "out") == ["a.json", "a.overlay.png", "a.panoptic.png", "a.semantic.png"]


@pytest.mark.parametrize("error", [MemoryError(), "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes."])
def test_too_little_memory(segment, photos, tmp_path, monkeypatch, error):
    def exhausted(*arguments):
        raise jax.errors.JaxRuntimeError(error) if isinstance(error, str) else error

    monkeypatch.setattr(Segmenter, "_encode", exhausted)
    code, _, err = segment(photos / "a.png", *WORDS)
    assert code == 2 and is_one_error(err) and "not enough memory" in err and "--batch_size" in err
    assert names(tmp_path / "out") == []


def test_other_errors_of_the_device_are_not_hidden(segment, photos, monkeypatch):
    def broken(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    monkeypatch.setattr(Segmenter, "_encode", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        segment(photos / "a.png", *WORDS)
