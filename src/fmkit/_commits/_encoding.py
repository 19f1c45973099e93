"""Nested Python values as JSON with arrays beside it, and back, each as it was."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import keras
import numpy as np

__all__ = ["decode", "encode", "is_storable"]

Array = np.ndarray[Any, Any]

_DEPTH = 100
_ALLOWED = (
    "`get_state` may return dicts, lists and tuples, nested at most 100 deep, of "
    "None, booleans, numbers, strings, bytes, and NumPy arrays of numbers, strings, "
    "dates or records."
)
# Other dicts come back as plain ones.
_DICTS: dict[str, Any] = {"Counter": Counter, "OrderedDict": OrderedDict}
# NumPy's kinds of dtypes that consist of their bytes alone: no object, no StringDType.
_KINDS = "biufcmMSUV"


def encode(
    value: Any, arrays: dict[str, Array], where: str, place: str = "", depth: int = 0
) -> Any:
    """Turn `value` into JSON values, with its arrays put into `arrays`.

    Args:
        value: Nested dicts, lists and tuples of numbers, strings, bytes, arrays.
        arrays: Receives each array, under a name that begins with `where`.
        where: What the value belongs to, for names and error messages.
        place: Keys that lead to `value`, for error messages.
        depth: How many keys those are.

    Raises:
        TypeError: If there is anything else in it.
        ValueError: If it is nested too deeply.
    """
    if depth > _DEPTH:
        raise ValueError(
            f"The state of {where} is nested more than {_DEPTH} deep at "
            f"{place[:60]}... {_ALLOWED}"
        )

    def inner(item: Any, key: Any) -> Any:
        return encode(item, arrays, where, f"{place}[{key!r}]", depth + 1)

    if isinstance(value, (np.ndarray, np.generic)):
        return _encode_array(value, arrays, where, place)
    if isinstance(value, int) and abs(value).bit_length() > 64:
        # Python refuses to write the decimals of very large integers.
        return {"__int__": hex(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return {"__bytes__": _store(np.frombuffer(value, np.uint8), arrays, where)}
    if isinstance(value, list):
        return [inner(item, key) for key, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"__tuple__": [inner(item, key) for key, item in enumerate(value)]}
    if isinstance(value, dict):
        kind = value.__class__.__name__
        special = _DICTS.get(kind) is value.__class__
        plain = all(type(key) is str and not key.startswith("__") for key in value)
        if plain and not special:
            return {key: inner(item, key) for key, item in value.items()}
        pairs = [[inner(key, "key"), inner(value[key], key)] for key in value]
        return {"__dict__": pairs, **({"kind": kind} if special else {})}
    if keras.ops.is_tensor(value) or isinstance(value, keras.Variable):
        return inner(keras.ops.convert_to_numpy(value), "tensor")
    raise _not_allowed(value, where, place)


def is_storable(value: Any) -> bool:
    """Whether an array or NumPy scalar consists of its bytes, and can come back."""
    kinds = (np.ndarray, np.memmap, np.ma.MaskedArray)
    plain = type(value) in kinds or isinstance(value, np.generic)
    dtype = value.dtype
    extended = dtype.isbuiltin == 2  # bfloat16 and its like
    return plain and (extended or (dtype.kind in _KINDS and not dtype.hasobject))


def _encode_array(
    value: Any, arrays: dict[str, Array], where: str, place: str
) -> dict[str, Any]:
    plain = type(value) in (np.ndarray, np.memmap) or isinstance(value, np.generic)
    masked = isinstance(value, np.ma.MaskedArray)
    dtype = value.dtype
    extended = dtype.isbuiltin == 2  # bfloat16 and its like
    if (
        dtype.hasobject
        or not (plain or masked)
        or not (dtype.kind in _KINDS or extended)
    ):
        raise _not_allowed(value, where, place)
    if masked:
        return {
            "__masked__": _store(np.asarray(value.data), arrays, where),
            "mask": _store(np.ma.getmaskarray(value), arrays, where),
            "fill": _store(np.asarray(value.fill_value, dtype), arrays, where),
        }
    scalar = isinstance(value, np.generic)
    return {"__array__": _store(np.array(value), arrays, where), "scalar": scalar}


def _store(array: Array, arrays: dict[str, Array], where: str) -> str:
    # On Windows zipfile makes slashes of backslashes.
    name = f"{where}/{len(arrays)}".replace("\\", "|")
    arrays[name] = np.array(array)
    return name


def _not_allowed(value: Any, where: str, place: str) -> TypeError:
    kind = type(value).__name__
    if isinstance(value, (np.ndarray, np.generic)):
        kind += f" of dtype {value.dtype}"
    at = f" at {place}" if place else ""
    shown = repr(value)
    shown = shown if len(shown) < 80 else shown[:77] + "..."
    return TypeError(f"The state of {where} holds a {kind}{at}: {shown}. {_ALLOWED}")


def decode(value: Any, arrays: dict[str, Array]) -> Any:
    """Undo `encode`."""
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "__int__" in value:
        return int(value["__int__"], 16)
    if "__tuple__" in value:
        return tuple(decode(value["__tuple__"], arrays))
    if "__bytes__" in value:
        return arrays[value["__bytes__"]].tobytes()
    if "__masked__" in value:
        data, mask, fill = (arrays[value[k]] for k in ("__masked__", "mask", "fill"))
        masked: Any = np.ma.array(data.copy(), mask=mask.copy())
        masked.fill_value = fill[()]
        return masked
    if "__array__" in value:
        # A copy: what is read from a commit is not writable.
        array = arrays[value["__array__"]].copy()
        return array[()] if value["scalar"] else array
    if "__dict__" in value:
        pairs = value["__dict__"]
        found = {decode(key, arrays): decode(item, arrays) for key, item in pairs}
        return _DICTS.get(value.get("kind", ""), dict)(found)
    return {key: decode(item, arrays) for key, item in value.items()}
