"""`fcclip evaluate` on a small data set of one's own, with the tiny model."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.evaluate.command import evaluate, figures, metrics
from tests.evaluate.own_data import SIZES
from tests.evaluation.score_command import read, score


def test_every_task_has_something_to_count(evaluated):
    found = figures(evaluated)
    assert found["images"] == len(SIZES) and found["skipped"] == []
    for task, name in (("panoptic", "PQ"), ("semantic", "mIoU"), ("instance", "AP")):
        assert 1 < found[task][name] < 99, (task, found[task][name])
    panoptic = found["panoptic"]["per_class"]
    assert all(sum(c[key] for c in panoptic) > 0 for key in ("TP", "FP", "FN"))


def test_score_gives_the_same_figures_of_the_predictions(evaluated, data, tmp_path):
    predictions = evaluated / "predictions"
    runs = {
        "panoptic": ("--truth", data / "panoptic.json", "--predictions", predictions / "panoptic.json"),
        "instance": ("--truth", data / "instances.json", "--predictions", predictions / "instances.json"),
        "semantic": (
            *("--truth", data / "semantic", "--predictions", predictions / "semantic"),
            *("--classes", 6, "--truth_ids", data / "labels.txt", "--predictions_ids", data / "labels.txt"),
        ),
    }
    for kind, options in runs.items():
        assert score(kind, *options, "--output", tmp_path / f"{kind}.json") == 0
        expected = {k: v for k, v in read(tmp_path / f"{kind}.json").items() if k not in ("images", "skipped")}
        found = figures(evaluated)[kind]
        if kind == "semantic":  # score does not know the names
            for ours, theirs in zip(found["per_class"], expected["per_class"], strict=True):
                ours["name"] = theirs["name"]
        assert found == expected, kind


def test_the_report_names_the_images_and_classes(evaluated):
    text = (evaluated / "report.md").read_text(encoding="utf-8")
    assert "| percent | PQ | AP | mIoU |" in text
    assert f"- {len(SIZES)} images" in text and "no row for convnext_tiny_test" in text
    assert "clock" in text and "## Lowest images" in text


def test_pictures_of_the_worst_images(evaluated):
    names = sorted(path.name for path in (evaluated / "worst").iterdir())
    assert len(names) == 2
    for name in names:
        height, width = SIZES[int(name.split("_")[1].removesuffix(".png"))]
        assert Image.open(evaluated / "worst" / name).size == (3 * width, height)


def test_again_computes_nothing(evaluated, data, tiny_model, monkeypatch):
    """All images have a record, so not even the model is read."""
    before = metrics(evaluated)
    (evaluated / "figures.json").unlink()
    monkeypatch.setattr("fcclip_jax.benchmark_run.load_segmenter", lambda *_: pytest.fail("the model was loaded"))
    assert evaluate(data, tiny_model, evaluated, "--predictions", "--worst", "2") == 0
    assert metrics(evaluated) == before


@pytest.mark.slow  # one more program to compile; test_processes.py has a batch for eight devices
def test_in_batches_the_figures_are_the_same(evaluated, data, tiny_model, tmp_path):
    """Batches of three of seven images: the last one is not full."""
    assert evaluate(data, tiny_model, tmp_path / "out", "--config.batch_size=3") == 0
    assert metrics(tmp_path / "out") == metrics(evaluated)


def test_the_first_images_alone_then_the_rest(evaluated, data, tiny_model, tmp_path):
    assert evaluate(data, tiny_model, tmp_path / "out", "--config.max_images=3") == 0
    assert figures(tmp_path / "out")["images"] == 3
    assert evaluate(data, tiny_model, tmp_path / "out") == 0
    assert metrics(tmp_path / "out") == metrics(evaluated)
    assert len(list((tmp_path / "out" / "records").iterdir())) == 2


def test_a_record_that_is_missing_in_the_end_is_told(evaluated, data, tiny_model, tmp_path, monkeypatch, capsys):
    """As where processes do not see one folder."""
    monkeypatch.setattr("fcclip_jax.image_loop.RecordWriter.append", lambda *_: None)
    assert evaluate(data, tiny_model, tmp_path / "out") == 2
    assert "7 of 7 images have no record" in capsys.readouterr().err
    assert not (tmp_path / "out" / "figures.json").exists()


def test_another_evaluation_is_refused(evaluated, data, tiny_model, capsys):
    assert evaluate(data, tiny_model, evaluated, "--predictions", "--worst", "2", "--config.min_size=32") == 2
    said = capsys.readouterr().err
    assert "holds the results of another evaluation: options.min_size 64 (now 32)" in said
    assert metrics(evaluated)["images"] == len(SIZES)


def test_other_annotations_are_another_evaluation(evaluated, data, tiny_model, tmp_path, capsys):
    other = json.loads((data / "panoptic.json").read_text(encoding="utf-8"))
    other["annotations"][0]["segments_info"][0]["iscrowd"] = 1
    (tmp_path / "panoptic.json").write_text(json.dumps(other), encoding="utf-8")
    more = ("--predictions", "--worst", "2", f"--config.folder.annotations={tmp_path / 'panoptic.json'}")
    assert evaluate(data, tiny_model, evaluated, *more) == 2
    assert "another evaluation: annotations.panoptic.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--config.classifier=both"], "classifier is one of"),
        (["--config.clasifier=ensemble"], "did you mean classifier?"),
        (["--config.tasks=depth"], "not 'depth'"),
        (["--config.augment.flip=true"], None),
        (["--config.folder.images=nowhere"], "nowhere: no such folder"),
        (["--config.folder.annotations="], "go together"),
        (["--labels", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(data, tiny_model, tmp_path, capsys, more, said):
    if said is None:
        more, said = [*more, "--config.tasks=panoptic"], "augment is for the semantic task alone"
    assert evaluate(data, tiny_model, tmp_path / "out", *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "out" / "figures.json").exists()


def test_a_vocabulary_of_another_size_is_refused_before_the_first_image(data, tiny_model, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("3:shelf\n5:sky [stuff]\n6:sand [stuff]\n", encoding="utf-8")
    assert evaluate(data, tiny_model, tmp_path / "out", "--labels", str(tmp_path / "labels.txt")) == 2
    assert "has 6 categories where the vocabulary has 3" in capsys.readouterr().err
    assert not (tmp_path / "out" / "records").exists()


@pytest.fixture
def damaged(data, tmp_path):
    """A copy in which one image is cut short, and one panoptic map has an id that the JSON does not list."""
    import shutil

    folder = shutil.copytree(data, tmp_path / "damaged")
    image = folder / "images" / "photo_2.png"
    image.write_bytes(image.read_bytes()[:200])
    panoptic = folder / "panoptic" / "photo_4.png"
    pixels = np.array(Image.open(panoptic))
    pixels[0, 0] = 9
    Image.fromarray(pixels).save(panoptic)
    return folder


def test_a_damaged_image_stops_the_evaluation(damaged, tiny_model, tmp_path, capsys):
    assert evaluate(damaged, tiny_model, tmp_path / "out") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "photo_2.png" in errors[0]


def test_damaged_images_are_passed_over_and_mended_ones_taken_up(damaged, data, evaluated, tiny_model, tmp_path):
    assert evaluate(damaged, tiny_model, tmp_path / "out", "--skip_bad") == 1
    found = figures(tmp_path / "out")
    assert found["images"] == len(SIZES) - 2
    assert ["photo_2.png" in found["skipped"][0], "photo_4.png" in found["skipped"][1]] == [True, True]
    assert "## Passed over" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert evaluate(data, tiny_model, tmp_path / "out", "--skip_bad") == 0
    assert metrics(tmp_path / "out") == metrics(evaluated)


@pytest.mark.parametrize("classifier", ["in_vocabulary", "out_vocabulary"])
def test_one_classifier_alone(data, evaluated, tiny_model, tmp_path, classifier):
    options = (f"--config.classifier={classifier}", "--config.tasks=semantic")
    assert evaluate(data, tiny_model, tmp_path / "out", *options) == 0
    found = figures(tmp_path / "out")
    assert found["semantic"] != figures(evaluated)["semantic"]
    assert f"classifier: {classifier} alone" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow  # a program of its own
def test_true_masks_leave_only_wrong_names(data, tiny_model, tmp_path):
    """Every true segment that is no crowd is found, under some name: of the rest nothing is missed but by name."""
    assert evaluate(data, tiny_model, tmp_path / "out", "--config.ground_truth=masks", "--predictions") == 0
    found = figures(tmp_path / "out")["panoptic"]["per_class"]
    assert all(c["SQ"] == pytest.approx(100) for c in found if c["TP"])
    predicted = json.loads((tmp_path / "out" / "predictions" / "panoptic.json").read_text(encoding="utf-8"))
    truth = json.loads((data / "panoptic.json").read_text(encoding="utf-8"))
    for ours, theirs in zip(predicted["annotations"], truth["annotations"], strict=True):
        assert ours["image_id"] == theirs["image_id"]
        areas = sum(s["area"] for s in theirs["segments_info"] if not s["iscrowd"])
        assert sum(s["area"] for s in ours["segments_info"]) == areas


def test_with_true_classes_no_class_is_made_up(data, evaluated, tiny_model, tmp_path):
    assert evaluate(data, tiny_model, tmp_path / "out", "--config.ground_truth=classes", "--predictions") == 0
    truth = json.loads((data / "panoptic.json").read_text(encoding="utf-8"))["annotations"]
    found = json.loads((tmp_path / "out" / "predictions" / "panoptic.json").read_text(encoding="utf-8"))["annotations"]
    for pair in zip(found, truth, strict=True):
        ours, theirs = ({s["category_id"] for s in entry["segments_info"]} for entry in pair)
        assert ours and ours <= theirs
    assert metrics(tmp_path / "out") != metrics(evaluated)


def test_several_views_of_an_image(data, evaluated, tiny_model, tmp_path):
    options = ("--config.augment.min_sizes=(64,)", "--config.augment.max_size=64", "--config.augment.flip=true")
    assert evaluate(data, tiny_model, tmp_path / "out", *options) == 0
    found = figures(tmp_path / "out")
    assert "panoptic" not in found and 1 < found["semantic"]["mIoU"] < 99
    assert found["semantic"] != figures(evaluated)["semantic"]
