"""Evaluations that are killed, spread over devices, and over processes: always the same figures, nothing twice."""

import json
import signal
import socket
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.evaluation.result_folder import ResultFolder
from tests.evaluate.command import arguments, metrics
from tests.evaluate.own_data import SIZES
from tests.own_process import finish, shared_folder, start

PROGRAM = str(Path(__file__).parent / "counted_evaluate.py")
KILLED_AFTER = 3


class Runs:
    """Runs the command in processes of its own, and remembers what went through the network."""

    def __init__(self, base: Path, cache: Path, data: Path, model: Path):
        self.base, self.cache, self.data, self.model = base, cache, data, model

    def __call__(self, name, *more, devices=1, processes=1, die_after=0, code=0) -> tuple[Path, list[int]]:
        """The output folder, and the images (checksums) that this call sent through the network."""
        output = self.base / name
        command = arguments(self.data, self.model, output, *more)
        number = len(list(self.base.glob(f"{name}.*.images")))
        seen, environment = self.base / f"{name}.{number}.images", [{}] * processes
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            command.append("--distributed")
            environment = [
                {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(i)}
                for i in range(processes)
            ]
        seen.touch()
        logs = [self.base / f"{name}.{number}.log{i}" for i in range(processes)]
        started = [
            start([PROGRAM, str(seen), str(die_after), *command], self.cache, log, devices=devices, **environment[i])
            for i, log in enumerate(logs)
        ]
        for process, log in zip(started, logs, strict=True):
            finish(process, log, code=code)
        return output, [int(line) for line in seen.read_text(encoding="ascii").split()]


@pytest.fixture(scope="module")
def runs(data, tiny_model, tmp_path_factory):
    cache = shared_folder(tmp_path_factory, "cache")
    return Runs(tmp_path_factory.mktemp("runs"), cache, data, tiny_model)


@pytest.fixture(scope="module")
def eight(runs):
    """Undisturbed, on eight devices: a batch that seven images do not fill."""
    return runs("eight", "--predictions", devices=8)


@pytest.fixture(scope="module")
def killed(runs):
    """One device, killed in the middle; two processes go on. The recorded images between the two, and what each saw."""
    output, first = runs("killed", "--predictions", die_after=KILLED_AFTER, code=-signal.SIGKILL)
    recorded = set(ResultFolder(output).images())
    _, second = runs("killed", "--predictions", processes=2)
    return output, recorded, first, second


def _checksums(data: Path) -> list[int]:
    images = (np.asarray(Image.open(data / "images" / f"photo_{k}.png")) for k in range(len(SIZES)))
    return [zlib.crc32(image.tobytes()) for image in images]


def test_after_a_kill_nothing_is_computed_twice(killed, data):
    _, recorded, first, second = killed
    checksums = _checksums(data)
    assert len(recorded) == KILLED_AFTER
    done = {checksums[index] for index in recorded}
    assert done <= set(first) and not done & set(second)
    assert sorted(second) == sorted(set(checksums) - done)


def test_each_process_takes_its_share(killed):
    files = [path.name for path in ResultFolder(killed[0]).files()]
    assert files == ["00001-00000.records", "00002-00000.records", "00002-00001.records"]


def test_the_figures_do_not_depend_on_devices_processes_and_kills(killed, eight, data):
    output, seen = eight
    assert metrics(output) == metrics(killed[0])
    assert sorted(seen) == sorted(_checksums(data))


def by_mask(path):
    """The instances of a file, each as (image, class, runs) and its score, sorted."""
    entries = json.loads(path.read_text())
    return sorted(((e["image_id"], e["category_id"], e["segmentation"]["counts"]), e["score"]) for e in entries)


def test_nor_do_the_predictions(killed, eight):
    output, other = killed[0] / "predictions", eight[0] / "predictions"
    files = sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert len(files) == 2 * len(SIZES) + 2
    for file in files:
        if file.name == "instances.json":
            # Sums run in another order where a device has more images: the sixth digit of a score may differ, and with
            # it the order of instances that score alike.
            found, expected = (by_mask(folder / file) for folder in (output, other))
            assert [key for key, _ in found] == [key for key, _ in expected]
            assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-5)
        else:
            assert (output / file).read_bytes() == (other / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "processes"), [(1, 1), (1, 2), (4, 2)])
def test_undisturbed_with_other_devices_and_processes(runs, eight, data, devices, processes):
    output, seen = runs(f"{devices} x {processes}", devices=devices, processes=processes)
    assert metrics(output) == metrics(eight[0])
    assert sorted(seen) == sorted(_checksums(data))


@pytest.mark.slow
def test_a_bad_image_in_one_process_ends_all(runs, data, tmp_path):
    broken = tmp_path / "labels.txt"
    broken.write_text((data / "labels.txt").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "images").mkdir()
    for path in (data / "images").iterdir():
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes()[: 100 if path.name == "photo_3.png" else None])
    runs("bad", f"--config.folder.images={tmp_path / 'images'}", processes=2, code=2)
    logs = [(runs.base / f"bad.0.log{i}").read_text() for i in range(2)]
    assert sum("another process has stopped" in log for log in logs) == 1
    assert sum("photo_3.png" in log for log in logs) == 1
