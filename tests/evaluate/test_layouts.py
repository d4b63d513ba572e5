"""Every benchmark's folders, from what is downloaded to the report: prepare, evaluate, and score of the predictions
against the benchmark's own truth. The found masks are given their true classes, so that there is something to count."""

import json
from pathlib import Path

import pytest

from fcclip_jax import cli
from fcclip_jax.data.benchmarks import BENCHMARKS
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from tests import benchmark_layouts as layouts
from tests.conftest import SHARED
from tests.evaluation.score_command import read, score

CONFIGS = Path(__file__).parents[2] / "configs"
# Photos are 40 x 60 and go through the program of 64 x 64.
OPTIONS = ("--config.min_size=64", "--config.max_size=64", "--config.overlap_threshold=0.3", "--config.workers=1")
ADE, CITY = "ADEChallengeData2016", "cityscapes/gtFine"
SEMANTIC = {
    "coco_panoptic": ("coco/panoptic_semseg_val2017", "--predictions_ids", "coco_panoptic"),
    "ade20k_150": (f"{ADE}/annotations/validation", "--ignore", 0, "--classes", 151),
    "cityscapes": (
        *(f"{CITY}/val", "--truth_suffix", "_gtFine_labelTrainIds.png"),
        *("--predictions_ids", "cityscapes_19"),
    ),
    "mapillary_vistas": ("mapillary_vistas/validation/labels", "--ignore", 65),
    "ade20k_847": ("ADE20K_2021_17_01/annotations_detectron2/validation", "--ignore", 65535),
    "pascal_context_59": ("pascal_ctx_d2/annotations_ctx59/validation",),
    "pascal_context_459": ("pascal_ctx_d2/annotations_ctx459/validation", "--ignore", 65535),
    "pascal_voc_20": ("pascal_voc_d2/annotations_pascal20/validation", "--predictions_ids", "pascal_voc_20"),
    "pascal_voc_21": ("pascal_voc_d2/annotations_pascal21/validation",),
    "coco_stuff_171": ("coco/stuffthingmaps_detectron2/val2017",),
}
WRITE = {
    "coco_panoptic": layouts.write_coco,
    "ade20k_150": layouts.write_ade,
    "cityscapes": layouts.write_cityscapes,
    "mapillary_vistas": layouts.write_mapillary,
    "ade20k_847": lambda root: layouts.write_ade_full(root, (640, 640)),
    "pascal_context_59": layouts.write_context_59,
    "pascal_context_459": layouts.write_context_459,
    "pascal_voc_20": layouts.write_voc,
    "pascal_voc_21": layouts.write_voc,
    "coco_stuff_171": layouts.write_coco_stuff,
}
# Embedding more than a hundred words takes too long for every run of the suite.
QUICK = ("cityscapes", "mapillary_vistas", "pascal_context_59", "pascal_voc_20", "pascal_voc_21")


def test_there_is_a_configuration_for_each_benchmark():
    assert {path.stem.removeprefix("eval_") for path in CONFIGS.glob("eval_*.py")} == {*BENCHMARKS, "folder"}
    assert set(WRITE) == set(SEMANTIC) == set(BENCHMARKS)


def _one_word_each(name: str, folder: Path) -> Path:
    """A label file as users of the reference have them, with the first name of each class."""
    vocabulary = Vocabulary.builtin(BENCHMARKS[name].labels)
    lines = [f"{k}:{cls.name}" for k, cls in enumerate(vocabulary.classes)]
    path = folder / "words.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _evaluate(name: str, root: Path, model: Path, output: Path, *more: str) -> dict:
    labels = _one_word_each(name, root)
    command = ["evaluate", "--config", CONFIGS / f"eval_{name}.py", "--checkpoint", model, "--output", output]
    options = (f"--config.root={root}", "--labels", labels, *OPTIONS, *more)
    assert cli.main([str(part) for part in (*command, *options)]) == 0
    return json.loads((output / "figures.json").read_text(encoding="utf-8"))


def _score(name: str, root: Path, predictions: Path, tmp_path: Path) -> dict:
    """Task to the figures of `fcclip score`."""
    benchmark, output = BENCHMARKS[name], tmp_path / "score.json"
    runs = {}
    if benchmark.panoptic:
        truth = root / benchmark.panoptic_json.replace("{split}", "val").replace("{folder}", "validation")
        maps = root / benchmark.panoptic.replace("{split}", "val").replace("{folder}", "validation")
        runs["panoptic"] = (
            *("--truth", truth, "--truth_dir", maps.parent),
            *("--predictions", predictions / "panoptic.json"),
        )
    if benchmark.semantic:
        truth, *more = SEMANTIC[name]
        more += [] if "--classes" in more else ["--classes", Vocabulary.builtin(benchmark.labels).num_classes]
        runs["semantic"] = ("--truth", root / truth, "--predictions", predictions / "semantic", *more)
    if benchmark.instance_protocol == "cityscapes":
        truth, found = root / CITY / "val", predictions / "instances"
        runs["instance"] = ("--truth", truth, "--predictions", found, "--protocol", "cityscapes")
    elif benchmark.instance:
        truth = root / benchmark.instance.replace("{split}", "val")
        runs["instance"] = ("--truth", truth, "--predictions", predictions / "instances.json")
    found = {}
    for task, options in runs.items():
        assert score(task, *options, "--output", output) == 0
        found[task] = read(output)
    return found


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in WRITE])
def test_from_the_download_to_the_report(name, tiny_model, tmp_path):
    WRITE[name](tmp_path)
    assert cli.main(["prepare", name, "--root", str(tmp_path), "--workers", "1"]) == 0
    output = tmp_path / "output"
    found = _evaluate(name, tmp_path, tiny_model, output, "--predictions", "--config.ground_truth=classes")
    scored = _score(name, tmp_path, output / "predictions", tmp_path)
    assert set(scored) == BENCHMARKS[name].truths
    # The JSON of this layout calls all classes things, which the label list knows better.
    apart = ("_th", "_st") if name == "mapillary_vistas" else ()
    for task, figures in scored.items():
        assert found["images"] == figures["images"]
        for figure, value in figures.items():
            if figure not in ("images", "skipped", "per_class") and not figure.endswith(apart):
                assert found[task][figure] == value, (task, figure)
    # Some pixels lie under a mask, which has their class.
    assert found["semantic"]["mIoU"] > 0
    report = (output / "report.md").read_text(encoding="utf-8")
    assert report.startswith(f"# {BENCHMARKS[name].title}\n")
    assert f"{found['images']} of the benchmark's {BENCHMARKS[name].expected_images} images" in report


