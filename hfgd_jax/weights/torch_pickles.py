"""Interprets the pickles in torch's files opcode by opcode on plain values; no code in one can run.

`pickletools` splits a pickle into its opcodes. Those that a dictionary of tensors consists of are
interpreted, on lists, tuples and dictionaries; every other one is refused, as is every name that is not in
`NAMES`. A file cannot choose what is imported or called.
"""

import io
import math
import pickletools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

MAX_STEPS = 2**18  # opcodes; a tensor has about 36
MAX_DIMENSIONS = 32

STORAGES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
REBUILD = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")  # the first: torch before 0.4
NAMES = {*STORAGES, *REBUILD, "torch._utils._rebuild_parameter", "torch.Size", "collections.OrderedDict"}

_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING"),  # the last two: Python 2's text
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Damaged(Exception):
    """The file is not what torch writes, or is truncated."""


class Foreign(Exception):
    """The file holds something else than tensors in plain containers."""


class Name(NamedTuple):
    """One of `NAMES`, as a value in a pickle."""

    text: str


class Storage(NamedTuple):
    """A flat array in the file, which tensors are views of."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


class Tensor(NamedTuple):
    """A view of a storage, checked to be within its bounds; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Content(NamedTuple):
    """The value of a pickle, and the storages that it refers to by their keys."""

    value: Any
    storages: dict[str, Storage]


def unpickle(data: io.BytesIO) -> Content:
    """Interprets one pickle, from the position of `data`, which is left at the pickle's end."""
    machine = _Machine()
    try:
        for step, argument, _ in pickletools.genops(data):
            if step.name == "STOP":
                return Content(machine.stack.pop(), machine.storages)
            machine.take(step.name, argument)
    except (IndexError, KeyError) as error:  # an empty stack, an unknown key of the memo
        raise Damaged(f"a pickle that is none: {type(error).__name__}") from None
    raise Damaged("cut short")


class _Machine:
    """The stack and the memo while a pickle is interpreted."""

    def __init__(self):
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.steps = 0

    def take(self, step: str, argument: Any) -> None:
        """Interprets one opcode with the argument that pickletools read."""
        self._count(1)
        stack = self.stack
        match step:
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(step[-1]))]
                stack.append(tuple(reversed(items)))
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "TUPLE":
                self.stack = self.outer.pop()
                self.stack.append(tuple(stack))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(self._call(stack.pop(), arguments))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "GLOBAL":
                stack.append(_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name = stack.pop()
                stack.append(_name(stack.pop(), name))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "SETITEM" | "SETITEMS" | "APPEND" | "APPENDS":
                self._fill(step)
            case "BUILD":  # an OrderedDict's attributes, such as a state_dict's versions: not needed here
                if type(stack.pop()) is not dict or type(stack[-1]) is not dict:
                    raise Foreign("an object with a state")
            case "PROTO" | "FRAME":
                pass
            case _ if step in _CONSTANTS:
                stack.append(_CONSTANTS[step])
            case _ if step in _LITERALS:
                stack.append(argument)
            case _:
                raise Foreign(f"the pickle's step {step}")

    def _count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise Damaged(f"a pickle of more than {MAX_STEPS} steps")

    def _fill(self, step: str) -> None:
        """Appends values to a list, or sets items of a dictionary."""
        count = {"APPEND": 1, "SETITEM": 2}.get(step)
        if count:
            items = [self.stack.pop() for _ in range(count)][::-1]
        else:
            items, self.stack = self.stack, self.outer.pop()
        target, wanted = self.stack[-1], list if step.startswith("APPEND") else dict
        if type(target) is not wanted or (wanted is dict and len(items) % 2):
            raise Damaged(f"{step} on a {type(target).__name__} with {len(items)} values")
        if wanted is list:
            target += items
        else:
            target |= _dictionary(zip(items[::2], items[1::2], strict=True))

    def _storage(self, identity: Any) -> Storage:
        match identity:
            case (
                ("storage", Name(kind), str(key), str(), int(count))
                | ("storage", Name(kind), str(key), str(), int(count), None)  # the legacy format's
            ) if kind in STORAGES and type(count) is int and 0 <= count < 2**60:
                storage = Storage(key, STORAGES[kind], count)
            case _:
                raise Damaged("a reference to something else than a storage")
        if self.storages.setdefault(key, storage) != storage:
            raise Damaged(f"storage {key!r:.80} has two types or sizes")
        return storage

    def _call(self, function: Any, arguments: Any) -> Any:
        """The result of calling one of `NAMES`."""
        if type(function) is not Name or type(arguments) is not tuple:
            raise Foreign("a call of what is no name")
        match function.text, arguments[:8]:  # a tuple may be long and used many times
            case "collections.OrderedDict", ():
                return {}
            case "collections.OrderedDict", (list() as pairs,):  # Python 2's
                self._count(len(pairs))
                if all(type(pair) is list and len(pair) == 2 for pair in pairs):
                    return _dictionary(pairs)
            case "torch.Size", (tuple() as sizes,):
                return sizes
            case "torch._utils._rebuild_parameter", (Tensor() as tensor, *_):
                return tensor
            case text, (Storage() as storage, offset, tuple() as shape, tuple() as strides, *rest):
                if text in REBUILD:
                    return _tensor(storage, offset, shape, strides, rest[2:])
        raise Damaged(f"{function.text} with other arguments than torch gives it")


def _name(module: Any, name: Any) -> Name:
    text = f"{module}.{name}" if type(module) is type(name) is str else "a name that is no text"
    if text not in NAMES:
        raise Foreign(text[:100])
    return Name(text)


def _dictionary(pairs: Iterable[Any]) -> dict[str | int, Any]:
    found = {}
    for key, value in pairs:
        if type(key) not in (str, int):  # hashing nested tuples may take exponential time
            raise Foreign(f"a dictionary's key of type {type(key).__name__}")
        found[key] = value
    return found


def _tensor(storage: Storage, offset: Any, shape: tuple, strides: tuple, metadata: list) -> Tensor:
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Damaged(f"a tensor of {len(shape)} axes with {len(strides)} strides")
    if not all(type(number) is int and 0 <= number < 2**62 for number in (offset, *shape, *strides)):
        raise Damaged("a tensor whose offset, sizes or strides are no numbers from 0 on")
    if any(metadata):
        raise Foreign("a tensor that is conjugated or negated in name only")
    count = math.prod(shape)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if count > storage.count or (count and last >= storage.count):
        raise Damaged("a tensor that is larger than its storage or reaches beyond it")
    if not count and math.prod(length or 1 for length in shape) >= 2**40:
        raise Damaged("an empty tensor of an impossible shape")
    return Tensor(storage, offset, shape, strides)
