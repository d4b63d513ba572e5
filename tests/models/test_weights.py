"""Model folders: written whole or not at all, and read with every problem named."""

import errno
import json
import resource
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from fcclip_jax.models import weights
from fcclip_jax.models.fcclip import VARIANTS
from fcclip_jax.models.weights import ModelCard, WeightsError
from fcclip_jax.models.weights_file import write_safetensors

CONFIG = VARIANTS["convnext_tiny_test"]
CARD = ModelCard(
    CONFIG,
    train_classes={"classes": [{"names": ["café", "猫"], "isthing": False}]},
    no_object_weight=0.25,
    provenance={"from": "nowhere"},
    text_sha256="0" * 64,
)


@pytest.fixture(scope="module")
def parameters(tiny_model):
    return weights.load_parameters(tiny_model)


@pytest.fixture(scope="module")
def shapes():
    return weights.parameter_shapes(CONFIG)


@pytest.fixture
def folder(tmp_path, parameters, shapes):
    weights.save_model(tmp_path / "model", CARD, shapes, parameters.__getitem__)
    return tmp_path / "model"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------- there and back


def test_save_and_load(folder, parameters, shapes):
    card, graphdef, state = weights.load_model(folder)
    assert card == CARD
    found = weights.parameters_of(state)
    assert list(found) == list(shapes)
    for name, array in parameters.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)
    assert nnx.merge(graphdef, state).config == CONFIG
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_file_is_one_that_the_safetensors_library_reads(folder, parameters):
    read = load_file(folder / weights.WEIGHTS_FILE)
    assert read.keys() == parameters.keys()
    for name, array in parameters.items():
        np.testing.assert_array_equal(read[name], array)
    # The data begin at a multiple of eight bytes, as its readers like to map them.
    (size,) = struct.unpack("<Q", (folder / weights.WEIGHTS_FILE).read_bytes()[:8])
    assert size % 8 == 0


def test_a_part_of_the_parameters(folder, parameters):
    text = weights.load_parameters(folder, weights.TEXT_TOWER)
    assert text.keys() == {name for name in parameters if name.startswith("clip.text.")} != set()


def test_half_precision_on_disk_is_float32_in_the_model(tmp_path, parameters, shapes):
    path = tmp_path / "model"
    weights.save_model(path, CARD, shapes, parameters.__getitem__)
    write_safetensors(path / weights.WEIGHTS_FILE, shapes, parameters.__getitem__, dtype=np.float16)
    _, _, state = weights.load_model(path)
    for name, array in weights.parameters_of(state).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, parameters[name].astype(np.float16).astype(np.float32))


def test_the_type_of_the_computation_is_not_that_of_the_parameters(folder):
    _, graphdef, state = weights.load_model(folder, dtype=jnp.bfloat16)
    model = nnx.merge(graphdef, state)
    assert model.clip.visual.stem.dtype == jnp.bfloat16
    assert model.clip.visual.stem.kernel[...].dtype == jnp.float32


def test_a_state_from_parameters_and_back(folder, parameters):
    _, _, state = weights.load_model(folder)
    again = weights.parameters_of(weights.state_from_parameters(state, parameters))
    assert list(again) == list(parameters)
    assert all((again[name] == array).all() for name, array in parameters.items())


def test_a_state_has_the_precision_of_what_it_is_made_like(folder, parameters):
    _, _, state = weights.load_model(folder)
    halves = {name: array.astype(np.float16) for name, array in parameters.items()}
    for name, array in weights.parameters_of(weights.state_from_parameters(state, halves)).items():
        assert array.dtype == np.float32 and (array == halves[name]).all()


# -------------------------------------------------------------------------------------------- whole or not at all


