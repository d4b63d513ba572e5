"""The pickle machine: refuses whatever could act, by name, and survives any bytes."""

import builtins
import collections
import math
import operator
import os
import pickle
import struct
import subprocess
import zipfile

import pytest
from checkpoints import TORCH_FILES, Call, pickled, write_zip
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.checkpoint_files import open_checkpoint
from convert.pickle_values import BUILDERS, NAMES, Tensor
from convert.stored_arrays import CheckpointError
from convert.unpickler import MAX_COPIED, MAX_INSTRUCTIONS, Machine


def load(data):
    return Machine(data).run()


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 100), 1 << 100)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(min_size=1),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(-(1 << 63), (1 << 63) - 1), inner, max_size=4)
        | st.sets(st.text(), max_size=4)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=100)
@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_data_is_read_as_pickle_reads_it(value, protocol):
    assert load(pickle.dumps(value, protocol=protocol)) == value


def test_shared_and_self_containing_containers_are_rebuilt():
    inner = [1]
    outer = {"a": inner, "b": inner}
    outer["self"] = outer
    loaded = load(pickled(outer))
    assert loaded["a"] is loaded["b"] and loaded["self"] is loaded


def test_ordered_dict_and_counter_become_dictionaries():
    value = collections.OrderedDict(b=1, a=2)
    value._metadata = {"": {"version": 2}}
    loaded = load(pickled({"state": value, "milestones": collections.Counter("aab")}))
    assert list(loaded["state"].items()) == [("b", 1), ("a", 2)]
    assert loaded["milestones"] == {"a": 2, "b": 1}
    assert not hasattr(loaded["state"], "_metadata")


