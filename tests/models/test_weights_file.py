"""Arrays in a file: what is written comes back, in any order, in any portions; a damaged file says so."""

import json
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fcclip_jax.models.weights_file import WeightsError, WeightsFile, write_safetensors

SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=8)


def drawn(shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {f"array {n}": rng.standard_normal(shape).astype(dtype) for n, shape in enumerate(shapes)}


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.sampled_from([np.float32, np.float16, np.int64]), st.data())
def test_any_arrays_come_back(tmp_path_factory, shapes, dtype, data):
    arrays = drawn(shapes, dtype)
    path = tmp_path_factory.mktemp("file") / "a.safetensors"
    write_safetensors(path, {name: x.shape for name, x in arrays.items()}, arrays.__getitem__, dtype=dtype)
    theirs = load_file(path)  # the library reads what we write
    names = data.draw(st.lists(st.sampled_from(sorted(arrays)), unique=True))
    read, mapped = list(WeightsFile(path).read(names)), WeightsFile(path).mapped()
    assert [name for name, _ in read] == names and set(mapped) == set(arrays)
    for name, array in [*read, *mapped.items()]:
        assert array.dtype == dtype and array.shape == arrays[name].shape
        np.testing.assert_array_equal(array, arrays[name])
        np.testing.assert_array_equal(theirs[name], arrays[name])


def test_what_the_library_wrote(tmp_path):
    arrays = drawn([(3, 4), (), (7,)])
    save_file(arrays, tmp_path / "a.safetensors")
    file = WeightsFile(tmp_path / "a.safetensors")
    assert file.shapes == {name: x.shape for name, x in arrays.items()}
    for name, array in file.read(arrays):
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have a memory of their own")
def test_a_cpu_computes_with_what_lies_in_the_file(tmp_path):
    """Also where an array whose size is not a multiple of 64 bytes comes first."""
    arrays = {"scale": np.float32(3.0), "odd": np.ones(5, np.float32)} | drawn([(16, 4), (8, 8, 2)])
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {name: x.shape for name, x in arrays.items()}, arrays.__getitem__)
    mapped = WeightsFile(path).mapped()
    for name in ("array 0", "array 1"):
        array = jnp.asarray(mapped[name], jnp.float32)
        assert array.unsafe_buffer_pointer() == mapped[name].ctypes.data
        np.testing.assert_array_equal(array, arrays[name])


def test_a_mapped_file_may_be_replaced_and_removed(tmp_path):
    arrays = drawn([(16, 4)])
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"array 0": (16, 4)}, arrays.__getitem__)
    mapped = WeightsFile(path).mapped()["array 0"]
    write_safetensors(tmp_path / "b", {"array 0": (16, 4)}, lambda _: np.zeros((16, 4), np.float32))
    (tmp_path / "b").replace(path)
    path.unlink()
    np.testing.assert_array_equal(mapped, arrays["array 0"])
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1


def test_a_file_that_becomes_shorter(tmp_path):
    arrays = drawn([(100,), (100,)])
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {name: x.shape for name, x in arrays.items()}, arrays.__getitem__)
    file = WeightsFile(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(WeightsError, match=r"a.safetensors was cut short while it was read"):
        dict(file.read(arrays))


def test_a_kind_that_numpy_does_not_know(tmp_path):
    table = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(table)) + table + bytes(4))
    for load in (lambda file: dict(file.read(["x"])), WeightsFile.mapped):
        with pytest.raises(WeightsError, match=r"x is BF16, expected float32 or float16"):
            load(WeightsFile(path))


def test_no_file_and_no_table(tmp_path):
    with pytest.raises(WeightsError, match="is missing"):
        WeightsFile(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 100) + b"{")
    with pytest.raises(WeightsError, match="is damaged"):
        WeightsFile(tmp_path / "a.safetensors")
