"""A work folder in an object store: a server on this machine stands in for Google's."""

import contextlib
import json
from pathlib import Path

import pytest

from fcclip_jax.training.trainer import EXIT_PREEMPTED
from fcclip_jax.training.work_folder import is_remote, local_part, open_folder, upload
from tests.own_process import finish, shared_folder
from tests.training.train_process import metrics, start_training, wait_for_steps


def test_a_folder_is_pathlibs(tmp_path):
    assert open_folder(str(tmp_path)) == tmp_path and type(open_folder("a")) is type(tmp_path)
    assert local_part(tmp_path) == tmp_path and not is_remote(tmp_path)
    upload(tmp_path, "nothing")


def test_an_object_store_is_not():
    pytest.importorskip("gcsfs")
    folder = open_folder("gs://bucket/a b/it's")
    assert is_remote(folder) and str(folder / "x") == "gs://bucket/a b/it's/x"
    assert local_part(folder) == local_part(open_folder("gs://bucket/a b/it's"))
    assert local_part(folder) != local_part(open_folder("gs://bucket/a b/its"))


@pytest.mark.parametrize("path", ["s3://bucket/x", "http://x/y", "gs://", "gs:///x"])
def test_other_addresses_are_refused(path):
    with pytest.raises(ValueError, match="a work folder is a folder, or gs://BUCKET/FOLDER, not"):
        open_folder(path)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The environment in which `gs://bucket` is a folder of this machine, and that folder."""
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
    pytest.importorskip("gcsfs")
    monkeypatch.setattr("gcp_storage_emulator.storage.STORAGE_BASE", str(tmp_path))
    monkeypatch.setattr("gcp_storage_emulator.storage.STORAGE_DIR", "store")
    objects = pytest.importorskip("gcp_storage_emulator.handlers.objects")

    def download(request, response, storage, *others, before=objects.download, **more):
        # The real one says which generation it sends; tensorstore's databases cannot do without.
        with contextlib.suppress(Exception):
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]
        before(request, response, storage, *others, **more)

    monkeypatch.setattr(objects, "download", download)
    server = emulator.create_server("127.0.0.1", 0, in_memory=False, default_bucket="bucket")
    server.start()
    address = f"http://127.0.0.1:{server._api._httpd.server_port}"
    yield {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "TMPDIR": str(tmp_path),
    }
    server.stop()


@pytest.mark.slow
def test_a_run_in_an_object_store_stops_resumes_and_ends_there(tmp_path, tmp_path_factory, store):
    cache = shared_folder(tmp_path_factory, "cache")
    expected = tmp_path / "local"
    steps = ("steps=12", "checkpoint_every=4")
    finish(*start_training(expected, cache, *steps))
    bucket = tmp_path / "store" / "bucket"
    flags = ("--workdir", "gs://bucket/it's a run", "--compilation_cache", "gs://bucket/compiled")
    process, log = start_training(tmp_path / "unused", cache, *steps, flags=flags, **store)
    wait_for_steps(process, bucket / "it's a run", 6)
    process.terminate()
    finish(process, log, code=EXIT_PREEMPTED)
    said = finish(*start_training(tmp_path / "unused", cache, *steps, flags=flags, **store))
    assert "resumed at step" in said and "goodput" in said
    workdir = bucket / "it's a run"
    assert metrics(workdir) == metrics(expected)
    assert (workdir / "model" / "model.safetensors").read_bytes() == (
        expected / "model" / "model.safetensors"
    ).read_bytes()
    assert {"config.json", "parameters.txt", "goodput.json", "fcclip.safetensors", "tensorboard"} <= _names(workdir)
    assert json.loads((workdir / "goodput.json").read_text())["summary"]["restarts"] == 1
    assert _names(bucket / "compiled"), "hosts that share the folder compile once"


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
