"""Checkpoint files: what torch and safetensors wrote is read to the bit; everything else gets one clear message."""

import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from checkpoints import TORCH_FILES, tensor_pickle, write_safetensors, write_zip
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from make_torch_files import expected
from safetensors.numpy import save_file

from convert.checkpoint_files import open_checkpoint
from convert.stored_arrays import CheckpointError
from convert.torch_writer import write_torch
from convert.unpickler import MAX_BYTES


def read_all(path):
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.arrays}


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes(), name
        assert found[name].flags.c_contiguous, name


@pytest.mark.parametrize(
    ("file", "kind"),
    [("training.pth", "torch zip"), ("protocol_4.pth", "torch zip"), ("training_legacy.pth", "torch legacy")],
)
def test_files_of_torch_itself(file, kind):
    """Written by PyTorch: views, shared storages, all element types, beside an optimizer's state."""
    with open_checkpoint(TORCH_FILES / file) as checkpoint:
        assert checkpoint.kind == kind
        assert checkpoint.shapes["conv"] == (2, 3, 2, 2) and checkpoint.arrays["conv"].strides == (12, 1, 6, 3)
    assert_same(read_all(TORCH_FILES / file), expected())


def test_the_newest_kind_of_tensor():
    assert_same(read_all(TORCH_FILES / "uint16.pth"), {"uint16": np.array([1, 65535], np.uint16)})


def test_a_bare_state_dict_of_data_parallel():
    wanted = expected()
    assert_same(read_all(TORCH_FILES / "bare_module.pth"), {name: wanted[name] for name in ("plain", "half")})


