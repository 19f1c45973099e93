"""The state of callbacks: a user's, fmkit's and Keras's own, in JSON and arrays.

The convention: a callback that carries something from step to step has

    get_state() -> dict      JSON values and NumPy arrays
    set_state(state)         the inverse

Keras's own callbacks have neither; the table below knows what each carries.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

__all__ = [
    "check_settings",
    "decode",
    "encode",
    "get_states",
    "set_states",
    "without_state",
]

Array = np.ndarray[Any, Any]
State = dict[str, Any]


def check_settings(
    callback: str, state: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Refuse a state that was saved with other settings than the callback's own.

    Args:
        callback: Its name, for the message.
        state: What `get_state` returned, with the settings under `"settings"`.
        own: The settings without which what was counted means something else.

    Raises:
        ValueError: If a setting was another when the state was saved.
    """
    saved = state.get("settings", {})
    names = [name for name in own if name in saved and saved[name] != own[name]]
    if not names:
        return
    then = ", ".join(f"{name}={saved[name]!r}" for name in names)
    now = ", ".join(f"{name}={own[name]!r}" for name in names)
    raise ValueError(
        f"The state given to {callback} was saved with {then}, but the callback has "
        f"{now}, and what was counted would mean something else. Set {then} as before "
        "(callbacks of one class also keep their order in the list), or begin a new "
        "run: without `set_state`, and with `ExactResume` in another directory."
    )


# JSON with arrays in it


