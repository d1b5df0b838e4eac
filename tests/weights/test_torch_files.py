"""Files of torch.save, made by hand in both formats: what is read, and what is refused."""

import struct
import time
import tracemalloc
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.errors import UserError
from hfgd_jax.weights import files, torch_pickles

FORMATS = ("zip", "legacy")
KINDS = {
    np.dtype("f4"): "FloatStorage",
    np.dtype("f8"): "DoubleStorage",
    np.dtype("f2"): "HalfStorage",
    np.dtype(jnp.bfloat16): "BFloat16Storage",
    np.dtype("i8"): "LongStorage",
    np.dtype("i4"): "IntStorage",
    np.dtype("i2"): "ShortStorage",
    np.dtype("i1"): "CharStorage",
    np.dtype("u1"): "ByteStorage",
    np.dtype("?"): "BoolStorage",
}


class Name(NamedTuple):
    """A global."""

    module: str
    name: str


class Call(NamedTuple):
    """REDUCE, and BUILD where there is a state."""

    function: Any
    arguments: Any
    state: Any = None


class Reference(NamedTuple):
    """BINPERSID."""

    value: Any


class Steps(NamedTuple):
    """Steps of a pickle, as they are."""

    data: bytes


def steps(value):
    """The steps that make a value, in protocol 2."""
    match value:
        case Steps(data):
            return data
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments, state):
            return (
                steps(function)
                + steps(arguments)
                + b"R"
                + (steps(state) + b"b" if state is not None else b"")
            )
        case Reference(inner):
            return steps(inner) + b"Q"
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case tuple():
            return b"(" + b"".join(map(steps, value)) + b"t"
        case list():
            return b"](" + b"".join(map(steps, value)) + b"e"
        case dict():
            return b"}(" + b"".join(steps(key) + steps(item) for key, item in value.items()) + b"u"


def dumps(value):
    return b"\x80\x02" + steps(value) + b"."


def storage(key, array, count=None):
    kind = Name("torch", KINDS[array.dtype])
    return Reference(("storage", kind, key, "cpu", array.size if count is None else count))


def tensor(stored, shape, strides, offset=0, version="_v2"):
    ordered = Call(Name("collections", "OrderedDict"), ())
    arguments = (stored, offset, shape, strides, False, ordered)
    return Call(Name("torch._utils", f"_rebuild_tensor{version}"), arguments)


