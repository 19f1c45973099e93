"""The state of callbacks: a user's, fmkit's and Keras's own, in JSON and arrays.

The convention: a callback that carries something from step to step has

    get_state() -> dict      JSON values and NumPy arrays
    set_state(state)         the inverse
    resumable_files()        the files that it appends to; `_appended_files` cuts them

Keras's own callbacks have none of these; a table says what each of them carries.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._commits import encode
from fmkit._files import whole_file
from fmkit.callbacks._resume import _appended_files
from fmkit.callbacks._saved_settings import check_settings

__all__ = [
    "check_states",
    "continued_files",
    "get_states",
    "named",
    "note_files",
    "opens_files",
    "set_states",
    "without_state",
]

_logger = logging.getLogger("fmkit.callbacks")

Array = np.ndarray[Any, Any]
State = dict[str, Any]


# Keras's own callbacks


def _attributes(
    *names: str, settings: Iterable[str] = ()
) -> tuple[Callable[..., State], Callable[..., None]]:
    """Return how to take and put `names`, for a callback with the same `settings`."""

    def settings_of(callback: Any) -> State:
        return {name: getattr(callback, name) for name in settings}

    def get(callback: Any) -> State:
        state = {name: private.attribute_of_callback(callback, name) for name in names}
        return {**state, "settings": settings_of(callback)}

    def put(callback: Any, state: State) -> None:
        check_settings(type(callback).__name__, state, settings_of(callback))
        for name in names:
            setattr(callback, name, state[name])

    return get, put


# Where the files of loggers are, whatever `os.chdir` a callback does meanwhile.
_paths: weakref.WeakKeyDictionary[Any, Path] = weakref.WeakKeyDictionary()


def note_files(callbacks: Iterable[Any]) -> None:
    """Remember where the files of `callbacks` are, as training begins."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger):
            # Of a link, the file that it leads to: the link stays.
            _paths[callback] = Path(os.path.realpath(callback.filename))
        _appended_files.sizes(callback)


def continued_files(callbacks: Iterable[Any]) -> bool:
    """Return whether a callback appends to what was in its file before the run."""
    return any(
        callback.append
        if isinstance(callback, keras.callbacks.CSVLogger)
        else _appended_files.appends(callback)
        for callback in callbacks
    )


def opens_files(callbacks: Iterable[Any]) -> bool:
    """Return whether a callback has opened files that no other process knows."""
    return any(isinstance(each, keras.callbacks.TensorBoard) for each in callbacks)


def _get_csv(logger: Any) -> State:
    path = _paths[logger]
    # What is written to a pipe or device can't be taken back.
    regular = not path.exists() or path.is_file()
    content = path.read_bytes() if regular and path.exists() else b""
    return {"keys": logger.keys, "content": content if regular else None}


def _put_csv(logger: Any, state: State) -> None:
    """Make the file what it was, and continue at its end."""
    content = state["content"]
    logger.keys = state["keys"]
    if content is None:
        return
    if logger.csv_file and not logger.csv_file.closed:
        logger.csv_file.close()
    path = _paths[logger]
    with whole_file(path) as file:
        file.write(content)
    logger.csv_file = open(path, "a")  # noqa: SIM115 - the logger closes it
    logger.append_header = not content
    logger.writer = None  # made again, on the new file, at the next epoch's end


_TABLE = {
    **{
        kind: _attributes(*names, settings=settings)
        for kind, (names, settings) in private.CALLBACK_ATTRIBUTES.items()
    },
    keras.callbacks.CSVLogger: (_get_csv, _put_csv),
}


def _keras_type(callback: Any) -> type | None:
    return next((kind for kind in _TABLE if isinstance(callback, kind)), None)


def _by_convention(callback: Any) -> bool:
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def named(callbacks: Iterable[Any]) -> list[tuple[str, Any]]:
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
    for name, callback in named(callbacks):
        state: State = {}
        kind = _keras_type(callback)
        if kind is not None:
            state["keras"] = _TABLE[kind][0](callback)
        if _by_convention(callback):
            state["own"] = callback.get_state()
        if _appended_files.appends(callback):
            state["files"] = _appended_files.sizes(callback)
        if state:
            states[name] = state
    return states


def set_states(callbacks: Iterable[Any], states: dict[str, State]) -> list[str]:
    """Give the states back; return the names of callbacks that had none saved."""
    without = []
    for name, callback in named(callbacks):
        kind = _keras_type(callback)
        if name not in states:
            if kind is not None or _by_convention(callback):
                without.append(name)
            continue
        if kind is not None and "keras" in states[name]:
            _TABLE[kind][1](callback, states[name]["keras"])
        if _appended_files.appends(callback) and "files" in states[name]:
            _appended_files.cut_back(callback, states[name]["files"])
        if _by_convention(callback) and "own" in states[name]:
            callback.set_state(states[name]["own"])
    return without


def without_state(callbacks: Iterable[Any]) -> list[str]:
    """Name the callbacks whose attributes, if they change, are lost in a kill."""
    return [
        name
        for name, callback in named(callbacks)
        if not _by_convention(callback)
        and not hasattr(callback, "resumable_files")
        and _own_attributes(callback)
    ]


def _own_attributes(callback: Any) -> set[str]:
    """Names of the attributes that are not those of Keras's class."""
    names = set(vars(keras.callbacks.Callback()))
    for kind in type(callback).__mro__:
        if kind in _TABLE or kind in private.STATELESS_CALLBACKS:
            # What its methods name, of which the attributes are a part.
            for base in kind.__mro__:
                for method in vars(base).values():
                    code = getattr(method, "__code__", None)
                    names.update(code.co_names if code else ())
            if type(callback) is kind:
                return set()
    return set(vars(callback)) - names


def check_states(callbacks: Iterable[Any]) -> None:
    """Refuse, before training, states that no commit could hold.

    Raises:
        MissingPieceError: If a callback of Keras's lacks what its state consists of.
        TypeError: If `get_state` of a callback returns what is not allowed.
        ValueError: If it is nested too deeply.
    """
    for name, callback in named(callbacks):
        kind = _keras_type(callback)
        if kind in private.CALLBACK_ATTRIBUTES:
            _TABLE[kind][0](callback)
        try:
            state = callback.get_state() if _by_convention(callback) else {}
        except Exception as error:  # noqa: BLE001 - not every callback has one yet
            _logger.debug("%s has no state before training: %s", name, error)
            continue
        encode(state, {}, name)