def encode(value: Any, arrays: dict[str, Array], where: str) -> Any:
    """Turn `value` into JSON values, with its arrays put into `arrays`.

    Args:
        value: Nested dicts, lists and tuples of numbers, strings, bytes, arrays.
        arrays: Receives each array, under a name that begins with `where`.
        where: What the value belongs to, for names and error messages.

    Raises:
        TypeError: If there is anything else in it.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        value = np.frombuffer(value, np.uint8)
        return {"__bytes__": encode(value, arrays, where)["__array__"]}
    if isinstance(value, (np.ndarray, np.generic)):
        name = f"{where}/{len(arrays)}"
        arrays[name] = np.array(value)
        return {"__array__": name, "scalar": isinstance(value, np.generic)}
    if isinstance(value, (list, tuple)):
        return [encode(item, arrays, where) for item in value]
    if isinstance(value, dict):
        if all(isinstance(k, str) and not k.startswith("__") for k in value):
            return {k: encode(item, arrays, where) for k, item in value.items()}
        pairs = [[k, v] for k, v in value.items()]
        return {"__dict__": encode(pairs, arrays, where)}
    if keras.ops.is_tensor(value) or isinstance(value, keras.Variable):
        return encode(keras.ops.convert_to_numpy(value), arrays, where)
    raise TypeError(
        f"The state of {where} holds a {type(value).__name__}: {value!r}. "
        "`get_state` must return JSON values and NumPy arrays."
    )


def decode(value: Any, arrays: dict[str, Array]) -> Any:
    """Undo `encode` (tuples come back as lists)."""
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "__bytes__" in value:
        return arrays[value["__bytes__"]].tobytes()
    if "__array__" in value:
        # A copy: what is read from a commit is not writable.
        array = arrays[value["__array__"]].copy()
        return array[()] if value["scalar"] else array
    if "__dict__" in value:
        return {k: decode(item, arrays) for k, item in value["__dict__"]}
    return {k: decode(item, arrays) for k, item in value.items()}


# Keras's own callbacks


def _attributes(
    *names: str, settings: Iterable[str] = ()
) -> tuple[Callable[..., State], Callable[..., None]]:
    """Return how to take and put `names`, for a callback with the same `settings`."""

    def settings_of(callback: Any) -> State:
        return {name: getattr(callback, name) for name in settings}

    def get(callback: Any) -> State:
        state = {name: getattr(callback, name) for name in names}
        return {**state, "settings": settings_of(callback)}

    def put(callback: Any, state: State) -> None:
        check_settings(type(callback).__name__, state, settings_of(callback))
        for name in names:
            setattr(callback, name, state[name])

    return get, put


def _get_csv(logger: Any) -> State:
    path = Path(logger.filename)
    return {
        "keys": logger.keys,
        "content": path.read_bytes() if path.exists() else b"",
    }


def _put_csv(logger: Any, state: State) -> None:
    """Make the file what it was, and go on at its end."""
    if logger.csv_file and not logger.csv_file.closed:
        logger.csv_file.close()
    path = Path(logger.filename)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(state["content"])
    os.replace(temporary, path)
    logger.csv_file = open(path, "a")  # noqa: SIM115 - the logger closes it
    logger.keys = state["keys"]
    logger.append_header = not state["content"]
    logger.writer = None  # made again, on the new file, at the next epoch's end


# What "best" is the best of.
_MONITORED = ("monitor", "mode")

# `min_delta` is not here: Keras flips its sign once when monitoring starts.
_TABLE: dict[type, tuple[Callable[..., State], Callable[..., None]]] = {
    keras.callbacks.EarlyStopping: _attributes(
        "wait",
        "stopped_epoch",
        "best",
        "best_weights",
        "best_epoch",
        settings=_MONITORED,
    ),
    keras.callbacks.ReduceLROnPlateau: _attributes(
        "wait", "cooldown_counter", "best", settings=_MONITORED
    ),
    keras.callbacks.ModelCheckpoint: _attributes(
        "best",
        "_batches_seen_since_last_saving",
        "_last_batch_seen",
        settings=_MONITORED,
    ),
    keras.callbacks.CSVLogger: (_get_csv, _put_csv),
    keras.callbacks.History: _attributes("history", "epoch"),
    keras.callbacks.TensorBoard: _attributes(
        "_global_train_batch", "_global_test_batch"
    ),
}

# They carry nothing that training depends on.
_STATELESS = (
    keras.callbacks.LambdaCallback,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.SwapEMAWeights,
    keras.callbacks.TerminateOnNaN,
)


def _keras_type(callback: Any) -> type | None:
    return next((kind for kind in _TABLE if isinstance(callback, kind)), None)


def _by_convention(callback: Any) -> bool:
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _named(callbacks: Iterable[Any]) -> list[tuple[str, Any]]:
    """Name each callback by its class and its place among those of the class."""
    seen: Counter[str] = Counter()
    named = []
    for callback in callbacks:
        kind = type(callback).__name__
        named.append((f"{kind} {seen[kind]}" if seen[kind] else kind, callback))
        seen[kind] += 1
    return named


def get_states(callbacks: Iterable[Any]) -> dict[str, State]:
    """Return the state of every callback that has one, by the callback's name."""
    states = {}
    for name, callback in _named(callbacks):
        state: State = {}
        kind = _keras_type(callback)
        if kind is not None:
            state["keras"] = _TABLE[kind][0](callback)
        if _by_convention(callback):
            state["own"] = callback.get_state()
        if state:
            states[name] = state
    return states


def set_states(callbacks: Iterable[Any], states: dict[str, State]) -> list[str]:
    """Give the states back; return the names of callbacks that had none saved."""
    without = []
    for name, callback in _named(callbacks):
        kind = _keras_type(callback)
        if name not in states:
            if kind is not None or _by_convention(callback):
                without.append(name)
            continue
        if kind is not None and "keras" in states[name]:
            _TABLE[kind][1](callback, states[name]["keras"])
        if _by_convention(callback) and "own" in states[name]:
            callback.set_state(states[name]["own"])
    return without


def without_state(callbacks: Iterable[Any]) -> list[str]:
    """Name the callbacks whose attributes, if they change, are lost in a kill."""
    plain = set(vars(keras.callbacks.Callback()))
    return [
        name
        for name, callback in _named(callbacks)
        if not _by_convention(callback)
        and _keras_type(callback) is None
        and not isinstance(callback, _STATELESS)
        and set(vars(callback)) - plain
    ]
