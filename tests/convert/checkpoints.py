"""Checkpoints and commands for these tests. `write_zip` and `write_safetensors` share nothing with the package's own
writers, so that both sides are checked."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

from convert.torch_writer import write_torch

GOLDEN = Path(__file__).parents[1] / "golden"
MANIFESTS = GOLDEN / "manifests"
TORCH_FILES = GOLDEN / "torch_files"


def write_zip(path, pickled, storages=None, *, compression=zipfile.ZIP_STORED, **extra):
    """A zip file as torch.save lays it out, with any pickle inside."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in extra.items():
            archive.writestr(f"archive/{name}", data)
    return path


def tensor_pickle(shape=(2,), strides=(1,), offset=0, numel=2, key="0", storage="FloatStorage", name="weight"):
    """Protocol 2, the items of `{name: tensor}`; the numbers are written as they are given."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value):
        size = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    reference = (
        b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + number(numel) + b"tQ"
    )
    arguments = reference + number(offset) + numbers(shape) + numbers(strides) + b"\x89}"
    return b"\x80\x02}(" + text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRu."


def write_safetensors(path, arrays, *, names=None):
    """float32, float16 and bfloat16 (given as uint16) arrays, in the order of the dictionary."""
    types = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}
    header, data = {}, b""
    for name, array in arrays.items():
        raw = array.tobytes()
        entry = {"dtype": types[str(array.dtype)], "shape": list(array.shape)}
        header[name] = entry | {"data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    table = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(table)) + table + data)
    return path


class Call:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def pickled(value, protocol=2):
    return pickle.dumps(value, protocol=protocol)


def run(main, capsys, *arguments):
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def refused(main, capsys, *arguments):
    """The message of a command that must fail on the user's account."""
    code, out, err = run(main, capsys, *arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and "Traceback" not in err
    return err


def write(path, arrays, **options):
    """A file of `{"model": arrays}` by the package's own writer, which torch itself has read (test_torch_parity)."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    write_torch(path, {n: a.shape for n, a in arrays.items()}, arrays.__getitem__, dtypes=dtypes, **options)
    return path
