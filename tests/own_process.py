"""Programs in processes of their own, for tests that need several devices, signals, or a death."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]

# Compiling is nearly all that these tests do, and these flags make it four times faster (20.6 to 5.1 CPU seconds for
# the smallest step). The second one left with jax 0.11, and an unknown flag ends the process.
QUICK = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
)


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder of this test session, shared by its workers."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    folder.mkdir(exist_ok=True)
    return folder


def start(
    arguments: list[str], cache: Path, log: Path, *, devices: int = 1, flags: str = QUICK, **environment: str
) -> subprocess.Popen:
    """Starts Python with these arguments on so many simulated devices, its output in `log`.

    Args:
        cache: for compiled programs and text embeddings, so that one process compiles for the next.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {flags}",
        # Simulated devices share few cores: one step at a time, or two steps' collectives may wait for each other.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "FCCLIP_CACHE": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": str(ROOT),
        # Four seconds of every start, where Python is told not to keep what it compiles.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(cache / "bytecode"),
        "PYTHONFAULTHANDLER": "1",
        **environment,
    }
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )


def finish(process: subprocess.Popen, log: Path, *, code: int = 0, timeout: float = 900) -> str:
    """Waits, asserts the exit code, and returns what the process said."""
    try:
        found = process.wait(timeout)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    said = log.read_text(errors="replace")
    assert found == code, f"exit code {found}, expected {code}:\n{said[-4000:]}"
    return said