def failing(parameters, error):
    """Reads half of the arrays, then fails."""
    left = len(parameters) // 2

    def read(name):
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return parameters[name]

    return read


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path, parameters, shapes, error):
    with pytest.raises(type(error)):
        weights.save_model(tmp_path / "model", CARD, shapes, failing(parameters, error))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_model(folder, parameters, shapes):
    before = contents(folder)
    with pytest.raises(OSError):
        weights.save_model(folder, CARD, shapes, failing(parameters, OSError(errno.ENOSPC, "full")))
    assert contents(folder) == before and [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_disk_that_fills_up(folder, parameters, shapes):
    before = contents(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError):
            weights.save_model(folder, CARD, shapes, parameters.__getitem__)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before and [path.name for path in folder.parent.iterdir()] == ["model"]


def test_when_the_new_folder_cannot_take_its_place_the_old_one_returns(folder, parameters, shapes, monkeypatch):
    before = contents(folder)
    rename = Path.rename

    def refused(path, target):
        if path.name.endswith(".partial"):
            raise OSError("the disk has gone")
        return rename(path, target)

    monkeypatch.setattr(weights.Path, "rename", refused)
    with pytest.raises(OSError, match="the disk has gone"):
        weights.save_model(folder, CARD, shapes, parameters.__getitem__)
    assert contents(folder) == before and [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_model_replaces_a_model(folder, parameters, shapes):
    (folder / "stray.txt").write_text("from the old one")
    changed = parameters | {"void_embedding": parameters["void_embedding"] + 1}
    weights.save_model(
        folder, CARD, shapes, changed.__getitem__, extra_files={"notes.txt": "a", "late.txt": lambda: "b"}
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "late.txt", "model.safetensors", "notes.txt"),
    ]  # fmt: skip
    np.testing.assert_array_equal(weights.load_parameters(folder)["void_embedding"], changed["void_embedding"])
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_model_behind_a_link_is_replaced_where_it_is(folder, parameters, shapes):
    link = folder.parent / "link"
    link.symlink_to(folder)
    weights.save_model(link, CARD, shapes, parameters.__getitem__)
    assert link.is_symlink() and not folder.is_symlink() and weights.read_card(link) == CARD


def test_what_is_no_model_folder_is_left_alone(tmp_path, parameters, shapes):
    (tmp_path / "file").write_text("text")
    for name, config in (("photos", None), ("other", '{"model_type": "clip"}'), ("broken", "{"), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_bytes(b"photo")
        if config is not None:
            (tmp_path / name / "config.json").write_text(config)
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    before = contents(tmp_path)
    for name in ("file", "photos", "other", "broken", "list", "dangling"):
        with pytest.raises(WeightsError, match="not a model folder"):
            weights.save_model(tmp_path / name, CARD, shapes, parameters.__getitem__)
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    weights.save_model(tmp_path / "empty", CARD, shapes, parameters.__getitem__)


def test_an_array_of_another_shape_is_not_written(tmp_path, parameters, shapes):
    wrong = parameters | {"void_embedding": np.zeros((2, 32), np.float32)}
    with pytest.raises(WeightsError, match=r"void_embedding has shape \(2, 32\), expected \(1, 32\)"):
        weights.save_model(tmp_path / "model", CARD, shapes, wrong.__getitem__)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ problems, named


@pytest.mark.parametrize("size", [0, 7, 8, 1000, 0.5, -1])
def test_a_file_cut_short(folder, size):
    path = folder / weights.WEIGHTS_FILE
    data = path.read_bytes()
    path.write_bytes(data[: int(size * len(data)) if isinstance(size, float) else size])
    for load in (weights.load_model, weights.load_parameters):
        with pytest.raises(WeightsError, match=r"model.safetensors is damaged .* cut short"):
            load(folder)


def rename_arrays(folder, **names):
    """Renames arrays in the table at the file's head; the data stay."""
    path = folder / weights.WEIGHTS_FILE
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    table = {names.get(name, name): entry for name, entry in json.loads(data[8 : 8 + size]).items()}
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def test_names_that_differ_are_listed_both_ways(folder):
    rename_arrays(folder, void_embedding="void")
    with pytest.raises(WeightsError) as error:
        weights.load_model(folder)
    assert "\n  1 missing: void_embedding\n  1 not expected: void" in str(error.value)


def test_long_lists_are_cut():
    found = {f"a{n}": (1,) for n in range(12)} | {"c": (2, 3)}
    expected = {f"b{n}": (1,) for n in range(3)} | {"c": (3, 2)}
    with pytest.raises(WeightsError) as error:
        weights.check_shapes("file", found, expected)
    assert str(error.value).splitlines() == [
        "file does not fit the model it is read as:",
        "  3 missing: b0, b1, b2",
        "  12 not expected: a0, a1, a2, a3, a4 and 7 more",
        "  1 of another shape: c (2, 3), expected (3, 2)",
    ]
    weights.check_shapes("file", expected, expected)


def test_towers_alone(tmp_path, parameters, shapes):
    towers = {name: shape for name, shape in shapes.items() if name.startswith(weights.TOWERS)}
    card = ModelCard(CONFIG, towers_only=True)
    weights.save_model(tmp_path / "towers", card, towers, parameters.__getitem__)
    assert weights.load_parameters(tmp_path / "towers").keys() == towers.keys()
    with pytest.raises(WeightsError, match="no mask generator to segment with"):
        weights.load_model(tmp_path / "towers")


def test_the_fingerprint_is_of_the_text_tower_alone(parameters, shapes):
    before = weights.text_sha256(shapes, parameters.__getitem__)
    assert len(before) == 64
    image = parameters | {"clip.visual.stem.bias": parameters["clip.visual.stem.bias"] + 1}
    assert weights.text_sha256(shapes, image.__getitem__) == before
    for name in ("clip.text.token_embedding", "clip.text.norm_final.bias"):
        changed = parameters[name].copy()
        changed.reshape(-1)[-1] = np.nextafter(changed.reshape(-1)[-1], np.float32(np.inf))
        assert weights.text_sha256(shapes, (parameters | {name: changed}).__getitem__) != before


def test_the_card_of_a_converted_model_names_its_text_tower(tiny_model, parameters, shapes):
    assert weights.read_card(tiny_model).text_sha256 == weights.text_sha256(shapes, parameters.__getitem__)
