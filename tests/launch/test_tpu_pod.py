"""launch/tpu_pod.sh against a gcloud that writes down what it is asked, and whose workers are folders here."""

import shlex
import time

import pytest

SLICE = ("--name", "run-1", "--zone", "us-west4-a")
HOSTILE = [
    '--config.data.images=/data/it\'s $(touch gone) `x` "y"',
    "-leading",
    "two  spaces",
    "semi;colon|&",
    "new\nline",
    "*",
]
CREATED = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "-it's a config $(touch gone).py"
    path.write_text("def get_config(): ...\n")
    return path


def _verbs(calls):
    """What gcloud was asked to do: `tpu-vm create`."""
    return [" ".join(call[3:5]) for call in calls if call[0] == "gcloud"]


def _wait_for(stand_ins, program):
    end = time.monotonic() + 20
    while not (found := [call for call in stand_ins.calls() if call[0] == program]):
        assert time.monotonic() < end, f"{program} was never started"
        time.sleep(0.05)
    return found


def _installed(stand_ins):
    """A worker on which create has run."""
    stand_ins.add(stand_ins.worker / "fcclip-run-1" / "venv" / "bin" / "fcclip")


def test_create_makes_a_slice_and_installs_on_every_worker(stand_ins):
    stand_ins.add(stand_ins.worker / "fcclip-run-1" / "venv" / "bin" / "pip")
    # The archive does not reach the worker, whose tar then has nothing to read.
    stand_ins.run("tpu_pod.sh", "create", *SLICE, "--type", "v5litepod-16", "--spot", "--project", "my-project", code=2)
    calls = stand_ins.calls()
    assert _verbs(calls) == ["tpu-vm describe", "tpu-vm create", "tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh"]
    where = ["--zone=us-west4-a", "--project=my-project"]
    assert calls[1] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "run-1", *where, *CREATED, "--spot"]
    assert calls[3][6:] == ["run-1:fcclip-run-1/fcclip.tar.gz", *where, "--worker=all"]
    assert all("--worker=all" in call for call in calls[2:] if call[0] == "gcloud")
    assert (stand_ins.worker / "fcclip-run-1" / "source").is_dir()


def test_create_takes_a_slice_that_is_ready(stand_ins):
    stand_ins.answer("gcloud", "READY")
    stand_ins.run("tpu_pod.sh", "create", *SLICE, "--type", "v5litepod-16", code=2)
    assert "tpu-vm create" not in _verbs(stand_ins.calls())


