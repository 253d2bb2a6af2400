"""Read the pickle of a torch state dict as data: a machine that can call nothing.

Unpickling runs whatever function a file names. This machine knows the few names a state dict
needs and turns each into a value of its own; any other name is refused before anything happens,
and so is every opcode that state dicts have no use for.
Opcodes: PEP 307, PEP 3154 and Lib/pickletools.py of CPython.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

MAX_PICKLE_BYTES = 16 * 2**20
MAX_RANK = 16

MAX_OPCODES = 300_000
"""About 45 opcodes a tensor; the 341 entries of a GPT-J file take 16,000."""

_TORCH_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "float64": np.dtype(np.float64),
        "float32": np.dtype(np.float32),
        "float16": np.dtype(np.float16),
        "bfloat16": np.dtype(ml_dtypes.bfloat16),
        "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
        "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
        "complex64": np.dtype(np.complex64),
        "int64": np.dtype(np.int64),
        "int32": np.dtype(np.int32),
        "int16": np.dtype(np.int16),
        "int8": np.dtype(np.int8),
        "uint64": np.dtype(np.uint64),
        "uint32": np.dtype(np.uint32),
        "uint16": np.dtype(np.uint16),
        "uint8": np.dtype(np.uint8),
        "bool": np.dtype(np.bool_),
    }
)
_STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "ComplexFloatStorage": "complex64",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
        "UntypedStorage": "uint8",
    }
)


class StatePickleError(ValueError):
    """Why the pickle is not a state dict, in half a sentence."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A run of elements in the file, named by `key`."""

    key: str
    dtype: np.dtype[Any]
    num_elements: int


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A strided window on a storage; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """One of the known names, as it stands on the stack."""

    name: str


class _Mark:
    pass


def read_state_pickle(data: bytes) -> object:
    """The value of the pickle: dicts, lists, tuples, numbers, strings and StoredTensors."""
    return _Machine(data).run()


