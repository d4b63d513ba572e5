import json

import numpy as np
import pytest

from fcclip_jax.training import metrics
from fcclip_jax.training.metrics import Clock, JsonLines, Pictures, log_line, peak_flops


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-16GB", 125),
    ],
)
def test_peaks_by_the_names_that_jax_gives(kind, peak):
    assert peak_flops(kind) == peak * 1e12


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L400", "TPU v50", "NVIDIA GeForce GTX 1080", ""])
def test_unknown_devices_have_no_peak(kind):
    assert peak_flops(kind) is None
    assert Clock(8, 100, kind, 4).peak is None


def test_clock_by_hand(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    clock = Clock(batch_size=16, total_steps=100, device_kind="NVIDIA H100 80GB HBM3", devices=2)
    clock.flops_per_step = 989e12  # what one of the two can do in a second
    clock.start(10)
    clock.waited(1.5)
    now[0] += 10.0
    figures = clock.read(15)
    assert figures == {
        "seconds_per_step": 2.0,
        "images_per_second": 8.0,
        "data_wait_share": 0.15,
        "seconds_left": 170.0,
        "mfu": 0.25,
    }
    assert clock.read(15) == {}  # no step since
    assert "2m50s left" in log_line(15, 100, figures) and "mfu 25.0%" in log_line(15, 100, figures)


def test_lines_of_a_killed_process_are_taken_back(tmp_path):
    writer = JsonLines(tmp_path / "metrics.jsonl")
    writer.begin(0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step / 2, "bad": float("nan")})
    with writer._path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    writer.begin(2)
    writer.write(3, {"loss": 7.0})
    lines = [json.loads(line) for line in writer._path.read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 0.5, "bad": None},
        {"step": 2, "loss": 1.0, "bad": None},
        {"step": 3, "loss": 7.0},
    ]


def test_pictures_are_files(tmp_path):
    from PIL import Image

    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    Pictures(tmp_path / "pictures").image(7, "prediction", picture)
    np.testing.assert_array_equal(Image.open(tmp_path / "pictures" / "prediction-00000007.png"), picture)
