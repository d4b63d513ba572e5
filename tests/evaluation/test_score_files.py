"""`fcclip score` as a user meets it: files in, a JSON of figures and a table out, one clear line for bad input."""

import numpy as np
import pytest
from panoptic_samples import CATEGORIES, random_pair
from PIL import Image
from score_command import drop, read, score, write

from fcclip_jax.evaluation import tally as tally_module
from fcclip_jax.evaluation.panoptic_quality import PanopticQuality
from fcclip_jax.evaluation.png import BadSample

# The official tools add up the same numbers in another order, and PQ's IoU are rounded to multiples of 2^-40.
ROUNDING = 1e-12


def to_rgb(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)


# The reference's figures ----------------------------------------------------------------------------------------------


def test_panoptic_figures_of_the_reference(oracle, tmp_path, capsys):
    folder, output = oracle / "eval", tmp_path / "figures.json"
    files = ("--truth", folder / "gt_panoptic.json", "--predictions", folder / "pred_panoptic.json")
    folders = ("--truth_dir", folder / "gt_panoptic", "--predictions_dir", folder / "pred_panoptic")
    expected = read(folder / "results.json")
    for extra in ((), folders):
        assert score("panoptic", *files, *extra, "--output", output) == 0
        figures = read(output)
        for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
            for figure in ("pq", "sq", "rq"):
                assert figures[figure.upper() + suffix] / 100 == pytest.approx(expected["pq"][group][figure], ROUNDING)
            assert figures["n" + suffix] == expected["pq"][group]["n"]
    for c in figures["per_class"]:
        counts = expected["pq_counts"].get(str(c["id"]), {"tp": 0, "fp": 0, "fn": 0, "iou": 0.0})
        assert [c["TP"], c["FP"], c["FN"]] == [counts[k] for k in ("tp", "fp", "fn")]
        assert c["IoU_sum"] == pytest.approx(counts["iou"], ROUNDING)
        assert (c["PQ"] or 0.0) / 100 == pytest.approx(expected["pq_per_class"][str(c["id"])]["pq"], ROUNDING)
    assert "all classes (11)         41.34  52.26   50.68" in capsys.readouterr().out


def test_semantic_figures_of_the_reference(oracle, tmp_path):
    folder, output = oracle / "eval", tmp_path / "figures.json"
    sides = ("--truth", folder / "gt_sem", "--predictions", folder / "pred_sem")
    assert score("semantic", *sides, "--classes", 133, "--ignore", 255, "--output", output) == 0
    expected, figures = read(folder / "results.json"), read(output)
    for name, value in expected["sem_seg"].items():
        assert figures[name] == pytest.approx(value, ROUNDING)
    for figure in ("IoU", "ACC"):
        theirs = [v for name, v in expected["sem_seg_per_class"].items() if name.startswith(figure)]
        ours = [c[figure] for c in figures["per_class"] if c[figure] is not None]
        assert ours == pytest.approx([v for v in theirs if v == v], ROUNDING)


def test_instance_figures_of_the_reference(oracle, tmp_path):
    pytest.importorskip("hotcoco", reason="mask AP needs hotcoco, of the extra `evaluate`")
    folder, output = oracle / "eval", tmp_path / "figures.json"
    sides = ("--truth", folder / "gt_instances.json", "--predictions", folder / "pred_instances.json")
    assert score("instance", *sides, "--output", output) == 0
    expected, figures = read(folder / "results.json"), read(output)
    for name, value in expected["coco_segm_stats"].items():
        assert (-1 if figures[name] is None else figures[name] / 100) == pytest.approx(value, ROUNDING)
    ours = {str(c["id"]): c["AP"] / 100 for c in figures["per_class"] if c["AP"] is not None}
    assert ours == pytest.approx(expected["coco_segm_AP_per_category"], ROUNDING)


