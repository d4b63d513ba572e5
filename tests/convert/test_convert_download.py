"""`convert.download` with a local stand-in for the hub; the network is never touched."""

import hashlib
import types

import huggingface_hub
import pytest
from checkpoints import write_safetensors
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from convert import download
from convert.name_maps import FCCLIP_PREFIX
from convert.stored_arrays import CheckpointError
from fcclip_jax.models import weights
from fcclip_jax.models.fcclip import VARIANTS

NAME = "convnext_tiny_test"


class Hub:
    """What `convert.download` uses of huggingface_hub, over a folder of files."""

    def __init__(self, folder, *, online=True, etag=None):
        self.folder, self.online, self.etag = folder, online, etag
        self.cache = {}
        self.asked = []

    def hf_hub_url(self, repository, name):
        return name

    def get_hf_file_metadata(self, name):
        self.asked.append(name)
        if not self.online:
            raise ConnectionError("[Errno 111] Connection refused\nand a second line")
        if not (self.folder / name).exists():
            raise EntryNotFoundError("404")
        etag = self.etag or hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        return types.SimpleNamespace(etag=etag, commit_hash="abc")

    def hf_hub_download(self, repository, name, *, revision=None, local_files_only=False):
        if local_files_only:
            if name not in self.cache:
                raise LocalEntryNotFoundError("not cached")
            return str(self.cache[name])
        assert (repository, revision) == ("laion/tiny", "abc")
        return str(self.folder / name)


@pytest.fixture
def repository(state_dict, tmp_path, monkeypatch):
    """A folder that stands for a repository with the tiny model's towers."""
    monkeypatch.setitem(download.REPOSITORIES, NAME, {"first": "laion/tiny", "second": "laion/other"})
    folder = tmp_path / "repository"
    folder.mkdir()
    towers = {n.removeprefix(FCCLIP_PREFIX): a for n, a in state_dict.items() if n.startswith(FCCLIP_PREFIX)}
    write_safetensors(folder / "open_clip_model.safetensors", towers)
    return folder


def test_a_download_is_checked_and_converted(repository, tmp_path):
    assert NAME in download.convert(NAME, tmp_path / "out", hub=Hub(repository))
    assert weights.read_card(tmp_path / "out").towers_only


def test_the_older_file_name_is_found(repository, tmp_path):
    (repository / "open_clip_model.safetensors").rename(repository / "open_clip_pytorch_model.bin")
    hub = Hub(repository)
    download.convert(NAME, tmp_path / "out", hub=hub)
    assert hub.asked == list(download.FILES)
    (repository / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="has none of the files"):
        download.convert(NAME, tmp_path / "other", hub=hub)


def test_the_default_folder_has_the_name_of_the_model(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    download.convert(NAME, hub=Hub(repository))
    assert weights.read_card(tmp_path / "checkpoints" / NAME).config == VARIANTS[NAME]


def test_a_damaged_download_is_refused(repository, tmp_path):
    with pytest.raises(CheckpointError, match=f"the hub says {'0' * 64}. Delete"):
        download.convert(NAME, tmp_path / "out", hub=Hub(repository, etag="0" * 64))
    with pytest.raises(CheckpointError, match="states no SHA-256"):
        download.convert(NAME, tmp_path / "out", hub=Hub(repository, etag="abc-1"))
    assert not (tmp_path / "out").exists()


def test_without_a_network_the_steps_are_told(repository, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "huggingface_hub", None)
    whole = download.convert
    monkeypatch.setattr(download, "convert", lambda *a, **k: whole(*a, **k, hub=Hub(repository, online=False)))
    assert download.main([NAME, "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: the weights could not be downloaded (ConnectionError: [Errno 111]")
    assert "https://huggingface.co/laion/tiny/resolve/main/open_clip_model.safetensors" in message
    assert f"python -m convert.open_clip --model {NAME} --input FILE --output {tmp_path / 'out'}" in message
    assert not (tmp_path / "out").exists()


def test_an_earlier_download_is_used_without_a_network(repository, tmp_path):
    file = repository / "open_clip_model.safetensors"
    blob = tmp_path / hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(blob)
    file.symlink_to(blob)
    hub = Hub(repository, online=False)
    hub.cache[file.name] = file
    download.convert(NAME, tmp_path / "out", hub=hub)
    blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="is damaged"):
        download.convert(NAME, tmp_path / "other", hub=hub)


def test_other_weights_of_a_model(repository, tmp_path):
    with pytest.raises(
        CheckpointError, match="there are no weights 'third' of convnext_tiny_test; there are first, second"
    ):
        download.convert(NAME, tmp_path / "out", tag="third", hub=Hub(repository))


def test_fcclip_says_where_its_weights_are(capsys):
    assert download.main(["fcclip"]) == 2
    message = capsys.readouterr().err
    assert "drive.google.com" in message and "python -m convert.fcclip --input" in message


def test_a_used_output_is_refused_before_anything_is_downloaded(repository, tmp_path):
    (tmp_path / "photo.jpg").write_text("")
    hub = Hub(repository)
    with pytest.raises(weights.WeightsError, match="is not a model folder"):
        download.convert(NAME, tmp_path, hub=hub)
    assert hub.asked == []


def test_the_table_is_of_our_variants_and_the_hub_has_these_functions():
    assert download.REPOSITORIES.keys() == VARIANTS.keys() - {NAME}
    for name, tags in download.REPOSITORIES.items():
        of_laion = all(repo.startswith("laion/CLIP-convnext") for repo in tags.values())
        assert of_laion or tags == {"openai": f"timm/{name.lower().replace('rn', 'resnet')}_clip.openai"}
    for name in ("hf_hub_url", "get_hf_file_metadata", "hf_hub_download"):
        assert callable(getattr(huggingface_hub, name))