def test_queued_resource_is_waited_for(stand_ins):
    stand_ins.answer("gcloud", "", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    stand_ins.run("tpu_pod.sh", "create", *SLICE, "--type", "v6e-16", "--queued", "--poll", "0", code=2)
    calls = stand_ins.calls()
    verbs = ["tpu-vm describe", "queued-resources create", *["queued-resources describe"] * 3]
    assert _verbs(calls)[:5] == verbs
    assert calls[1][5:] == ["run-1", "--zone=us-west4-a", "--node-id=run-1", "--accelerator-type=v6e-16",
                            "--runtime-version=v2-alpha-tpuv6e"]  # fmt: skip


def test_queued_resource_that_fails_is_said(stand_ins):
    stand_ins.answer("gcloud", "", "FAILED")
    said = stand_ins.run("tpu_pod.sh", "create", *SLICE, "--type", "v6e-16", "--queued", "--poll", "0", code=2).stderr
    assert said == "error: the queued resource run-1 is FAILED\n"


def test_start_hands_every_word_to_train_as_it_is(stand_ins, config):
    _installed(stand_ins)
    bucket = "gs://bucket-1/it's $(touch gone)"
    stand_ins.run("tpu_pod.sh", "start", *SLICE, "--bucket", bucket, "--config", str(config), "--", *HOSTILE)
    called = _wait_for(stand_ins, "fcclip")
    train = ["fcclip", "supervise", "--restarts", "10", "--", "venv/bin/fcclip", "train", "--distributed"]
    train += ["--config", "run.py", "--workdir", f"{bucket}/run-1", "--compilation_cache", f"{bucket}/compiled"]
    assert called == [[*train, *HOSTILE]]
    scp = next(call for call in stand_ins.calls() if call[4] == "scp")
    assert scp[5].endswith("/run.py") and scp[6] == "run-1:fcclip-run-1/run.py"
    assert not list(stand_ins.folder.rglob("gone"))
    assert (stand_ins.worker / "fcclip-run-1" / "pid").read_text().strip().isdecimal()


def test_prepare_comes_before_start(stand_ins, config):
    _installed(stand_ins)
    prepare = "echo 'a  b' > prepared"
    stand_ins.run(
        "tpu_pod.sh", "start", *SLICE, "--bucket", "gs://bucket-1", "--config", str(config), "--prepare", prepare
    )
    assert (stand_ins.worker / "prepared").read_text() == "a  b\n"
    commands = [call[-1] for call in stand_ins.calls() if call[4:5] == ["ssh"]]
    assert commands[0] == f"--command={prepare}" and "supervise" in commands[1]


def test_the_flags_of_the_compiler_reach_the_workers(stand_ins, config):
    _installed(stand_ins)
    flags = stand_ins.run("xla_flags.sh", "tpu").stdout.strip()
    (stand_ins.worker / "fcclip-run-1" / "venv" / "bin" / "fcclip").write_text(
        '#!/bin/bash\nprintf %s "$LIBTPU_INIT_ARGS" >flags.new && mv flags.new flags\n'
    )
    stand_ins.run("tpu_pod.sh", "start", *SLICE, "--bucket", "gs://bucket-1", "--config", str(config))
    seen, end = stand_ins.worker / "fcclip-run-1" / "flags", time.monotonic() + 20
    while not seen.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert seen.read_text() == flags and flags.count("--") == 5


def test_start_twice_is_refused_while_the_first_runs(stand_ins, config):
    program = stand_ins.worker / "fcclip-run-1" / "venv" / "bin" / "fcclip"
    _installed(stand_ins)
    program.write_text("#!/bin/bash\nexec sleep 30\n")
    arguments = ("start", *SLICE, "--bucket", "gs://bucket-1", "--config", str(config))
    stand_ins.run("tpu_pod.sh", *arguments)
    try:
        assert "it runs already" in stand_ins.run("tpu_pod.sh", *arguments, code=1).stderr
    finally:
        stand_ins.run("tpu_pod.sh", "stop", *SLICE)  # and stop ends it, and returns when it has ended
    stand_ins.run("tpu_pod.sh", *arguments)
    stand_ins.run("tpu_pod.sh", "stop", *SLICE)


def test_resume_makes_a_preempted_slice_again(stand_ins, config):
    stand_ins.answer("gcloud", "PREEMPTED")
    run = ("--type", "v5litepod-16", "--bucket", "gs://bucket-1", "--config", str(config))
    stand_ins.run("tpu_pod.sh", "resume", *SLICE, *run, code=2)  # up to the archive, as above
    assert _verbs(stand_ins.calls())[:4] == ["tpu-vm describe", "tpu-vm delete", "tpu-vm create", "tpu-vm ssh"]


def test_delete(stand_ins):
    stand_ins.run("tpu_pod.sh", "delete", *SLICE)
    stand_ins.run("tpu_pod.sh", "delete", *SLICE, "--queued")
    tpus = ["gcloud", "compute", "tpus"]
    assert stand_ins.calls() == [
        [*tpus, "tpu-vm", "delete", "run-1", "--zone=us-west4-a", "--quiet"],
        [*tpus, "queued-resources", "delete", "run-1", "--zone=us-west4-a", "--force", "--quiet"],
    ]


def test_dry_run_prints_what_would_be_run_and_runs_nothing(stand_ins, config):
    run = ("--type", "v5litepod-16", "--bucket", "gs://bucket-1/it's", "--config", str(config), "--dry_run")
    printed = stand_ins.run("tpu_pod.sh", "resume", *SLICE, *run, "--", *HOSTILE).stdout
    assert stand_ins.calls() == []
    words = shlex.split(printed)  # as a shell would read it
    ssh = [word for word in words if word.startswith("--command=") and "supervise" in word]
    assert len(ssh) == 1
    assert "--worker=all" in words and "create" in words and "scp" in words and str(config) in words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "which subcommand?"),
        (("launch",), "unknown subcommand launch"),
        (("create", "--name", "Über", "--zone", "us-west4-a"), "--name takes lower-case letters"),
        (("create", "--name", "-rf", "--zone", "us-west4-a"), "--name takes lower-case letters"),
        (("create", "--name", "a;reboot", "--zone", "us-west4-a"), "not 'a;reboot'"),
        (("create", "--name", "a", "--zone", "$(reboot)"), "--zone takes a zone"),
        (("create", "--name", "a", "--zone", "us-west4-a"), "--type takes an accelerator type"),
        (("create", *SLICE, "--type", "v5e; rm"), "not 'v5e; rm'"),
        (("start", *SLICE, "--bucket", "s3://x", "--config", "setup.cfg"), "--bucket takes gs://BUCKET"),
        (("start", *SLICE, "--bucket", "gs://bucket", "--config", "nowhere.py"), "there is no file 'nowhere.py'"),
        (("logs", *SLICE, "--worker", "0 --x"), "--worker takes a number or all"),
        (("start", *SLICE, "--workers"), "unknown argument --workers"),
        (("start", "--name"), "--name needs a value"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_called(stand_ins, arguments, said):
    done = stand_ins.run("tpu_pod.sh", *arguments, code=2)
    assert said in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert stand_ins.calls() == []