# What an attacker would try first: each is a call when Python's own machine reads it.
CALLS = {
    "os.system": lambda marker: Call(os.system, f"touch {marker}"),
    "subprocess.Popen": lambda marker: Call(subprocess.Popen, ["touch", marker]),
    "eval": lambda marker: Call(eval, f"open({marker!r}, 'w')"),
    "exec": lambda marker: Call(exec, f"open({marker!r}, 'w')"),
    "open": lambda marker: Call(open, marker, "w"),
    "getattr": lambda marker: Call(getattr, Call(__import__, "os"), "system"),
    "__import__": lambda marker: Call(__import__, "os"),
    "methodcaller": lambda marker: Call(operator.methodcaller("system", f"touch {marker}"), Call(__import__, "os")),
    "nested": lambda marker: {"model": {"weight": [({"x": Call(os.system, f"touch {marker}")},)]}},
    "bytearray": lambda marker: Call(bytearray, 1 << 40),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused_and_not_made(name, protocol, tmp_path):
    marker = tmp_path / "executed"
    data = pickled(CALLS[name](str(marker)), protocol)
    path = write_zip(tmp_path / "evil.pth", data)
    with pytest.raises(CheckpointError, match="refused to load"):
        open_checkpoint(path)
    assert not marker.exists()


def test_the_refused_name_and_a_way_out_are_told():
    with pytest.raises(CheckpointError) as refused:
        load(pickled(Call(os.system, "true")))
    message = str(refused.value)
    assert f"{os.system.__module__}.system" in message and "safetensors" in message and "\n" not in message


# Every instruction that makes objects or calls, and every way to make one that is allowed do so, assembled by hand.
HAND_MADE = {
    "REDUCE of GLOBAL": (b"cos\nsystem\n(X\x04\x00\x00\x00truetR.", "os.system"),
    "REDUCE of STACK_GLOBAL": (b"\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "posix.system"),
    "INST": (b"(S'true'\nios\nsystem\n.", "STRING"),
    "INST without text": (b"(X\x04\x00\x00\x00trueios\nsystem\n.", "INST"),
    "OBJ": (b"(cos\nsystem\nX\x04\x00\x00\x00trueo.", "os.system"),
    "OBJ of an allowed name": (b"(ccollections\nOrderedDict\no.", "OBJ"),
    "NEWOBJ": (b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "NEWOBJ_EX": (b"ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
    "EXT1": (b"\x82\x01.", "EXT1"),
    "EXT2": (b"\x83\x01\x00.", "EXT2"),
    "EXT4": (b"\x84\x01\x00\x00\x00.", "EXT4"),
    "PERSID": (b"Pstorage\n.", "PERSID"),
    "BUILD on a name": (b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.", "attributes"),
    "BUILD on a list": (b"]}b.", "attributes"),
    "BUILD with slots": (b"ccollections\nOrderedDict\n)R}}\x86b.", "attributes"),
    "BUILD with __setstate__": (b"ctorch\nFloatStorage\n}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.", "os.system"),
    "call of a storage type": (b"ctorch\nFloatStorage\n)R.", "call of `torch.FloatStorage`"),
    "call of a string": (b"X\x06\x00\x00\x00system)R.", "call of `str`"),
    "call of what looks like a name": (b"X\x17\x00\x00\x00collections.OrderedDict)R.", "call of `str`"),
    "arguments that are no tuple": (b"ccollections\nOrderedDict\n]R.", "call of"),
    "attribute by a dotted name": (b"\x8c\x0bcollections\x8c\x15OrderedDict.__class__\x93.", "OrderedDict.__class__"),
    "a name over two lines": (b"ctorch\nFloatStorage.__init__\n.", "__init__"),
    "module that is no text": (b"K\x01\x8c\x06system\x93.", "not text"),
    "numpy object": (b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x89\x88\x87R.", "numpy type"),
    "nested pickle": (b"ctorch.storage\n_load_from_bytes\nC\x01.\x85R.", "_load_from_bytes"),
    "persistent id in a persistent id": (
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ.",
        "not a storage",
    ),
    "persistent id of another kind": (b"X\x0b\x00\x00\x00/etc/passwdQ.", "not a storage"),
    "storage type that is text": (
        b"(X\x07\x00\x00\x00storageX\x05\x00\x00\x00eval!X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ.",
        "unknown type",
    ),
    "tensor of a list": (b"ctorch._utils\n_rebuild_tensor_v2\n(]K\x00))\x89}tR.", "without a storage"),
    "tuple as a key": (b"})K\x01s.", "key of type tuple"),
    "float as a key": (b"}G" + struct.pack(">d", 1.0) + b"K\x01s.", "key of type float"),
    "huge integer as a key": (b"}\x8a\x0a" + b"\x01" * 10 + b"K\x01s.", "key of type int"),
    "integer of many digits": (b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20) + b".", "digits"),
    "newer protocol": (b"\x80\x06N.", "newer protocol"),
    "out-of-band buffer": (b"\x97.", "NEXT_BUFFER"),
    "two results": (b"NN.", "exactly one"),
    "no result": (b".", "exactly one"),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_pickles_are_refused(name):
    data, told = HAND_MADE[name]
    with pytest.raises(CheckpointError, match=f"refused.*({told})"):
        load(b"\x80\x02" + data)


DAMAGED = {
    "nothing": b"",
    "cut short": pickled({"a": [1, 2, 3]})[:-3],
    "text of more bytes than there are": b"\x80\x02X\xff\xff\xff\xffabc.",
    "text of 2^63 bytes": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "negative length": b"\x80\x02T\xff\xff\xff\xff.",
    "text that is not UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "value never stored": b"\x80\x02h\x07.",
    "empty stack": b"\x80\x02s.",
    "no mark": b"\x80\x02K\x01t.",
    "mark as a value": b"\x80\x02(\x85.",
    "stored mark": b"\x80\x02(q\x00.",
    "name without end": b"\x80\x02ctorch",
    "no such instruction": b"\x80\x02\xff.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_pickles_are_told_from_hostile_ones(name):
    with pytest.raises(CheckpointError, match="damaged at byte"):
        load(DAMAGED[name])


def test_memory_is_not_taken_for_a_high_place_in_the_memo():
    # Python's own machine makes a table of 2^32 places here.
    assert load(b"\x80\x02K\x05r\xff\xff\xff\xff0"[:-1] + b".") == 5


def test_length_is_bounded():
    with pytest.raises(CheckpointError, match="far too long"):
        load(b"\x80\x02" + b"N" * (MAX_INSTRUCTIONS + 1) + b".")


@pytest.mark.parametrize(
    ("start", "again"),
    [
        (
            b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00",
            b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R",
        ),
        (b"](" + b"K\x01" * 100_000 + b"eq\x00", b"c__builtin__\nset\nh\x00\x85R"),
        (b"](" + b"K\x01K\x02\x86" * 100_000 + b"eq\x00", b"ccollections\nOrderedDict\nh\x00\x85R"),
    ],
)
def test_one_thing_cannot_be_copied_for_ever(start, again):
    """Twelve bytes a copy of a megabyte: terabytes from a small file."""
    machine = Machine(b"\x80\x02" + start + again * 10_000 + b".")
    with pytest.raises(CheckpointError, match="over and over"):
        machine.run()
    assert len(machine.stack) <= 1 + MAX_COPIED // 100_000


def test_deep_nesting_is_harmless():
    deep = load(b"\x80\x02)" + b"\x85" * 300_000 + b".")
    depth = 0
    while deep:
        deep, depth = deep[0], depth + 1
    assert depth == 300_000
    with pytest.raises(CheckpointError, match="key of type tuple"):
        load(b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.")


def test_every_allowed_name_stands_for_itself():
    for path, marker in NAMES.items():
        module, name = path.rsplit(".", 1)
        assert load(f"\x80\x02c{module}\n{name}\n.".encode("latin1")) is marker


def test_the_table_of_names_holds_nothing_that_acts():
    modules = {path.rsplit(".", 1)[0] for path in BUILDERS}
    assert not modules & {"os", "posix", "sys", "subprocess", "builtins.eval", "importlib", "pickle", "torch.storage"}
    assert not {f"builtins.{name}" for name in dir(builtins)} & BUILDERS.keys() - {"builtins.set"}


def test_numpy_scalars_of_both_byte_orders():
    def scalar(order, data):
        dtype = (
            b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R(K\x03X\x01\x00\x00\x00" + order + b"NNNJ\xff\xff\xff\xff"
        )
        return b"\x80\x03cnumpy.core.multiarray\nscalar\n" + dtype + b"J\xff\xff\xff\xffK\x00tbC\x08" + data + b"\x86R."

    assert load(scalar(b"<", struct.pack("<d", math.pi))) == math.pi
    assert load(scalar(b">", struct.pack(">d", math.pi))) == math.pi


def loads_or_refuses(data):
    try:
        return load(data)
    except CheckpointError:
        return None


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_give_data_or_a_message(data):
    loads_or_refuses(data)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            sorted(set(b"NJKMGXUTCB(])}tlduaesqrhjcRbQ.\x80\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x93\x94\x95"))
        ),
        max_size=60,
    ),
    st.binary(max_size=30),
)
def test_random_instructions_give_data_or_a_message(codes, tail):
    loads_or_refuses(bytes(codes) + tail + b".")


def training_pickle():
    with zipfile.ZipFile(TORCH_FILES / "training.pth") as archive:
        return archive.read("training/data.pkl")


TRAINING = training_pickle()


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(TRAINING) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_real_pickle_gives_data_or_a_message(changes):
    data = bytearray(TRAINING)
    for place, value in changes:
        data[place] = value
    loads_or_refuses(bytes(data))


def test_a_real_pickle_gives_tensors_and_plain_values():
    tree = load(TRAINING)
    assert isinstance(tree["model"]["plain"], Tensor)
    assert tree["model"]["transposed"].strides == (1, 6)
    assert tree["model"]["plain"].storage == tree["model"]["slice"].storage
    assert tree["iteration"] == 368749 and tree["best_metric"] == 26.8 and tree["best_step"] == 3
    assert tree["tags"] == {"ade", "coco"} and tree["big"] == 1 << 62 and tree["nothing"] is None
    assert tree["size"] == (2, 3) and tree["scheduler"]["milestones"] == {1: 1, 2: 2}