def whole(key, array, count=None):
    """A contiguous array's tensor."""
    strides = tuple(stride // array.itemsize for stride in np.zeros_like(array).strides)
    return tensor(storage(key, array, count), array.shape, strides)


def save(path, value, arrays, kind="zip", **spoilt):
    """Writes a file; `spoilt` has parts of it that are to differ."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", spoilt.get("compression", zipfile.ZIP_STORED)) as archive:
            archive.writestr("weights/data.pkl", dumps(value))
            archive.writestr("weights/byteorder", spoilt.get("order", "little"))
            for key, array in arrays.items():
                archive.writestr(f"weights/data/{key}", array.tobytes())
        return path
    system = {"protocol_version": 1001, "little_endian": spoilt.get("order", "little") == "little"}
    heads = [spoilt.get("magic", 0x1950A86A20F9469CFC6C), 1001, system, value, sorted(arrays)]
    storages = [struct.pack("<q", arrays[key].size) + arrays[key].tobytes() for key in sorted(arrays)]
    path.write_bytes(b"".join(map(dumps, heads)) + b"".join(storages))
    return path


def refusal(path):
    with pytest.raises(UserError) as error:
        files.read(path)
    text = str(error.value)
    assert str(path) in text and text.isprintable() and len(text) < 500 + len(str(path))
    return text.replace(str(path), "")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


A = np.arange(12, dtype=np.float32)


@pytest.mark.parametrize("kind", FORMATS)
def test_tensors_of_all_types_and_views(kind, path):
    rng = np.random.default_rng(0)
    arrays = {str(i): rng.integers(0, 2, (2, 3)).astype(dtype) for i, dtype in enumerate(KINDS)}
    value = {f"t{key}": whole(key, array) for key, array in arrays.items()}
    value |= {
        "transposed": tensor(storage("a", A), (3, 4), (1, 3)),
        "part": tensor(storage("a", A), (2, 2), (4, 2), offset=5),
        "scalar": tensor(storage("a", A), (), (), offset=7),
        "one": tensor(storage("a", A), (1, 2), (2**61, 1)),  # no step along an axis of length 1
        "empty": tensor(storage("a", A), (0, 4), (4, 1)),
        "parameter": Call(Name("torch._utils", "_rebuild_parameter"), (whole("a", A), True, {})),
        "old": tensor(storage("a", A), Call(Name("torch", "Size"), ((12,),)), (1,), version=""),
    }
    found = files.read(save(path, value, arrays | {"a": A}, kind))
    assert list(found) == list(value)
    for key, array in arrays.items():
        assert found[f"t{key}"].dtype == array.dtype
        np.testing.assert_array_equal(found[f"t{key}"], array)
    np.testing.assert_array_equal(found["transposed"], A.reshape(4, 3).T)
    np.testing.assert_array_equal(found["part"], [[5, 7], [9, 11]])
    assert found["scalar"] == 7 and found["empty"].shape == (0, 4)
    np.testing.assert_array_equal(found["one"], [[0, 1]])
    for key in ("parameter", "old"):
        np.testing.assert_array_equal(found[key], A)
        assert np.shares_memory(found[key], found["transposed"])  # the storage is read once


@pytest.mark.parametrize("kind", FORMATS)
def test_checkpoints_and_ordered_dictionaries(kind, path):
    """A checkpoint's wrapper, with versions as torch keeps them; Python 2's dictionaries and texts."""
    state = Call(Name("collections", "OrderedDict"), (), {"_metadata": {"": {"version": 1}}})
    state = Steps(steps(state) + b"(U\x01w" + steps(whole("a", A)) + b"u")
    wrapped = {"epoch": 3, "optimizer": {"state": {0: whole("b", A)}}, "state_dict": state}
    python2 = Call(Name("collections", "OrderedDict"), ([["w", whole("a", A)]],))
    for value in (wrapped, python2):
        arrays = {"a": A, "b": A} if value is wrapped else {"a": A}
        found = files.read(save(path, value, arrays, kind))
        assert list(found) == ["w"]
        np.testing.assert_array_equal(found["w"], A)


@pytest.mark.parametrize("kind", FORMATS)
def test_files_cut_short(kind, path):
    data = save(path, {"w": whole("a", A)}, {"a": A}, kind).read_bytes()
    for end in (*range(0, len(data) - 1, 17), len(data) - 1):
        path.write_bytes(data[:end])
        assert "cannot be read as torch weights" in refusal(path)


SYSTEM, EVAL = Name("os", "system"), Name("builtins", "eval")
CODE = {
    "called": (Call(SYSTEM, ("touch marker",)), "os.system"),
    "built": (Call(Name("collections", "OrderedDict"), (), Call(EVAL, ("1",))), "builtins.eval"),
    "looked up": (Call(Name("builtins", "getattr"), (SYSTEM, "__call__")), "builtins.getattr"),
    "of protocol 4": (Steps(b"\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R"), "os.system"),
    "with its path": (Steps(b"\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93"), "OrderedDict.__init__"),
    "instance": (Steps(b"(X\x01\0\0\0xios\nsystem\n"), "step INST"),
    "new object": (Steps(steps(SYSTEM) + b")\x81"), "os.system"),
    "new of a known class": (Steps(steps(Name("collections", "OrderedDict")) + b")\x81"), "step NEWOBJ"),
    "extension": (Steps(b"\x82\x01"), "step EXT1"),
    "call of text": (Steps(steps("os.system") + b")R"), "a call"),
    "attributes of a name": (Steps(steps(Name("torch", "Size")) + b"}b"), "with a state"),
    "whole network": (Steps(b"ctorch.nn.modules.linear\nLinear\n)\x81}b"), "torch.nn.modules.linear.Linear"),
    "lines in a name": (Steps(b"\x8c\x02os\x8c\x06sys\n\x1bm\x93"), "os.sys \\x1bm"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("case", CODE)
def test_code_is_never_run(case, kind, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    value, names = CODE[case]
    for place in (value, {"state_dict": {"w": whole("a", A), "x": value}}):
        text = refusal(save(path, place, {"a": A}, kind))
        assert names in text and "never run" in text
    assert [item.name for item in path.parent.iterdir()] == [path.name]


TENSORS = {
    "beyond": tensor(storage("a", A), (3, 4), (4, 1), offset=1),
    "stride beyond": tensor(storage("a", A), (2, 2), (11, 1)),
    "larger by a stride of 0": tensor(storage("a", A), (2**40,), (0,)),
    "larger by overlaps": tensor(storage("a", A), (5, 8), (1, 1)),
    "negative stride": tensor(storage("a", A), (12,), (-1,), offset=11),
    "negative offset": tensor(storage("a", A), (1,), (1,), offset=-1),
    "negative size": tensor(storage("a", A), (-1, -1), (1, 1)),
    "huge size": tensor(storage("a", A), (2**100,), (1,)),
    "product beyond 64 bits": tensor(storage("a", A), (2**32, 2**32), (1, 1)),
    "huge empty": tensor(storage("a", A), (0, 2**61, 2**61), (1, 1, 1)),
    "size that is text": tensor(storage("a", A), ("12",), (1,)),
    "size that is true": tensor(storage("a", A), (True,), (1,)),
    "too many axes": tensor(storage("a", A), (1,) * 33, (1,) * 33),
    "strides missing": tensor(storage("a", A), (3, 4), (1,)),
    "no storage": tensor(None, (1,), (1,)),
    "huge storage": whole("a", A, 2**59),
    "storage beyond 64 bits": whole("a", A, 2**70),
    "negative storage": whole("a", A, -12),
    "storage of another size": whole("a", A, 11),
    "storage not there": whole("b", A),
    "storage with another path": whole("../../data/a", A),
    "storage of two sizes": [storage("a", A, 11), whole("a", A)],
    "reference by text": Reference("0"),
    "reference to a module": Reference(("module", "Linear", "linear.py", "source")),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_lie_in_their_storages(case, kind, path):
    save(path, {"w": TENSORS[case]}, {"a": A}, kind)
    assert "cannot be read as torch weights" in refusal_at_once(path)


def refusal_at_once(path):
    """With next to no memory, and far below the time that what the file asks for would take."""
    tracemalloc.start()
    start = time.monotonic()
    text = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - start < 20 and peak < 2**26
    return text


def nested(depth):
    """((..., ...), ...) of 2^depth ends, of which each level is made once; its hash visits all of them."""
    return Steps(b")" + b"q\0h\0\x86" * depth)


LONG_LIST = Steps(
    b"](" + steps(["k", 0]) * 2000 + b"eq\1(" + b"ccollections\nOrderedDict\nh\1\x85R" * 2000 + b"t"
)
LONG_SHAPE = Steps(
    b"(" + b"K\1" * 2000 + b"tq\1" + steps(tensor(storage("a", A), Steps(b"h\1"), Steps(b"h\1")))
)
COSTS = {
    "keys that are slow to hash": (Steps(b"}" + nested(80).data + b"Ns"), "key of type tuple"),
    "many steps": (Steps(b"N" * 20_000), "more than 10000 steps"),
    "long list taken often": (LONG_LIST, "more than 10000 steps"),
    "long shape taken often": (LONG_SHAPE, "a tensor of 2000 axes"),
    "place in the memo": (Steps(b"Nr\xff\xff\xff\xffj\xff\xff\xff\xff"), "no flat dictionary"),
    "text that is not there": (Steps(b"X\xff\xff\xff\xff"), "cannot be read"),
    "bytes that are not there": (Steps(b"\x8e" + b"\xff" * 7 + b"\x0f"), "cannot be read"),
    "array that is not there": (Steps(b"\x96" + b"\xff" * 7 + b"\x0f"), "cannot be read"),
}


@pytest.mark.parametrize("case", COSTS)
def test_small_files_cost_little(case, path, monkeypatch):
    monkeypatch.setattr(torch_pickles, "MAX_STEPS", 10_000)
    value, says = COSTS[case]
    assert says in refusal_at_once(save(path, value, {"a": A}, "zip"))


@pytest.mark.parametrize("kind", FORMATS)
def test_other_contents(kind, path):
    for value in (
        [whole("a", A)],
        {1: whole("a", A)},
        {"w": {"v": whole("a", A)}},
        {"w": 1},
        {},
        whole("a", A),
    ):
        arrays = {"a": A} if "a" in str(value) else {}
        assert "no flat dictionary of tensors" in refusal(save(path, value, arrays, kind))
    assert "big-endian" in refusal(save(path, {"w": whole("a", A)}, {"a": A}, kind, order="big"))


def test_other_files(path):
    value = {"w": whole("a", A)}
    assert "does not begin" in refusal(save(path, value, {"a": A}, "legacy", magic=7))
    assert "list of storages" in refusal(save(path, value, {"a": A, "b": A}, "legacy"))
    assert "compressed" in refusal(save(path, value, {"a": A}, compression=zipfile.ZIP_DEFLATED))
    data = bytearray(save(path, value, {"a": A}).read_bytes())
    data[data.index(A.tobytes())] ^= 1
    path.write_bytes(data)
    assert "CRC" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("code/model.py", "print()")
    assert "without one data.pkl" in refusal(path)
    path.write_text("<!DOCTYPE html> a page")
    assert "neither a zip archive nor a pickle" in refusal(path)


def test_entries_of_one_place_count_once_each(path):
    """An archive whose many entries are the same bytes of the file asks for more than it holds."""
    array = np.arange(4096, dtype=np.float32)
    save(path, {str(i): whole(str(i), array) for i in range(50)}, {"0": array})
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.getinfo("weights/data/0")
        for i in range(1, 50):
            entry = zipfile.ZipInfo(f"weights/data/{i}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(entry, field, getattr(first, field))
            archive.filelist.append(entry)
        archive.writestr("last", "")  # so that the directory is written again
    assert "storages are larger than the file" in refusal_at_once(path)
