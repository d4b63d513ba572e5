"""A run that cannot start ends in one line and leaves its work folder as it was; a run with odd images goes on."""

import json

import numpy as np
import pytest
from PIL import Image

from fcclip_jax import cli, run_options, train_command
from fcclip_jax.data.drawn import draw_dataset
from tests.own_process import finish, shared_folder
from tests.training.train_process import SMALLEST, metrics, start_training


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs `fcclip train` with overrides in this process; the line that it ends with."""
    monkeypatch.setattr(run_options, "set_up_logging", lambda: None)

    def call(*overrides, workdir=None, code=2) -> str:
        arguments = ["train", "--config", str(SMALLEST), "--workdir", str(workdir or tmp_path / "run")]
        assert cli.main(arguments + [f"--config.{override}" for override in overrides]) == code
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        return said.removeprefix("error: ").strip()

    return call


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mesh.data=3"], "mesh.data 3 x mesh.fsdp 1 does not make the 1 devices that are here"),
        (["mesh.fsdp=2"], "mesh.data 0 x mesh.fsdp 2 does not make the 1 devices that are here"),
        (["mesh.data=-1", "mesh.fsdp=-1"], "only one of mesh.data and mesh.fsdp can be -1"),
        (
            ["batch_size=9", "accumulate=2"],
            "batch_size 9 does not split over 1 devices x 2 accumulation steps: take a multiple of 2, for example 8",
        ),
        (["model.variant=smalest"], "there is no model.variant smalest; did you mean smallest? All: "),
        (["optimizer.clip_norm=0"], "optimizer.clip_norm must be above 0, not 0.0"),
        (["data.kind=coco"], "model.towers is empty: give the folder of the frozen towers"),
        (["model.towers=nowhere"], "nowhere"),
        (["model.start_from=nowhere"], "nowhere"),
    ],
)
def test_refused(refused, tmp_path, overrides, message):
    assert message in refused(*overrides)
    assert not (tmp_path / "run").exists()


def test_towers_of_another_model(refused, tiny_model):
    said = refused(f"model.towers={tiny_model}")
    assert said == f"model.towers {tiny_model} holds convnext_tiny_test, model.variant is smallest"


def test_a_start_from_another_model(refused, tiny_model):
    assert f"model.start_from {tiny_model}" in refused(f"model.start_from={tiny_model}")


def test_a_work_folder_that_is_a_file(refused, tmp_path):
    (tmp_path / "run").write_text("mine")
    assert refused() == f"--workdir {tmp_path / 'run'} is a file: give a folder, which need not exist yet"
    assert (tmp_path / "run").read_text() == "mine"


@pytest.fixture
def odd_images(tmp_path):
    """A COCO folder of four pictures: two as they are drawn, one that has no segment, one that has only a crowd."""
    folder = draw_dataset(tmp_path / "odd", images=4, size=(64, 80))
    content = json.loads((folder / "panoptic.json").read_text())
    for annotation in content["annotations"]:
        if annotation["image_id"] == 3:
            annotation["segments_info"] = []
            Image.fromarray(np.zeros((64, 80, 3), np.uint8)).save(folder / "panoptic" / annotation["file_name"])
        elif annotation["image_id"] == 4:
            for segment in annotation["segments_info"]:
                segment["iscrowd"] = 1
    (folder / "panoptic.json").write_text(json.dumps(content))
    return folder


@pytest.mark.slow
def test_odd_images_are_counted_and_the_run_goes_on(odd_images, tmp_path, tmp_path_factory):
    """In an epoch of four images: two without a segment to learn, and what is over two segments an image."""
    overrides = (
        "data.kind=coco",
        "model.random_towers=true",
        f"data.images={odd_images}/images",
        f"data.panoptic={odd_images}/panoptic",
        f"data.annotations={odd_images}/panoptic.json",
        f"data.labels={odd_images}/labels.txt",
        "data.max_segments=2",
        "steps=2",
        "log_every=1",
    )
    process, log = start_training(tmp_path / "run", shared_folder(tmp_path_factory, "cache"), *overrides)
    finish(process, log)
    annotations = json.loads((odd_images / "panoptic.json").read_text())["annotations"]
    dropped = sum(len(a["segments_info"]) - 2 for a in annotations if a["image_id"] <= 2)
    assert dropped > 0
    for line in metrics(tmp_path / "run"):  # each batch of eight is the four images twice
        assert line["images_without_segments"] == 4 and line["segments"] == 8
        assert line["dropped_segments"] == 2 * dropped
        assert np.isfinite(line["loss"])


@pytest.mark.slow
def test_a_loss_that_is_not_finite(tmp_path, tmp_path_factory):
    """Parameters that a mad learning rate has thrown far out. The state before the bad step is saved."""
    overrides = ("optimizer.learning_rate=1e37", "optimizer.milestones=(99,)", "checkpoint_every=0")
    process, log = start_training(tmp_path / "run", shared_folder(tmp_path_factory, "cache"), *overrides)
    said = finish(process, log, code=train_command.EXIT_NOT_FINITE)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    step = int(line.split()[2].rstrip(":"))
    assert line.startswith(f"error: step {step}: not finite: ") and "loss" in line and "images [" in line
    assert line.endswith(f"The state before it is saved in {tmp_path / 'run' / 'checkpoints'}")
    (saved,) = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdecimal()]
    assert int(saved) == step - 1