# Panoptic -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def panoptic(tmp_path):
    """Six pairs on disk; `run(*more)` scores them, `edit(name, change)` changes a JSON file."""

    class Files:
        pairs = [random_pair(np.random.default_rng(seed)) for seed in range(6)]

        def __init__(self):
            for name in ("truth", "prediction"):
                (tmp_path / name).mkdir()
            annotations = {"truth": [], "prediction": []}
            for k, (truth, true_segments, prediction, predicted_segments) in enumerate(self.pairs):
                for name, ids, segments in (
                    ("truth", truth, true_segments),
                    ("prediction", prediction, predicted_segments),
                ):
                    Image.fromarray(to_rgb(ids)).save(tmp_path / name / f"{k}.png")
                    annotations[name].append({"image_id": k, "file_name": f"{k}.png", "segments_info": segments})
            images = [{"id": k, "height": p[0].shape[0], "width": p[0].shape[1]} for k, p in enumerate(self.pairs)]
            truth = {"images": images, "annotations": annotations["truth"], "categories": CATEGORIES}
            write(tmp_path / "truth.json", truth)
            write(tmp_path / "prediction.json", {"annotations": annotations["prediction"]})

        def edit(self, name, change):
            content = read(tmp_path / f"{name}.json")
            change(content)
            write(tmp_path / f"{name}.json", content)

        def run(self, *more) -> int:
            sides = ("--truth", tmp_path / "truth.json", "--predictions", tmp_path / "prediction.json")
            return score("panoptic", *sides, "--output", tmp_path / "new" / "figures.json", *more)

        def figures(self) -> dict:
            return read(tmp_path / "new" / "figures.json")

        def expected(self, *skipped: int) -> dict:
            quality = PanopticQuality(CATEGORIES)
            for k, pair in enumerate(self.pairs):
                if k not in skipped:
                    quality.update(*pair)
            return quality.compute()

    return Files()


def test_panoptic_files(panoptic, tmp_path, capsys):
    assert panoptic.run() == 0
    figures = panoptic.figures()
    assert figures == panoptic.expected() | {"images": 6, "skipped": []}
    assert "6 images, 0 skipped; figures in" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figures.json"]


def test_several_processes_give_the_same_figures(panoptic, monkeypatch):
    monkeypatch.setattr(tally_module, "CHUNK", 1)
    assert panoptic.run("--workers", 2) == 0
    assert panoptic.figures() == panoptic.expected() | {"images": 6, "skipped": []}
    panoptic.edit("prediction", lambda content: content["annotations"].pop(3))
    with pytest.raises(BadSample, match="no annotation for image_id 3"):
        panoptic.run("--workers", 2)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("prediction", lambda c: c["annotations"].pop(2), r"2.png: the predictions have no annotation for image_id 2"),
        (
            "prediction",
            lambda c: c["annotations"][2]["segments_info"].append({"id": 77, "category_id": 1}),
            r"prediction/2.png: segment 77 is listed in segments_info but has no pixels",
        ),
        (
            "prediction",
            lambda c: c["annotations"][2].update(segments_info=[]),
            r"prediction/2.png: segment \d+ is in the map but not in segments_info",
        ),
        (
            "prediction",
            lambda c: c["annotations"][2]["segments_info"][0].update(category_id=999),
            r"prediction/2.png: segment \d+ has the unknown category_id 999",
        ),
        (
            "truth",
            lambda c: c["annotations"][2].update(segments_info=[]),
            r"truth/2.png: segment \d+ is in the map but not in segments_info",
        ),
        ("truth", lambda c: c["annotations"][2].update(file_name="no.png"), r"truth/no.png: No such file"),
        (
            "truth",
            lambda c: c["images"][2].update(height=99),
            r"truth/2.png: \d+x\d+ pixels .height x width., but the image is 99x\d+ by the JSON file",
        ),
    ],
)
def test_a_bad_panoptic_image_stops_or_is_skipped(panoptic, capsys, name, change, message):
    panoptic.edit(name, change)
    with pytest.raises(BadSample, match=message):
        panoptic.run()
    assert panoptic.run("--skip_bad") == 1
    figures = panoptic.figures()
    assert len(figures["skipped"]) == 1
    assert figures == panoptic.expected(2) | {"images": 5, "skipped": figures["skipped"]}
    assert "5 images, 1 skipped" in capsys.readouterr().out