def test_cityscapes_semantic_maps_hold_the_label_ids(tiny_model, tmp_path):
    """As its own tool reads them, from labelIds."""
    layouts.write_cityscapes(tmp_path)
    assert cli.main(["prepare", "cityscapes", "--root", str(tmp_path), "--workers", "1"]) == 0
    output = tmp_path / "output"
    options = ("--predictions", "--config.tasks=semantic", "--config.ground_truth=classes")
    found = _evaluate("cityscapes", tmp_path, tiny_model, output, *options)
    options = ("--truth_suffix", "_gtFine_labelIds.png", "--truth_ids", "cityscapes_19")
    options += ("--predictions_ids", "cityscapes_19", "--classes", 19, "--output", tmp_path / "score.json")
    assert score("semantic", "--truth", tmp_path / CITY, "--predictions", _moved(output), *options) == 0
    for figure in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert found["semantic"][figure] == read(tmp_path / "score.json")[figure]


def _moved(output: Path) -> Path:
    """The maps under `val`, as in gtFine."""
    (output / "moved").mkdir()
    (output / "predictions" / "semantic").rename(output / "moved" / "val")
    return output / "moved"


def test_a_missing_folder_is_named_with_the_layout(tiny_model, tmp_path, capsys):
    config = str(CONFIGS / "eval_pascal_voc_21.py")
    command = ["evaluate", "--config", config, "--checkpoint", str(tiny_model), "--config.root", str(tmp_path)]
    assert cli.main([*command, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "annotations_pascal21/validation" in said and "pascal_voc_d2/images/validation" in said
    assert len([line for line in said.splitlines() if line.startswith("error")]) == 1


def test_a_label_file_of_another_size_is_refused(tiny_model, tmp_path, capsys):
    layouts.write_voc(tmp_path)
    assert cli.main(["prepare", "pascal_voc_20", "--root", str(tmp_path), "--workers", "1"]) == 0
    (tmp_path / "words.txt").write_text("cat\ndog\n", encoding="utf-8")
    config = str(CONFIGS / "eval_pascal_voc_20.py")
    command = ["evaluate", "--config", config, "--checkpoint", str(tiny_model), "--config.root", str(tmp_path)]
    assert cli.main([*command, "--labels", str(tmp_path / "words.txt"), "--output", str(tmp_path / "out")]) == 2
    assert "the vocabulary has 2 classes" in capsys.readouterr().err.replace(":", "")


@pytest.mark.slow
def test_real_photos_of_coco(tiny_model, tmp_path):
    """Two photos of COCO val2017 with their panoptic truth, which is prepared as a download would be."""
    samples = SHARED / "samples"
    if not samples.is_dir():
        pytest.skip("the photos (../shared/samples) are not beside this checkout")
    coco = tmp_path / "coco"
    for folder in ("annotations", "val2017", "panoptic_val2017"):
        (coco / folder).mkdir(parents=True)
    truth = json.loads((samples / "panoptic.json").read_text())
    truth["categories"] = json.loads((samples / "panoptic_coco_categories.json").read_text())
    (coco / "annotations" / "panoptic_val2017.json").write_text(json.dumps(truth))
    for path in samples.glob("*.jpg"):
        (coco / "val2017" / path.name).write_bytes(path.read_bytes())
    for path in (samples / "panoptic").glob("*.png"):
        (coco / "panoptic_val2017" / path.name).write_bytes(path.read_bytes())
    assert cli.main(["prepare", "coco_panoptic", "--root", str(tmp_path), "--workers", "1"]) == 0
    output = tmp_path / "output"
    options = ("--predictions", "--config.tasks=panoptic,semantic", "--config.ground_truth=classes", "--worst", "1")
    found = _evaluate("coco_panoptic", tmp_path, tiny_model, output, *options)
    assert found["images"] == 2 and found["semantic"]["mIoU"] > 0
    command = ("--truth", coco / "annotations/panoptic_val2017.json", "--truth_dir", coco / "panoptic_val2017")
    command += ("--predictions", output / "predictions/panoptic.json", "--output", tmp_path / "score.json")
    assert score("panoptic", *command) == 0
    assert {k: v for k, v in read(tmp_path / "score.json").items() if k.startswith(("PQ", "SQ", "RQ"))} == {
        k: v for k, v in found["panoptic"].items() if k.startswith(("PQ", "SQ", "RQ"))
    }
