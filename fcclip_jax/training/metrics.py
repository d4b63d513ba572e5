"""What a run says while it runs: a log line, JSON lines, and TensorBoard where tensorboardX is installed."""

import io
import json
import logging
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fcclip_jax.training.work_folder import Folder, is_remote, local_part, write_whole

log = logging.getLogger(__name__)

# Dense bfloat16 peaks of one jax device, FLOP/s, as its vendor states them, by the beginning of `device_kind`; the
# longest that fits counts. Others are left out of the MFU. A device is one core, half a chip, on TPU v2, v3 and 7x.
# V100 and T4 have no bfloat16 units: theirs is the float16 peak.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
    """That of one device, None for one that the table does not know."""
    known = [kind for kind in PEAK_FLOPS if re.match(rf"{re.escape(kind)}(?![A-Za-z0-9])", device_kind)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


@runtime_checkable
class Writer(Protocol):
    """Takes the numbers of one step. `begin` comes first: the run goes on after `step`, so whatever an earlier, killed
    process wrote of later steps is taken back."""

    def begin(self, step: int) -> None: ...

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, picture: np.ndarray) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line: `{"step": 10, "loss": 1.5, ...}`. Numbers that are not finite become null."""

    def __init__(self, path: Folder):
        self._path = path
        # An object cannot be appended to, so it is written anew, whole.
        self._lines: list[str] | None = [] if is_remote(path) else None

    def begin(self, step: int) -> None:
        """Keeps the lines up to `step`, and drops later ones and one that was cut short."""
        if self._path.is_file():
            kept = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_whole(self._path, "".join(line + "\n" for line in kept))
            if self._lines is not None:
                self._lines = [line + "\n" for line in kept]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        clean = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = json.dumps({"step": step} | clean) + "\n"
        if self._lines is not None:
            self._lines.append(line)
            self._path.write_text("".join(self._lines))
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Pictures:
    """Pictures as PNG files, `pictures/name-STEP.png`."""

    def __init__(self, folder: Folder):
        self._folder = folder

    def begin(self, step: int) -> None:
        pass

    def write(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png")
        self._folder.mkdir(exist_ok=True)
        (self._folder / f"{name}-{step:08d}.png").write_bytes(file.getvalue())

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files through tensorboardX."""

    def __init__(self, folder: Path):
        import tensorboardX

        self._make, self._folder, self._writer = tensorboardX.SummaryWriter, folder, None

    def begin(self, step: int) -> None:
        """TensorBoard itself hides what it finds from the next step on in older files."""
        self._writer = self._make(str(self._folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def make_writers(workdir: Folder) -> list[Writer]:
    """All writers that can run here, into `workdir`."""
    writers: list[Writer] = [JsonLines(workdir / "metrics.jsonl"), Pictures(workdir / "pictures")]
    try:
        writers.append(TensorBoard(local_part(workdir) / "tensorboard"))
    except ImportError:
        log.info("tensorboardX is not installed: no TensorBoard files (pip install 'fcclip_jax[train]')")
    return writers


class Clock:
    """Times of a run: seconds a step, images a second, time left, and the share of the devices' peak."""

    def __init__(self, batch_size: int, total_steps: int, device_kind: str, devices: int):
        self.batch_size, self.total_steps = batch_size, total_steps
        peak = peak_flops(device_kind)
        self.peak = peak * devices if peak else None
        self.flops_per_step: float | None = None  # of all devices together
        self._since, self._step, self._waited = time.perf_counter(), 0, 0.0

    def start(self, step: int) -> None:
        """Forgets what came before: compiling, evaluation, saving."""
        self._since, self._step, self._waited = time.perf_counter(), step, 0.0

    def waited(self, seconds: float) -> None:
        """Time in which the step had to wait for data."""
        self._waited += seconds

    def read(self, step: int) -> dict[str, float]:
        """The figures since the last `start` or `read`."""
        steps, now = step - self._step, time.perf_counter()
        if steps < 1:
            return {}
        seconds = (now - self._since) / steps
        figures = {
            "seconds_per_step": seconds,
            "images_per_second": self.batch_size / seconds,
            "data_wait_share": self._waited / max(now - self._since, 1e-9),
            "seconds_left": seconds * (self.total_steps - step),
        }
        if self.peak and self.flops_per_step:
            figures["mfu"] = self.flops_per_step / seconds / self.peak
        self.start(step)
        return figures


def device_memory(devices: list[Any]) -> dict[str, float]:
    """Peak bytes in use on the fullest device, where the platform tells."""
    peaks = [
        stats["peak_bytes_in_use"] for d in devices if (stats := d.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    return {"device_memory_peak_bytes": float(max(peaks))} if peaks else {}


def log_line(step: int, total: int, values: Mapping[str, float]) -> str:
    """The numbers that a person watches."""
    parts = [f"step {step}/{total}"]
    for name, form in (
        ("loss", "loss {:.4f}"),
        ("loss_ce", "ce {:.3f}"),
        ("loss_mask", "mask {:.3f}"),
        ("loss_dice", "dice {:.3f}"),
        ("grad_norm", "grad {:.3g}"),
        ("learning_rate", "lr {:.2g}"),
        ("images_per_second", "{:.2f} images/s"),
        ("mfu", "mfu {:.1%}"),
    ):
        if name in values:
            parts.append(form.format(values[name]))
    if "seconds_left" in values:
        parts.append(f"{_duration(values['seconds_left'])} left")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h" if days else f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
