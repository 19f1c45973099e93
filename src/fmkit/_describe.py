"""Describes what a program is made of, in plain values that processes can compare.

Functions are described by a digest of their code, arrays by one of their bytes, and
objects of Keras by their configuration. Names that Keras numbers within a process and
memory addresses are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import math
import re
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

__all__ = [
    "ABSENT",
    "ANYTHING",
    "describe",
    "differences",
    "digest_of_arrays",
    "layer_names",
    "library_of",
    "uncounted",
    "without_numbers",
]

Array = np.ndarray[Any, Any]

# A setting that two programs need not have in common.
ANYTHING = "anything"
# A setting that a program does not have at all, unlike one that is `None`.
ABSENT = "(absent)"

# Larger data are described by rows.
WHOLE_BYTES = 2**28
ROWS = 4096

_NAMES = ("name", "input_layers", "output_layers")
_DEPTH = 8
_NUMBERS = (bool, int, float)
_PLAIN = (*_NUMBERS, str, np.ndarray)
_WITH_SETTINGS = (
    functools.partial,
    types.MethodType,
    keras.layers.Layer,
    keras.losses.Loss,
)
_LIBRARIES = ("keras", "fmkit", "tensorflow", "jax", "torch", "numpy", "builtins")


def library_of(value: Any) -> str:
    """Return the top package of the class of `value`."""
    return type(value).__module__.partition(".")[0]


def uncounted(name: str) -> str:
    """Remove the number that Keras counts within a process: dense_1, dense_2."""
    return re.sub(r"_[0-9]+(?=/|$)", "", name)


def without_numbers(path: str) -> str:
    """Remove also those in the name of an optimizer's slot: adam/dense_1_kernel."""
    return re.sub(r"_[0-9]+(?=[/_]|$)", "", path)


