"""Exported programs: the same results, without the model's code, with jax alone, and clear words for what is wrong."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.export
import numpy as np
import pytest

from fcclip_jax import cli
from fcclip_jax.exported_model import EXPORT_FILE, ExportError, predict_file
from fcclip_jax.model_export import all_shapes
from fcclip_jax.models.fcclip import FCCLIP
from fcclip_jax.segmenter import Segmenter
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from tests.pictures import photo

WORDS = "cup; saucer, plate; table"
SIZES = ["--min_size", "64", "--max_size", "96"]


def export(model, folder, *options):
    """In a process of its own, as users do it. (Here, types are enforced, and a number of classes that is a symbol is
    no int.)"""
    command = [sys.executable, "-m", "fcclip_jax.cli", "export", "--checkpoint", str(model), "--output", str(folder)]
    done = subprocess.run([*command, *SIZES, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Next: fcclip segment" in done.stdout


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "any_words"
    export(tiny_model, folder, "--shapes", "64x96")
    return folder


@pytest.fixture(scope="module")
def image():
    return photo(60, 90, 1)


@pytest.fixture(scope="module")
def expected(tiny_model, image):
    segmenter = Segmenter.from_checkpoint(tiny_model, min_size=64, max_size=96)
    encoded = segmenter.encode(image)
    return encoded, segmenter.name(encoded, WORDS, stuff="table", overlap_threshold=0.3)


def test_the_shapes_by_hand():
    assert all_shapes(64, 96) == [(64, 64), (64, 96), (96, 64)]
    assert len(all_shapes(800, 1333)) == 7


def test_an_export_segments_without_the_models_code(exported, image, expected, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the model's code runs")

    monkeypatch.setattr(FCCLIP, "__init__", refuse)
    monkeypatch.setattr(FCCLIP, "__call__", refuse)
    monkeypatch.setattr(FCCLIP, "classify", refuse)
    segmenter = Segmenter.from_checkpoint(exported)
    encoded = segmenter.encode(image)
    theirs, result = expected
    # The same program, traced with both formulations of the platforms; XLA may sum in another order.
    np.testing.assert_allclose(encoded.predictions.masks, theirs.predictions.masks, rtol=1e-4, atol=1e-3)
    ours = segmenter.name(encoded, WORDS, stuff="table", overlap_threshold=0.3)
    assert np.mean(ours.panoptic != result.panoptic) <= 0.001
    assert [s.name for s in ours.segments] == [s.name for s in result.segments] and result.segments
    np.testing.assert_allclose([s.score for s in ours.segments], [s.score for s in result.segments], atol=1e-5)


def test_jax_alone_runs_it(exported, image, expected, tmp_path):
    """What docs/export.md shows, in a process that may not import this package."""
    stored = np.zeros((1, 64, 96, 3), np.float32)
    np.save(tmp_path / "image.npy", stored)
    script = textwrap.dedent("""
        import json, sys
        import jax, numpy as np
        from jax import export
        from safetensors.numpy import load_file
        folder, image, output = sys.argv[1:]
        manifest = json.load(open(folder + "/export.json"))
        weights = load_file(folder + "/model.safetensors")
        parameters = [weights[name] for name in manifest["image_parameters"]]
        program = export.deserialize(bytearray(open(folder + "/predict_64x96.jax", "rb").read()))
        masks, class_embed, clip_embed, valid = jax.jit(program.call)(
            parameters, np.load(image), np.array([[64, 96]], np.int32))
        np.save(output, masks)
        assert "fcclip_jax" not in sys.modules
    """)
    command = [sys.executable, "-c", script, str(exported), str(tmp_path / "image.npy"), str(tmp_path / "masks.npy")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    segmenter = Segmenter.from_checkpoint(exported)
    ours = segmenter._model.predict(stored, np.array([[64, 96]], np.int32))[0].masks
    np.testing.assert_allclose(np.load(tmp_path / "masks.npy"), ours, rtol=1e-4, atol=1e-3)


def test_all_platforms_are_in_one_file(exported):
    program = jax.export.deserialize(bytearray((exported / predict_file((64, 96))).read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert json.loads((exported / EXPORT_FILE).read_text())["shapes"] == [[64, 96]]


def test_baked_words_need_no_text_tower(tiny_model, tmp_path, image, expected):
    folder = tmp_path / "baked"
    words = ["--vocabulary", WORDS, "--stuff", "table"]
    export(tiny_model, folder, "--shapes", "64x96", "--batch_size", "2", "--platforms", "cpu", *words)
    stored = json.loads((folder / EXPORT_FILE).read_text())
    assert stored["text_parameters"] == [] and not (folder / "text.jax").exists()
    segmenter = Segmenter.from_checkpoint(folder, cache_dir=tmp_path / "cache")
    vocabulary = Vocabulary.parse(WORDS, "table")
    (_, ours), (_, again) = segmenter.stream([image, image], vocabulary, batch_size=2, overlap_threshold=0.3)
    assert [s.name for s in ours.segments] == [s.name for s in expected[1].segments] == [s.name for s in again.segments]
    with pytest.raises(ExportError, match="knows only the 4 names"):
        segmenter(image, "dog")
    with pytest.raises(ValueError, match="multiple of 2"):
        list(segmenter.stream([image], vocabulary))


def test_what_an_export_cannot_do_is_said(exported, tmp_path):
    with pytest.raises(ExportError, match="exported with min_size 64"):
        Segmenter.from_checkpoint(exported, min_size=800)
    with pytest.raises(ExportError, match=r"stored in 96x64, and .* holds 64x96"):
        Segmenter.from_checkpoint(exported).encode(photo(90, 60))
    manifest = json.loads((exported / EXPORT_FILE).read_text())
    (tmp_path / EXPORT_FILE).write_text(json.dumps(manifest | {"platforms": ["tpu"]}))
    with pytest.raises(ExportError, match="exported for tpu, and jax runs on cpu"):
        Segmenter.from_checkpoint(tmp_path)
    (tmp_path / EXPORT_FILE).write_text(json.dumps(manifest | {"format_version": 9}))
    with pytest.raises(ExportError, match="version is 9"):
        Segmenter.from_checkpoint(tmp_path)
    (tmp_path / EXPORT_FILE).write_text("{")
    with pytest.raises(ExportError, match="cannot be read"):
        Segmenter.from_checkpoint(tmp_path)


def test_damaged_programs_and_weights(exported, tmp_path):
    import shutil

    folder = shutil.copytree(exported, tmp_path / "copy")
    program = folder / predict_file((64, 96))
    program.write_bytes(program.read_bytes()[:100])
    with pytest.raises(ExportError, match="damaged"):
        Segmenter.from_checkpoint(folder).encode(photo(60, 90))
    program.unlink()
    with pytest.raises(ExportError, match="No such file"):
        Segmenter.from_checkpoint(folder).encode(photo(60, 90))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ExportError, match="cannot be read"):
        Segmenter.from_checkpoint(folder)


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--shapes", "64x65"], "no image is stored in 64x65"),
        (["--shapes", "64"], "--shapes takes HxW"),
        (["--platforms", "rocket"], "no platform 'rocket'"),
        (["--batch_size", "0"], "at least 1"),
    ],
)
def test_options_that_make_no_sense(tiny_model, tmp_path, capsys, options, problem):
    command = ["export", "--checkpoint", str(tiny_model), "--output", str(tmp_path / "out"), *SIZES, *options]
    assert cli.main(command) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_else_is_overwritten(tiny_model, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert cli.main(["export", "--checkpoint", str(tiny_model), "--output", str(tmp_path), *SIZES]) == 2
    assert "is no export" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()
