"""The event files of Keras's `TensorBoard`: which they are, and new ones after them."""

from __future__ import annotations

import os
import re
import socket
import time
import weakref
from collections.abc import Container
from pathlib import Path
from typing import Any

from fmkit._keras_private._callbacks import attribute_of_callback
from fmkit._keras_private._calls import running_fit

__all__ = ["begin_event_files", "event_files"]

# A writer doesn't tell its file. But the name of the file has when it was made, in
# seconds, on which host and by which process.
_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.(.+)\.(\d+)\.\d+\.v2")
# No file of this process that `TensorBoard` has made in a `fit` is older.
_STARTED = int(time.time())
# Each callback with its writers. Those of a `fit` that broke off live on in a
# traceback, and would write what they hold back into a file that is shorter by then.
_boards: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()


def event_files(board: Any) -> dict[str, Path]:
    """Write out all events, and return the files of this process.

    By their places in `log_dir`. The writers that will be needed are made now: no file
    appears between two commits.
    """
    attribute_of_callback(board, "_train_writer")
    fit = running_fit(board)
    if fit is not None and fit.validation_freq is not None:
        attribute_of_callback(board, "_val_writer")
    known = _boards.setdefault(board, [])
    for writer in attribute_of_callback(board, "_writers").values():
        writer.flush()
        if writer not in known:
            known.append(writer)
    return _files_of_this_process(board)


def begin_event_files(board: Any, keep: Container[str]) -> None:
    """Let `board` go on in new event files, as if it had written none in this process.

    Those not in `keep` that this process has made are deleted: what is in them is what
    `TensorBoard` writes at the start of a training, and another process has written it.
    """
    # As the callback itself changes the writer of the running step. The stack is empty
    # if it writes at the ends of epochs only.
    active = bool(attribute_of_callback(board, "_prev_summary_state"))
    others = [each for each in _boards if each is not board]
    for each in (board, *reversed(others)):  # each found that of the one before
        if each.log_dir == board.log_dir:
            _end_writers(each)
    board._writers = {}
    for name, path in _files_of_this_process(board).items():
        if name not in keep:
            path.unlink()
    if active:
        writer = attribute_of_callback(board, "_train_writer")
        step = attribute_of_callback(board, "_global_train_batch")
        attribute_of_callback(board, "_push_writer")(writer, step)


def _end_writers(board: Any) -> None:
    while attribute_of_callback(board, "_prev_summary_state"):
        attribute_of_callback(board, "_pop_writer")()
    attribute_of_callback(board, "_close_writers")()
    for writer in _boards.pop(board, []):
        writer.close()


def _files_of_this_process(board: Any) -> dict[str, Path]:
    found = {}
    for part in ("train", "validation"):
        for path in sorted(Path(board.log_dir, part).glob("events.out.tfevents.*")):
            name = _NAME.fullmatch(path.name)
            if name is None or int(name[1]) < _STARTED:
                continue
            if (name[2], name[3]) == (socket.gethostname(), str(os.getpid())):
                found[f"{part}/{path.name}"] = path
    return found
