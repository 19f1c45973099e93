"""Files that callbacks append to: a resume cuts them back to where the commit was.

The convention: a callback that appends to files of its own has

    resumable_files() -> list of paths

It is called at each commit, and must write out what the callback still holds back. The
commit has the length of each file; after a kill, what was appended later is cut off.
"""

from __future__ import annotations

import os
import warnings
import weakref
from pathlib import Path
from typing import Any

import keras

from fmkit import _keras_private as private

__all__ = ["appends", "cut_back", "sizes"]

# Where the files are, whatever `os.chdir` a callback does meanwhile; by the names that
# the callback gives them, which are those of a run that was moved elsewhere too.
_paths: weakref.WeakKeyDictionary[Any, dict[str, Path]] = weakref.WeakKeyDictionary()
# What earlier processes of the run have written, in files that nobody appends to now.
_earlier: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()


def appends(callback: Any) -> bool:
    """Return whether `callback` says which files it appends to, or Keras does."""
    board = isinstance(callback, keras.callbacks.TensorBoard)
    return board or hasattr(callback, "resumable_files")


def sizes(callback: Any) -> dict[str, int]:
    """Return the length of each file, in bytes, by the callback's name of it."""
    files = _named_files(callback)
    if isinstance(callback, keras.callbacks.TensorBoard):
        files |= private.event_files(callback)
    found = {
        name: path.stat().st_size if path.exists() else 0
        for name, path in files.items()
        # What is written to a pipe or device can't be taken back.
        if path.is_file() or not path.exists()
    }
    return {**_earlier.get(callback, {}), **found}


def cut_back(callback: Any, lengths: dict[str, int]) -> None:
    """Make each file as long as it was, and let `callback` go on at its end."""
    files = _named_files(callback)
    if isinstance(callback, keras.callbacks.TensorBoard):
        private.begin_event_files(callback, keep=lengths)
        events = {name: size for name, size in lengths.items() if name not in files}
        _earlier[callback] = events
        files |= {name: Path(callback.log_dir, name) for name in events}
    for name, path in files.items():
        _cut(type(callback).__name__, path, lengths.get(name))


def _named_files(callback: Any) -> dict[str, Path]:
    if not hasattr(callback, "resumable_files"):
        return {}
    known = _paths.setdefault(callback, {})
    names = _names(type(callback).__name__, callback.resumable_files())
    for name in names:
        # Of a link, the file that it leads to: the link stays.
        known.setdefault(name, Path(os.path.realpath(name)))
    return {name: known[name] for name in names}


def _names(callback: str, paths: Any) -> list[str]:
    kinds = (str, os.PathLike)
    if not isinstance(paths, (list, tuple)) or not all(
        isinstance(path, kinds) for path in paths
    ):
        raise TypeError(
            f"`resumable_files` of {callback} must return a list of paths, the files "
            f"that it appends to, got {paths!r}. Write: return [self.path]"
        )
    return [str(os.fspath(path)) for path in paths]


def _cut(callback: str, path: Path, length: int | None) -> None:
    found = path.stat().st_size if path.is_file() else 0
    if length is None:
        if found:
            warnings.warn(
                f"{callback} appends to {path}, which the commit doesn't know: it is "
                "left as it is. If a killed process of this run has written there, "
                "its lines come twice.",
                stacklevel=2,
            )
    elif found < length:
        warnings.warn(
            f"{callback} had written {length} bytes to {path} at the commit, and "
            f"{found} are there: the rest was lost, in a power failure or by another "
            "program. The training continues correctly, but the file has a gap.",
            stacklevel=2,
        )
    elif found > length:
        os.truncate(path, length)