ANY_ARRAY = arrays.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@settings(deadline=None, max_examples=30)
@given(content=st.dictionaries(st.text("abc.", min_size=1), ANY_ARRAY, min_size=1, max_size=4))
def test_what_our_writer_and_safetensors_write_is_read_back(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("round")
    shapes = {name: array.shape for name, array in content.items()}
    dtypes = {name: str(array.dtype) for name, array in content.items()}
    write_torch(folder / "x.pth", shapes, content.__getitem__, dtypes=dtypes)
    assert_same(read_all(folder / "x.pth"), content)
    save_file({name: np.ascontiguousarray(a).reshape(a.shape) for name, a in content.items()}, folder / "x.safetensors")
    found = read_all(folder / "x.safetensors")
    assert_same({name: found[name] for name in content}, content)


def test_bfloat16_of_safetensors(tmp_path):
    values = np.array([1.5, -2.0, 3e38], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    found = read_all(write_safetensors(tmp_path / "x.safetensors", {"x": bits}))
    np.testing.assert_array_equal(found["x"].view(np.uint32) >> 16, bits)
    assert found["x"].dtype == np.float32


NOT_CHECKPOINTS = {
    "empty": (b"", "empty"),
    "web page": (b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning", "web page"),
    "web page after blanks": (b"\n  <html lang=en>", "web page"),
    "text": (b"id:name\n1:cat\n", "text file, not a checkpoint; it begins with 'id:name"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "Git LFS"),
    "bare pickle": (b"\x80\x04}.", "bare pickle"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(40), "packed archive"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), "not a checkpoint"),
    "zip that was cut short": (b"PK\x03\x04" + bytes(100), "cut short or is damaged"),
    "safetensors that was cut short": (struct.pack("<Q", 5000) + b'{"x":', "cut short"),
    "safetensors with a damaged table": (struct.pack("<Q", 6) + b'{"x":}', "damaged"),
    "safetensors with a deep table": (struct.pack("<Q", 100_005) + b'{"x":' + b"[" * 100_000, "damaged"),
    "safetensors with a list": (struct.pack("<Q", 8) + b"{       ", "damaged"),
    "safetensors without arrays": (struct.pack("<Q", 2) + b"{}", "no arrays"),
    "safetensors with a table of 2^63 bytes": (b"\xff" * 8 + b"{", "cut short"),
}


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_other_files_are_told_what_they_are(name, tmp_path):
    content, told = NOT_CHECKPOINTS[name]
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=told) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        open_checkpoint(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is not a file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["training.pth", "training_legacy.pth"])
def test_every_shortened_file_is_refused(file, tmp_path):
    whole = (TORCH_FILES / file).read_bytes()
    path = tmp_path / "short.pth"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_torchscript_and_whole_modules_are_refused():
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_checkpoint(TORCH_FILES / "torchscript.pt")
    with pytest.raises(CheckpointError, match=r"refused to load 'torch\.nn\.modules\.linear\.Linear'"):
        open_checkpoint(TORCH_FILES / "whole_module.pth")


def test_archives_that_torch_does_not_write(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        open_checkpoint(tmp_path / "x.npz")
    bomb = write_zip(
        tmp_path / "bomb.pth", tensor_pickle(numel=2), {"0": bytes(1 << 20)}, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(CheckpointError, match="compressed"):
        open_checkpoint(bomb)
    big_endian = write_zip(tmp_path / "big.pth", tensor_pickle(), {"0": bytes(8)}, byteorder="big")
    with pytest.raises(CheckpointError, match="big-endian"):
        open_checkpoint(big_endian)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.pth", "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle())
        archive.writestr("archive/data/0", bytes(8))
        archive.writestr("archive/data/0", bytes(8))
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(tmp_path / "twice.pth")


def test_a_pickle_that_is_too_long_is_not_read(tmp_path):
    path = write_zip(tmp_path / "long.pth", b"\x80\x02" + b"N" * (MAX_BYTES + 1))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="far too long"):
        open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_BYTES // 4


# Eight bytes of storage, two float32.
HOSTILE_TENSORS = {
    "past the end": ({"shape": (3,)}, "does not fit"),
    "offset past the end": ({"shape": (1,), "offset": 2}, "does not fit"),
    "stride past the end": ({"shape": (2,), "strides": (2,)}, "does not fit"),
    "negative offset": ({"offset": -1}, "negative"),
    "negative stride": ({"strides": (-1,), "offset": 1}, "negative"),
    "negative size": ({"shape": (-2,)}, "negative"),
    "negative length": ({"numel": -2}, "negative"),
    "storage shorter than claimed": ({"numel": 1 << 60, "shape": (1 << 60,)}, "does not fit"),
    "past the claimed length of its storage": ({"numel": 1}, "does not fit"),
    "a few bytes repeated for ever": ({"shape": (1 << 50,), "strides": (0,)}, "does not fit"),
    "overflowing": ({"shape": (1 << 63, 1 << 63), "strides": (1 << 63, 1)}, "does not fit"),
    "too many dimensions": ({"shape": (1,) * 65, "strides": (1,) * 65}, "65 dimensions"),
    "strides and sizes that differ": ({"strides": (1, 1)}, "1 dimensions and 2 strides"),
    "storage that is not there": ({"key": "../../etc/passwd"}, "has no storage"),
    "unknown element type": ({"storage": "ComplexFloatStorage"}, "ComplexFloatStorage"),
    "name that is no name": ({"name": "weight\x1b[2J"}, "is not one that a state dict has"),
}


@pytest.mark.parametrize("name", HOSTILE_TENSORS)
def test_tensors_may_not_leave_their_storage(name, tmp_path):
    arguments, told = HOSTILE_TENSORS[name]
    path = write_zip(tmp_path / "x.pth", tensor_pickle(**arguments), {"0": bytes(8)})
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(path)


def test_the_tensor_of_those_tests_is_valid_otherwise(tmp_path):
    data = np.array([1.5, 2.5], np.float32)
    path = write_zip(tmp_path / "x.pth", tensor_pickle(), {"0": data.tobytes()})
    assert_same(read_all(path), {"weight": data})


def safetensors_file(path, table, data=bytes(8)):
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


HOSTILE_TABLES = {
    "past the end": ({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "cut short"),
    "negative": ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, "damaged"),
    "size and shape differ": ({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "does not fit"),
    "negative shape": ({"x": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}, "damaged"),
    "shape of thousands": ({"x": {"dtype": "F32", "shape": [1] * 5000, "data_offsets": [0, 4]}}, "damaged"),
    "number that is none": ({"x": {"dtype": "F32", "shape": [True, 2.0], "data_offsets": [0, 8]}}, "damaged"),
    "entry that is no table": ({"x": 3}, "damaged"),
    "unknown type": ({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}}, "not supported"),
    "name twice": (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{}}', "twice"),
    "integer of a million digits": (b'{"x":' + b"9" * 1_000_000 + b"}", "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE_TABLES)
def test_tables_of_safetensors_are_not_trusted(name, tmp_path):
    table, told = HOSTILE_TABLES[name]
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(safetensors_file(tmp_path / "x.safetensors", table))


def test_state_dicts_that_are_none(tmp_path):
    import pickle

    for value, told in [
        ({"epoch": 3, "config": {}}, "no state dict inside.*'epoch', 'config'"),
        ([1, 2], "holds a list"),
        ({}, "holds a dict"),
    ]:
        with pytest.raises(CheckpointError, match=told):
            open_checkpoint(write_zip(tmp_path / "x.pth", pickle.dumps(value, 2)))
    mixed = tensor_pickle()[:-2] + b"X\x04\x00\x00\x00stepK\x03u."
    with pytest.raises(CheckpointError, match="1 entries of the state dict are not arrays: 'step'"):
        open_checkpoint(write_zip(tmp_path / "x.pth", mixed, {"0": bytes(8)}))


VALID = {name: (TORCH_FILES / name).read_bytes() for name in ("training.pth", "training_legacy.pth", "protocol_4.pth")}


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(sorted(VALID)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    length=st.floats(0.5, 1.5),
)
def test_damaged_files_give_arrays_or_a_message(tmp_path_factory, name, changes, length):
    data = bytearray(VALID[name])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    if length < 1:
        data = data[: int(length * len(data))]
    check_gives_arrays_or_a_message(tmp_path_factory, bytes(data))


@settings(deadline=None, max_examples=200)
@given(
    start=st.sampled_from([b"", b"PK\x03\x04", VALID["training_legacy.pth"][:60], struct.pack("<Q", 40) + b"{"]),
    rest=st.binary(max_size=200),
)
def test_random_files_give_arrays_or_a_message(tmp_path_factory, start, rest):
    check_gives_arrays_or_a_message(tmp_path_factory, start + rest)


def check_gives_arrays_or_a_message(factory, data):
    path = factory.getbasetemp() / "fuzzed.pth"
    path.write_bytes(data)
    try:
        found = read_all(path)
    except CheckpointError:
        return
    # A few bytes may claim a repeated element, up to 1 MiB an array; never more.
    assert all(array.nbytes <= max(len(data), 1 << 21) for array in found.values())


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    path = tmp_path / "x.pth"
    write_torch(path, {"x": (1 << 18,)}, lambda name: np.ones(1 << 18, np.float32))
    with open_checkpoint(path) as checkpoint:
        path.write_bytes(path.read_bytes()[: 1 << 18])
        with pytest.raises(CheckpointError, match="cut short while it was read"):
            checkpoint.read("x")


def test_only_what_is_asked_for_is_read(tmp_path):
    """64 MB in the file, 64 kB read."""
    shapes = {"large": (1 << 24,), "small": (1 << 14,)}
    write_torch(tmp_path / "x.pth", shapes, lambda name: np.ones(shapes[name], np.float32))
    tracemalloc.start()
    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        checkpoint.read("small")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_large_archives_use_64_bit_offsets(tmp_path):
    """Entries marked as zip64, as in files of more than 4 GB."""
    data = np.array([1.5, 2.5], np.float32)
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle())
        with archive.open("archive/data/0", "w", force_zip64=True) as file:
            file.write(data.tobytes())
    assert_same(read_all(path), {"weight": data})
