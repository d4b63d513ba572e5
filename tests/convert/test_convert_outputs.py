"""Outputs: only models are replaced, nothing is ever half-written, and inputs survive."""

import errno
import json
import os

import numpy as np
import pytest
from checkpoints import refused, run, write

from convert import fcclip, to_fcclip
from convert.mapping import Source


def test_what_stands_at_the_output_is_replaced_only_if_it_is_a_model(released, state_dict, tmp_path, capsys):
    output = tmp_path / "out"
    fcclip.convert(released, output)
    before = (output / "config.json").read_text()
    fcclip.convert(write(tmp_path / "again.pth", state_dict), output)
    assert (output / "config.json").read_text() != before
    for make in (
        lambda path: path.write_text("a file"),
        lambda path: (path.mkdir(), (path / "photo.jpg").write_text("")),
        lambda path: (path.mkdir(), (path / "config.json").write_text('{"model_type": "bert"}')),
    ):
        other = tmp_path / f"other{len(list(tmp_path.iterdir()))}"
        make(other)
        assert "is not a model folder" in refused(fcclip.main, capsys, "--input", released, "--output", other)
        assert other.exists()
    (tmp_path / "empty").mkdir()
    fcclip.convert(released, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_an_input_inside_the_output_survives(released, folder, tmp_path, capsys):
    fcclip.convert(released, tmp_path / "out")
    inside = tmp_path / "out" / "original.pth"
    inside.write_bytes(released.read_bytes())
    assert "lies in" in refused(fcclip.main, capsys, "--input", inside, "--output", tmp_path / "out")
    assert inside.exists()


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [(KeyboardInterrupt(), 130, "interrupted"), (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "No space left")],
)
def test_nothing_is_left_when_it_breaks_off(released, folder, tmp_path, capsys, monkeypatch, error, code, told):
    """Ctrl-C and a full disk, both in the middle of the arrays and with an older model in place."""
    output = tmp_path / "out"
    fcclip.convert(released, output)
    before = (output / "report.json").read_text()
    whole = Source.read

    def breaks(self, target):
        if target == "pixel_decoder.level_embed":
            raise error
        return whole(self, target)

    monkeypatch.setattr(Source, "read", breaks)
    found = run(fcclip.main, capsys, "--input", released, "--output", output)
    assert found[0] == code and told in found[2] and "Traceback" not in found[2]
    assert (output / "report.json").read_text() == before
    monkeypatch.setattr(to_fcclip, "plan", lambda *a: (_ for _ in ()).throw(error))
    found = run(to_fcclip.main, capsys, "--checkpoint", folder, "--output", tmp_path / "x.pth")
    assert found[0] == code and told in found[2]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_half_written_checkpoints_are_taken_away(folder, tmp_path, monkeypatch, capsys):
    def breaks(path, shapes, read, **options):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x.pth").write_bytes(write(tmp_path / "y.pth", {"a": np.ones(1, np.float32)}).read_bytes())
    before = (tmp_path / "x.pth").read_bytes()
    monkeypatch.setattr(to_fcclip, "write_torch", breaks)
    assert "No space left" in refused(to_fcclip.main, capsys, "--checkpoint", folder, "--output", tmp_path / "x.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth", "y.pth"]
    assert (tmp_path / "x.pth").read_bytes() == before


def test_outputs_of_the_way_back(folder, tmp_path, capsys):
    (tmp_path / "notes.pth").write_text("my notes")
    (tmp_path / "dir.pth").mkdir()
    for name, told in [
        ("x.bin", "must end with"),
        ("notes.pth", "is not a checkpoint"),
        ("dir.pth", "is a folder"),
    ]:
        assert told in refused(to_fcclip.main, capsys, "--checkpoint", folder, "--output", tmp_path / name)
    assert (tmp_path / "notes.pth").read_text() == "my notes"


def test_folders_that_cannot_go_back(folder, tmp_path, capsys):
    assert "not a model folder" in refused(
        to_fcclip.main, capsys, "--checkpoint", tmp_path, "--output", tmp_path / "x.pth"
    )
    copy = tmp_path / "copy"
    copy.mkdir()
    card = json.loads((folder / "config.json").read_text())
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (copy / "config.json").write_text(json.dumps(card | {"train_classes": None}))
    arguments = ("--checkpoint", copy, "--output", tmp_path / "x.pth")
    assert "does not say which classes" in refused(to_fcclip.main, capsys, *arguments)
    card["config"]["transformer_decoder"]["queries"] = 11
    (copy / "config.json").write_text(json.dumps(card))
    assert "transformer_decoder.query_feat (10, 32), expected (11, 32)" in refused(to_fcclip.main, capsys, *arguments)