def layer_names(layers: Iterable[Any]) -> list[str]:
    """Name layers as `model.summary()` does in a new process: dense, dense_1."""
    seen: Counter[str] = Counter()
    names = []
    for layer in layers:
        name = uncounted(layer.name)
        names.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def describe(value: Any, depth: int = 0) -> Any:
    """Return plain values, equal for objects that do the same in another process.

    Args:
        value: Anything that a program passes to Keras.
        depth: How deep `value` is in what is described; the rest is left out at 8.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth > _DEPTH:
        return type(value).__name__
    inner = functools.partial(describe, depth=depth + 1)
    if isinstance(value, Mapping):
        return _shorten_config({str(key): inner(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return [inner(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, map(inner, value)))
    if isinstance(value, np.generic):
        return inner(value.item())
    if isinstance(value, np.ndarray) or keras.ops.is_tensor(value):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return f"{array.dtype}{list(array.shape)} {digest_of_arrays([array])}"
    if isinstance(value, functools.partial):
        given = {"arguments": inner(value.args)} if value.args else {}
        return {"function": inner(value.func), **given, **inner(value.keywords)}
    if isinstance(value, types.MethodType):
        owner = value.__self__
        # What a model is made of is described elsewhere.
        of = None if isinstance(owner, keras.Model) else inner(owner)
        return {"method": inner(value.__func__), "of": of}
    if isinstance(value, types.FunctionType):
        return _describe_function(value, depth)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return _describe_object(value, depth)


def _shorten_config(described: dict[str, Any]) -> Any:
    """Shorten a serialised Keras object: a class and its configuration."""
    if {"class_name", "config"} <= described.keys():
        config = described["config"]
        if not isinstance(config, dict) or not config:
            return config or described["class_name"]
        # Names are numbered within a process: adam, adam_1.
        kept = {key: item for key, item in config.items() if key not in _NAMES}
        if not kept:
            return config["name"]  # of a dtype policy
        return {"class": described["class_name"], **kept}
    return described


def _describe_object(value: Any, depth: int) -> Any:
    kind = type(value)
    described: dict[str, Any] = {"class": kind.__qualname__}
    code = _code_of_class(kind)
    if code:
        described["code"] = code
    config = describe(_config_of(value), depth + 1)
    if isinstance(config, str):
        return f"{config} {code or ''}".strip()
    described |= {key: item for key, item in config.items() if key not in _NAMES}
    return described if len(described) > 1 else described["class"]


def _config_of(value: Any) -> Any:
    """Return the configuration of an object, a text or its attributes."""
    try:
        return dict(value.get_config())
    except Exception:  # noqa: BLE001 - what a user's `get_config` may raise
        libraries = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    if "keras" in libraries:
        return {}  # its attributes are variables and internals of Keras
    if " at 0x" not in repr(value):
        return repr(value)
    return {} if library_of(value) in _LIBRARIES else getattr(value, "__dict__", {})


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, the old and the new value of what two descriptions differ in."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{where}.{key}" if where else str(key)
            yield from differences(old.get(key, ABSENT), new.get(key, ABSENT), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{where}[{place}]")
    elif old != new and ANYTHING not in (old, new) and not _are_nothing(old, new):
        yield where, old, new


def _are_nothing(*values: Any) -> bool:
    return all(value is None or value == ABSENT for value in values)


# Functions


def _is_of_library(function_or_class: Any) -> bool:
    return function_or_class.__module__.partition(".")[0] in _LIBRARIES


def _describe_function(function: types.FunctionType, depth: int) -> str:
    name = f"{function.__module__}.{function.__qualname__}"
    if _is_of_library(function):
        return name
    return f"{name} {_code_of_function(function, set(), depth)}"


def _code_of_class(kind: type) -> str | None:
    """Digest the methods of a class that are defined outside the libraries."""
    digest = hashlib.blake2b(digest_size=8)
    found = False
    for base in kind.__mro__:
        if _is_of_library(base):
            continue
        for name, method in vars(base).items():
            method = getattr(method, "__func__", getattr(method, "fget", method))
            method = inspect.unwrap(method) if callable(method) else method
            if isinstance(method, types.FunctionType):
                found = True
                digest.update(f"{name} {_code_of_function(method, set(), 1)}".encode())
    return digest.hexdigest() if found else None


def _code_of_function(function: types.FunctionType, seen: set[int], depth: int) -> str:
    """Digest what a function does, with the functions and settings that it names."""
    seen.add(id(function))
    digest = hashlib.blake2b(digest_size=8)
    code = function.__code__
    digest.update(repr(_describe_code(code, function.__doc__)).encode())
    digest.update(repr(describe(function.__defaults__, depth + 2)).encode())
    digest.update(repr(describe(function.__kwdefaults__, depth + 2)).encode())
    closure = [
        cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)
    ]
    globals_ = [function.__globals__.get(name) for name in code.co_names]
    numbers = [g for g in globals_ if isinstance(g, _NUMBERS)]
    digest.update(repr(numbers).encode())
    for value in [*closure, *globals_]:
        if not isinstance(value, types.FunctionType) or _is_of_library(value):
            continue
        if id(value) not in seen:
            digest.update(_code_of_function(value, seen, depth).encode())
    # A text among the globals may be a path, which is another one elsewhere.
    others = [g for g in globals_ if not isinstance(g, (*_NUMBERS, str))]
    for value in filter(_is_setting, [*closure, *others]):
        digest.update(repr(describe(value, depth + 2)).encode())
    return digest.hexdigest()


def _is_setting(value: Any) -> bool:
    """Whether a value stays as it is, unlike what a program may fill as it runs."""
    if isinstance(value, tuple):
        return all(isinstance(v, types.FunctionType) or _is_setting(v) for v in value)
    if isinstance(value, list):  # of functions; one of numbers or texts may be a log
        is_log = not value or any(isinstance(v, _PLAIN) for v in value)
        return not is_log and _is_setting(tuple(value))
    if isinstance(value, (type, keras.Model)):
        return False
    is_frozen = dataclasses.is_dataclass(value) and type(value).__hash__ is not None
    return is_frozen or isinstance(value, (*_PLAIN, *_WITH_SETTINGS))


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises if there is nothing in it
    except ValueError:
        return False
    return True


def _describe_code(code: types.CodeType, doc: str | None = None) -> list[Any]:
    """Return what Python runs: no file, no line, no docstring."""
    constants: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            constants.append(_describe_code(constant))
        elif isinstance(constant, frozenset):  # in an order that differs by process
            constants.append(sorted(map(repr, constant)))
        elif doc is None or constant != doc:
            constants.append(repr(constant))
    names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
    return [code.co_code.hex(), constants, names]


# Arrays


def digest_of_arrays(arrays: Iterable[Array], *, whole: bool = False) -> str:
    """Return a digest of dtypes, shapes and bytes, the same on every platform.

    Up to 256 MiB, or if `whole`, all bytes count; above, 4,096 rows of each array,
    evenly spaced from the first to the last.
    """
    arrays = list(arrays)
    whole = whole or sum(array.nbytes for array in arrays) <= WHOLE_BYTES
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{list(array.shape)};".encode())
        for rows in _row_blocks(array, whole):
            data = np.ascontiguousarray(rows)
            # The bytes of objects are addresses.
            objects = data.dtype.hasobject
            digest.update(repr(data.tolist()).encode() if objects else _bytes(data))
    return digest.hexdigest()


def _row_blocks(array: Array, whole: bool) -> Iterable[Array]:
    if array.ndim == 0:
        return [array.reshape(1)]
    if not whole:
        rows = np.linspace(0, len(array) - 1, ROWS).astype(np.int64)
        return [array[np.unique(rows)]]
    # In pieces, since one that isn't contiguous is copied.
    rows_per_piece = max(1, 2**24 * len(array) // max(array.nbytes, 1))
    starts = range(0, len(array), rows_per_piece)
    return (array[start : start + rows_per_piece] for start in starts)


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