class _Machine:
    """The stack machine of pickle protocols 2 to 5, less everything that calls or builds."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        for _ in range(MAX_OPCODES):
            opcode = self._take(1)
            if opcode == b".":
                return self._pop()
            action = _ACTIONS.get(opcode)
            if action is None:
                raise StatePickleError(f"uses the pickle opcode {opcode!r}, of no use to weights")
            action(self)
        raise StatePickleError(f"has a pickle of more than {MAX_OPCODES:,} opcodes")

    def _take(self, count: int) -> bytes:
        chunk = self._data[self._position : self._position + count]
        if len(chunk) < count or count < 0:
            raise StatePickleError("has a pickle that is cut short")
        self._position += count
        return chunk

    def _number(self, code: str) -> int:
        value: int = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]
        return value

    def _line(self) -> str:
        end = self._data.find(b"\n", self._position, self._position + 512)
        if end < 0:
            raise StatePickleError("has a damaged pickle")
        line = self._take(end + 1 - self._position)[:-1]
        return line.decode("utf-8", "backslashreplace")

    def _text(self, code: str) -> str:
        try:
            return self._take(self._number(code)).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise StatePickleError("has a damaged pickle") from error

    def _integer(self, code: str) -> int:
        size = self._number(code)
        if size > 16:
            raise StatePickleError(f"has an integer of {size} bytes in its pickle")
        return int.from_bytes(self._take(size), "little", signed=True)

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or isinstance(self._stack[-1], _Mark):
            raise StatePickleError("has a damaged pickle")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self._stack:
            item = self._stack.pop()
            if isinstance(item, _Mark):
                return items[::-1]
            items.append(item)
        raise StatePickleError("has a damaged pickle")

    def _top(self, kind: type[Any]) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise StatePickleError("has a damaged pickle")
        return self._stack[-1]

    def _memoize(self, index: int) -> None:
        if not self._stack:
            raise StatePickleError("has a damaged pickle")
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise StatePickleError("has a damaged pickle")
        self._push(self._memo[index])

    def _tuple(self, count: int) -> None:
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    def _global(self, module: object, name: object) -> None:
        self._push(_known_global(f"{module}.{name}"))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise StatePickleError("has a damaged pickle")
        self._global(module, name)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise StatePickleError("has a damaged pickle")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple that repeats itself through the memo takes exponential time.
            if not isinstance(key, str | int | float | bool | None):
                raise StatePickleError(f"has a {type(key).__name__} as a key in its pickle")
            target[key] = value

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def _persistent(self) -> None:
        self._push(_storage(self._pop()))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise StatePickleError("calls something that is not a function in its pickle")
        self._push(_call(function.name, arguments))

    def _build(self) -> None:
        # A state dict carries the versions of its modules as an attribute; nobody reads them here.
        self._pop()
        self._top(dict)


def _known_global(name: str) -> object:
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.storage") and last in _STORAGES:
        return _Global(f"torch.{last}")
    if module == "torch" and last in _TORCH_DTYPES:
        return _TORCH_DTYPES[last]
    if name in _CALLS:
        return _Global(name)
    if module == "torch._utils" or (module == "torch" and last.endswith("Storage")):
        raise StatePickleError(
            f"holds tensors of a kind that is not supported ({_plain(name)}); save plain ones"
        )
    raise StatePickleError(
        f"asks for {_plain(name)} to be run, which no weights need; it may be hostile, so get "
        "the model as safetensors instead"
    )


def _plain(name: str) -> str:
    shown = name if name.isprintable() else name.encode("unicode_escape").decode()
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _storage(identity: object) -> Storage:
    """The tuple ('storage', type, key, device, number of elements)."""
    match identity:
        case ("storage", _Global(name=name), str(key), _, int(count)) if count >= 0:
            last = name.rpartition(".")[2]
            if last in _STORAGES:
                return Storage(key=key, dtype=_TORCH_DTYPES[_STORAGES[last]], num_elements=count)
    raise StatePickleError("names a storage in an unknown way")


def _call(name: str, arguments: tuple[Any, ...]) -> object:
    call = _CALLS.get(name)
    if call is None:
        raise StatePickleError(f"calls {_plain(name)} in its pickle")
    return call(arguments)


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise StatePickleError("fills an OrderedDict in an unknown way")
    return {}


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    match arguments:
        case (list() | tuple() as sizes,):
            return tuple(sizes)
    raise StatePickleError("has a torch.Size of unknown form")


def _rebuild_tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides), *rest):
            # Version 3 of the function gives the dtype of an untyped storage as argument 6.
            dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], np.dtype) else storage.dtype
            are_counts = _are_counts((offset, *shape, *strides))
            if are_counts and len(shape) == len(strides) <= MAX_RANK:
                return StoredTensor(
                    storage=storage, dtype=dtype, offset=offset, shape=shape, strides=strides
                )
    raise StatePickleError("describes a tensor in an unknown way")


def _rebuild_parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, *_):
            return tensor
    raise StatePickleError("describes a parameter in an unknown way")


def _are_counts(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


_CALLS: Mapping[str, Callable[[tuple[Any, ...]], object]] = MappingProxyType(
    {
        "collections.OrderedDict": _ordered_dict,
        "torch.Size": _size,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v3": _rebuild_tensor,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
    }
)

_ACTIONS: Mapping[bytes, Callable[[_Machine], object]] = MappingProxyType(
    {
        b"\x80": lambda m: m._take(1),  # PROTO
        b"\x95": lambda m: m._take(8),  # FRAME
        b"(": lambda m: m._push(_Mark()),
        b"0": lambda m: m._pop(),
        b"}": lambda m: m._push({}),
        b"]": lambda m: m._push([]),
        b")": lambda m: m._push(()),
        b"N": lambda m: m._push(None),
        b"\x88": lambda m: m._push(True),
        b"\x89": lambda m: m._push(False),
        b"J": lambda m: m._push(m._number("i")),
        b"K": lambda m: m._push(m._number("B")),
        b"M": lambda m: m._push(m._number("H")),
        b"\x8a": lambda m: m._push(m._integer("B")),
        b"\x8b": lambda m: m._push(m._integer("I")),
        b"G": lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
        b"X": lambda m: m._push(m._text("I")),
        b"\x8c": lambda m: m._push(m._text("B")),
        b"\x8d": lambda m: m._push(m._text("Q")),
        b"q": lambda m: m._memoize(m._number("B")),
        b"r": lambda m: m._memoize(m._number("I")),
        b"\x94": lambda m: m._memoize(len(m._memo)),
        b"h": lambda m: m._recall(m._number("B")),
        b"j": lambda m: m._recall(m._number("I")),
        b"t": lambda m: m._push(tuple(m._pop_to_mark())),
        b"l": lambda m: m._push(m._pop_to_mark()),
        b"\x85": lambda m: m._tuple(1),
        b"\x86": lambda m: m._tuple(2),
        b"\x87": lambda m: m._tuple(3),
        b"c": lambda m: m._global(m._line(), m._line()),
        b"\x93": lambda m: m._stack_global(),
        b"Q": lambda m: m._persistent(),
        b"R": lambda m: m._reduce(),
        b"b": lambda m: m._build(),
        b"s": lambda m: m._set_item(),
        b"u": lambda m: m._set_items(m._pop_to_mark()),
        b"a": lambda m: m._append(),
        b"e": lambda m: m._appends(),
    }
)
