"""`fcclip plan` on eight simulated devices, against arrays that really lie there; projections worked out by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcclip_jax import plan_command
from fcclip_jax.cli import main
from fcclip_jax.training.hardware import CHIPS
from tests.own_process import QUICK, ROOT

SMALLEST = ROOT / "tests" / "training" / "smallest.py"
CONFIG = ("--config", str(SMALLEST))

# What one device holds of arrays that were made, and what the plan of the same run says.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from fcclip_jax import experiment, plan_command
from fcclip_jax.training import sharding

sharding.SMALLEST_SPLIT = 64  # so that much of so small a model is split
config = experiment.load_config(sys.argv[1], [("mesh.fsdp", "4")])
mesh = sharding.make_mesh(2, 4)
_, (state, frozen, batch, _, _) = experiment.abstract_step(config, mesh)
zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
def here(tree, shardings):
    placed = jax.tree.leaves(jax.device_put(zeros(tree), shardings))
    return sum(x.addressable_shards[0].data.nbytes for x in placed)
of = lambda tree: here(tree, sharding.shard_like_parameters(mesh, tree))
measured = {"parameters": of(state.params), "optimizer": of(state.opt_state), "average": of(state.average),
            "frozen": of(frozen), "batch": here(batch, sharding.batch_sharding(mesh))}
whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state.params, frozen)))
plan = plan_command.compile_step(sys.argv[1], [("mesh.fsdp", "4")], None, "tpu")
print(json.dumps({"measured": measured, "plan": plan, "whole": whole}))
"""


@pytest.fixture(scope="module")
def planned() -> dict:
    flags = f"--xla_force_host_platform_device_count=8 {QUICK}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(SMALLEST)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_a_device_holds_is_what_lies_there(planned):
    assert planned["plan"]["holds"] == planned["measured"]
    assert planned["plan"]["holds"]["optimizer"] > 1.9 * planned["plan"]["holds"]["parameters"]
    assert planned["plan"]["peak_bytes"] > sum(planned["measured"].values())


def test_what_a_device_sends_is_parameters_and_gradients(planned):
    """All parameters that are split are gathered once, and their gradients scattered; the rest is summed whole."""
    plan, sent = planned["plan"], planned["plan"]["collectives"]
    held = plan["holds"]["parameters"] + plan["holds"]["frozen"]
    # Of a parameter that is split a device holds a quarter, so what is gathered is at most 4/3 of what is not here.
    gathered = (planned["whole"] - held) * 4 / 3
    # The frozen classifier's projection takes no part in training, and is not gathered.
    assert 0.5 * gathered < sent["all-gather"]["bytes"] <= gathered + 1
    scattered = (plan["works_with"]["gradients"] - plan["holds"]["parameters"]) * 4 / 3
    assert sent["reduce-scatter"]["bytes"] == pytest.approx(scattered)
    # Every gradient is summed over `data`, as far as a device has it; and some counts and losses.
    assert plan["holds"]["parameters"] <= sent["all-reduce"]["bytes"] < plan["holds"]["parameters"] + 2000
    assert plan["in_loops"] == 0


def test_flops_are_those_of_one_device(planned):
    plan = planned["plan"]
    assert plan["images_at_once"] == 1 and plan["flops"] > 1e7


FOUND = {
    "mesh": {"data": 64, "fsdp": 4},
    "images_at_once": 2,
    "flops": 197e12 * 0.01,
    "collectives": {"all-gather": {"sent": 200e9 * 1e-3}, "all-reduce": {"sent": 200e9 * 2e-3}},
    "works_with": {"whole_parameters": 1e9, "gradients": 0.5e9, "temporary": 5.5e9},
    "peak_bytes": 6.0e9,
}


def test_projection_by_hand():
    """10 ms of products at the peak, 3 ms of sending; half a GB held, 1.5 GB of constant work, 2 GB an image."""
    found = plan_command.project(FOUND, CHIPS["v5e"], 0.5)
    assert found["products_seconds"] == pytest.approx(0.010) and found["communication_seconds"] == pytest.approx(0.003)
    assert found["shortest"] == pytest.approx(0.010)
    assert found["expected_from"] == pytest.approx(0.020) and found["expected_to"] == pytest.approx(0.023)
    assert found["bytes_per_image"] == pytest.approx(2e9) and found["fits"]
    assert found["images_that_fit"] == int((0.92 * 16e9 - 2.0e9) / 2e9) == 6


def test_sums_over_more_devices_than_the_link_joins_go_over_the_network():
    found = plan_command.project(FOUND, CHIPS["h100"], 0.5)
    assert found["communication_seconds"] == pytest.approx(200e9 * 1e-3 / 450e9 + 200e9 * 2e-3 / 50e9)


def test_command(tmp_path, capsys, monkeypatch):
    """The whole way with the compiler's part done before: the text, and the file."""
    found = {
        "variant": "v", "image_size": 64, "batch_size": 512, "accumulate": 1, "in_loops": 3, "compile_seconds": 1.0,
        "holds": {"parameters": 1e6, "optimizer": 2e6, "average": 0, "frozen": 3e6, "batch": 1},
    }  # fmt: skip
    full = FOUND | found
    for row in full["collectives"].values():
        row |= {"bytes": 1, "count": 1}
    monkeypatch.setattr(plan_command, "_compile_elsewhere", lambda asked, devices: full)
    assert main(["plan", *CONFIG, "--devices", "v5e-256", "--json", str(tmp_path / "plan.json")]) == 0
    said = capsys.readouterr().out
    assert "256 devices of 16 GB, mesh data 64 x fsdp 4, batch 512" in said
    assert "nothing was run" in said and "stand in loops and count once" in said and "average" not in said
    assert json.loads((tmp_path / "plan.json").read_text())["projection"]["images_that_fit"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--devices", "v9-8"), "--devices takes a chip and a number"),
        (("--devices", "v5e-8", "--utilization", "1.5"), "--utilization is a share above 0"),
        (("--devices", "v5e-8", "--images_per_device", "0"), "--images_per_device must be at least 1"),
        (("--devices", "v5e-16"), "batch_size 8 does not split over 16 devices"),
        (("--devices", "v5e-8", "--config.mesh.fsdp=3"), "does not make the 8 devices"),
        (("--devices", "v5e-8", "--config.no.such", "3"), "the configuration has no key no.such"),
    ],
)
def test_what_cannot_be_planned_is_said(capsys, arguments, said):
    assert main(["plan", *CONFIG, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["v5e-8", "v5e-256", "v5p-2048"])
def test_the_papers_model_compiles_for_any_number_of_devices(tmp_path, devices):
    """The same program and the same bytes a device, whatever the number: measured 16.2 GB of temporary arrays."""
    config = ROOT / "configs" / "fcclip_convnext_large_coco.py"
    file = tmp_path / "plan.json"
    arguments = ["--config", str(config), "--devices", devices, "--images_per_device", "1", "--config.mesh.fsdp=8"]
    assert main(["plan", *arguments, "--json", str(file)]) == 0
    plan = json.loads(Path(file).read_text())
    assert plan["holds"]["parameters"] < 12e6 and 10e9 < plan["works_with"]["temporary"] < 20e9
    assert plan["flops"] == pytest.approx(2.913e12, rel=0.01)