def test_damaged_or_different_panoptic_images(panoptic, tmp_path):
    path = tmp_path / "prediction" / "4.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadSample, match=r"prediction/4.png: (damaged|not an image)"):
        panoptic.run()
    Image.new("RGB", (123, 45)).save(path)
    with pytest.raises(BadSample, match=r"prediction/4.png: the map is 45x123 pixels .height x width., the truth is"):
        panoptic.run()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("truth", lambda c: drop(c, "categories"), r"truth.json has no list 'categories'. Expected COCO panoptic"),
        ("truth", lambda c: c["annotations"].clear(), r"truth.json has no annotations"),
        ("truth", lambda c: drop(c["annotations"][1], "file_name"), r"image 1 has no 'file_name'. Expected COCO"),
        ("truth", lambda c: drop(c["categories"][0], "isthing"), r"a category has no 'isthing'"),
        ("prediction", lambda c: c.update(annotations=[3]), r"'annotations' in .*prediction.json is not a list of obj"),
        ("prediction", lambda c: c["annotations"][1].update(image_id=0), r"two entries with image_id 0"),
        ("prediction", lambda c: c["annotations"][1].update(image_id=[1]), r"no 'image_id' that is a number"),
    ],
)
def test_another_layout_is_refused_even_with_skip_bad(panoptic, tmp_path, name, change, message):
    panoptic.edit(name, change)
    with pytest.raises(ValueError, match=message) as caught:
        panoptic.run("--skip_bad")
    assert not isinstance(caught.value, BadSample)
    assert not (tmp_path / "new" / "figures.json").exists()


def test_missing_files_and_folders(panoptic, tmp_path):
    with pytest.raises(ValueError, match=r"no such folder: nowhere. Expected the PNGs of .*prediction.json in it"):
        panoptic.run("--predictions_dir", "nowhere")
    with pytest.raises(ValueError, match=r"truth is a folder; it is the JSON file to write"):
        panoptic.run("--output", tmp_path / "truth")
    (tmp_path / "prediction.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"prediction.json is not JSON: .* Expected COCO panoptic JSON"):
        panoptic.run()
    (tmp_path / "prediction.json").unlink()
    with pytest.raises(ValueError, match=r"prediction.json: No such file or directory. Expected COCO panoptic JSON"):
        panoptic.run()


def test_nothing_usable(panoptic, tmp_path):
    panoptic.edit("prediction", lambda content: content["annotations"].clear())
    with pytest.raises(ValueError, match=r"none of the 6 images could be used; the first: .*0.png: the predictions"):
        panoptic.run("--skip_bad")
    assert not (tmp_path / "new" / "figures.json").exists()


# Semantic -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def labels(tmp_path):
    """Two label maps in a subfolder, with class 2 everywhere and one wrong pixel of ten."""
    for side in ("truth", "prediction"):
        (tmp_path / side / "city").mkdir(parents=True)
        for k in range(2):
            Image.fromarray(np.full((2, 5), 2, np.uint8)).save(tmp_path / side / "city" / f"{k}.png")
    wrong = np.full((2, 5), 2, np.uint8)
    wrong[0, 0] = 1
    Image.fromarray(wrong).save(tmp_path / "prediction" / "city" / "0.png")

    def run(*more) -> int:
        sides = ("--truth", tmp_path / "truth", "--predictions", tmp_path / "prediction")
        return score("semantic", *sides, "--output", tmp_path / "figures.json", *more)

    return run


def test_label_folders(labels, tmp_path, capsys):
    assert labels("--classes", 3) == 0
    figures = read(tmp_path / "figures.json")
    assert [figures[name] for name in ("mIoU", "fwIoU", "mACC", "pACC")] == [95.0] * 4
    assert (figures["images"], figures["skipped"], len(figures["per_class"])) == (2, [], 3)
    assert "mIoU   95.00" in capsys.readouterr().out


def test_label_folders_with_suffixes(labels, tmp_path):
    for k in range(2):
        path = tmp_path / "truth" / "city" / f"{k}.png"
        path.rename(path.with_name(f"{k}_labels.png"))
        Image.new("RGB", (5, 2)).save(path.with_name(f"{k}_color.png"))
    assert labels("--classes", 3, "--truth_suffix", "_labels.png") == 0
    assert read(tmp_path / "figures.json")["mIoU"] == 95.0


@pytest.fixture
def numbered(labels, tmp_path):
    """The same maps with the numbers 7, 30 and 20 for the classes; the truth also has a 3, which is no class."""
    (tmp_path / "words.txt").write_text("7:road\n30:train [thing]\n20:sign\n", encoding="utf-8")
    for path in (tmp_path / "prediction" / "city").iterdir():
        Image.fromarray(np.array([7, 30, 20], np.uint8)[np.array(Image.open(path))]).save(path)
    truth = np.full((2, 5), 20, np.uint8)
    truth[1, 4] = 3
    for k, ids in enumerate((truth, np.full((2, 5), 20, np.uint8))):
        Image.fromarray(ids).save(tmp_path / "truth" / "city" / f"{k}.png")
    words = tmp_path / "words.txt"
    return lambda *more: labels("--classes", 3, "--truth_ids", words, "--predictions_ids", words, *more)


def test_label_maps_with_the_numbers_of_a_list(numbered, tmp_path):
    """Nineteen pixels count, of which one is wrong."""
    assert numbered() == 0
    figures = read(tmp_path / "figures.json")
    assert figures["pACC"] == pytest.approx(100 * 18 / 19)
    assert [c["pixels"] for c in figures["per_class"]] == [0, 0, 19]


def test_a_number_that_no_class_has_is_no_prediction(numbered, tmp_path):
    Image.fromarray(np.full((2, 5), 8, np.uint8)).save(tmp_path / "prediction" / "city" / "0.png")
    with pytest.raises(BadSample, match=r"prediction/city/0.png: .*neither one of the 3 classes"):
        numbered()


def test_a_list_that_does_not_fit_is_refused(numbered, labels, tmp_path):
    words = tmp_path / "words.txt"
    with pytest.raises(ValueError, match=r"words.txt has 3 classes, --classes says 4"):
        numbered("--classes", 4)
    with pytest.raises(ValueError, match=r"words.txt has a class with the number 20"):
        numbered("--ignore", 20)
    words.write_text("road\ntrain\nsign\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words.txt has 3 classes without numbers"):
        numbered()


def test_bad_label_maps_stop_or_are_skipped(labels, tmp_path):
    path = tmp_path / "prediction" / "city" / "0.png"
    expected = {
        "label 9 is neither one of the 3 classes": np.full((2, 5), 9, np.uint8),
        "the map is 5x2 pixels": np.full((5, 2), 2, np.uint8),
        "one channel": np.zeros((2, 5, 3), np.uint8),
    }
    for message, array in expected.items():
        Image.fromarray(array).save(path)
        with pytest.raises(BadSample, match=f"prediction/city/0.png: .*{message}"):
            labels("--classes", 3)
    path.unlink()
    with pytest.raises(BadSample, match=r"truth/city/0.png: no prediction, expected .*prediction/city/0.png"):
        labels("--classes", 3)
    assert labels("--classes", 3, "--skip_bad") == 1
    figures = read(tmp_path / "figures.json")
    assert (figures["mIoU"], figures["images"], len(figures["skipped"])) == (100.0, 1, 1)


def test_bad_label_folders(labels, tmp_path):
    with pytest.raises(ValueError, match="with 847 classes, 255 is one of them: give the ignored label"):
        labels("--classes", 847)
    assert labels("--classes", 847, "--ignore", 65535) == 0
    with pytest.raises(ValueError, match=r"no file that ends with .webp"):
        labels("--classes", 3, "--truth_suffix", ".webp")
    with pytest.raises(ValueError, match=r"no such folder: nowhere. Expected label maps"):
        labels("--classes", 3, "--truth", "nowhere")
    (tmp_path / "prediction" / "city" / "0.tif").touch()
    with pytest.raises(ValueError, match=r"0.png and .*0.tif are label maps of the same image"):
        labels("--classes", 3)
