"""`Fingerprint`: a digest of all that each step leaves, to find where two runs part."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from typing import Any, BinaryIO

import keras
import numpy as np

from fmkit import _keras_private as private
from fmkit._checks import check_int, check_path
from fmkit._commits import encode, group_variables
from fmkit._describe import digest_of_arrays, without_numbers
from fmkit._files import open_regular, sync_directory
from fmkit._generators import random_state
from fmkit._job import current_job
from fmkit.callbacks._batch_counter import BatchCounter
from fmkit.callbacks._batches_seen import BatchesSeen, digest_of_batches
from fmkit.callbacks._restored import Restored
from fmkit.callbacks._resume._training_state import arrays_of
from fmkit.callbacks._saved_settings import check_settings

__all__ = ["Fingerprint"]

HEADER = {"format": "fmkit fingerprint", "version": 1}


class Fingerprint(keras.callbacks.Callback):
    """Writes a digest of the whole training state at every step, to compare two runs.

    One line of JSON per step, with digests (BLAKE2b) of the weights, the optimizer, the
    metrics, the random generators and the batch; and short ones of each variable, so
    that the first variable that differs can be named. Equal bits give equal digests in
    every process. `python -m fmkit.compare a.jsonl b.jsonl`, or
    `fmkit.compare.compare_runs`, finds the first step that differs.

    The first line is of the state before the first step. With `ExactResume`, a run that
    was killed and resumed leaves the same file as one that was not. The training itself
    is the same as without this callback, bit for bit; it waits at each step for Keras's
    logs and, every `every` steps, until the variables are read and digested: that takes
    a millisecond or more for each of their megabytes.

    The batch is `null` where no callback can see it: in the one program of a
    `FusedModel`, with several replicas on TensorFlow, and where JAX has parts of it in
    other processes. If `steps_per_execution` is above 1 there is one line per
    execution. Of several processes that train together the first one writes.

    Args:
        file: The file, which a new run overwrites.
        every: Steps from one line to the next, counted across epochs.

    Raises:
        TypeError: If `file` is not a path or `every` not an integer.
        ValueError: If `every` is less than 1.
        OSError: If the file can't be written, or something else is in its place.

    Examples:
        >>> import fmkit, keras, numpy as np, tempfile
        >>> from fmkit.callbacks import Fingerprint
        >>> from fmkit.compare import compare_runs
        >>> def train(file, seed):
        ...     fmkit.set_random_seed(seed)
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     model.compile("sgd", "mse")
        ...     x = np.linspace(0, 1, 16).reshape(8, 2)
        ...     model.fit(x, x[:, :1], 4, callbacks=[Fingerprint(file)], verbose=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train(f"{folder}/a", seed=1)
        ...     train(f"{folder}/b", seed=2)
        ...     found = compare_runs(f"{folder}/a", f"{folder}/b")
        >>> found.epoch, found.step, found.parts
        (0, 0, ('generators', 'weights'))
    """

    def __init__(self, file: str | os.PathLike[str], every: int = 1) -> None:
        super().__init__()
        self.file = check_path("file", file)
        self.every = check_int("every", every)
        self._restored = Restored()
        self._reset()

    def _reset(self) -> None:
        self._counter = BatchCounter(self.every)
        self._seen = BatchesSeen()
        self._lines = 0
        # Where they end in the file; what is behind is of a run that was killed. `None`
        # if that must be found. (It is no part of the state: names of variables are
        # longer in a process that has made many.)
        self._end: int | None = 0
        self._names = ""
        self._epoch = self._first = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begin a new file, unless `set_state` has restored this run; watch batches."""
        if not self._restored.take(self):
            self._reset()
        self._seen = BatchesSeen()
        fit = private.running_fit(self)
        if fit is not None:
            private.wrap_batches(fit.epoch_iterator, self._seen.wrap)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to count the epoch's steps."""
        self._epoch = epoch
        self._counter.begin_epoch()

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Write the line of the state before the first step."""
        self._first = batch
        if not self._lines:
            self._write(batch, None)

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Write the line of a step."""
        seen = self._seen.take(batch - self._first + 1)
        if self._counter.is_due(batch, self.params):
            self._write(self._counter.last + 1, digest_of_batches(seen))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Let go of the batches."""
        self._seen = BatchesSeen()

    def _write(self, step: int, batch: str | None) -> None:
        """Write the state after `step` steps of the epoch."""
        model: Any = self.model  # on JAX this synchronises
        weights, slots, metrics = group_variables(model)
        if slots and not model.optimizer.built:
            slots = []  # TensorFlow makes the others in the first step
        groups = {"weights": weights, "optimizer": slots, "metrics": metrics}
        digests = {name: _digests(group) for name, group in groups.items()}
        line = {
            "epoch": self._epoch,
            "step": step,
            **{name: _of_all(each) for name, each in digests.items()},
            "generators": _digest_of_generators(),
            "batch": batch,
            "variables": [short[:8] for each in digests.values() for short in each],
        }
        paths = {name: [v.path for v in group] for name, group in groups.items()}
        if current_job().index == 0:
            self._append([*self._header(paths), line])

    def _header(self, paths: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Return the lines that say what the next ones are of, if that is new."""
        # Keras numbers names within a process, so the raw ones are no sign.
        plain = [without_numbers(path) for group in paths.values() for path in group]
        names = _of_all(plain) or ""
        if names == self._names and self._lines:
            return []
        self._names = names
        return [*([] if self._lines else [HEADER]), {"names": paths}]

    def _append(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(f"{json.dumps(each, separators=(',', ':'))}\n" for each in lines)
        with open(open_regular(self.file, os.O_RDWR | os.O_CREAT), "r+b") as file:
            end = _end_of(file, self._lines) if self._end is None else self._end
            if end is None or os.fstat(file.fileno()).st_size < end:
                raise OSError(
                    f"{self.file} lacks lines that this run has written: it was "
                    "removed or cut short. Put it back, or begin a new run: with "
                    "`ExactResume`, in another directory."
                )
            file.truncate(end)
            file.seek(end)
            file.write(text.encode())
        self._end, self._lines = end + len(text.encode()), self._lines + len(lines)

    def get_state(self) -> dict[str, Any]:
        """Return what an exact resume must carry; all lines are on the disk by then."""
        if self._lines and current_job().index == 0:
            with contextlib.suppress(FileNotFoundError):
                descriptor = open_regular(self.file, os.O_RDWR)
                os.fsync(descriptor)
                os.close(descriptor)
                sync_directory(self.file.parent)
        return {
            "settings": {"every": self.every},
            "lines": self._lines,
            "names": self._names,
            **self._counter.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`: later lines of the file are cut off.

        Raises:
            ValueError: If the state was saved with a different `every`.
        """
        check_settings(type(self).__name__, state, {"every": self.every})
        self._restored.note()
        self._lines, self._end = int(state["lines"]), None
        self._names = str(state["names"])
        self._counter.set_state(state)


def _end_of(file: BinaryIO, lines: int) -> int | None:
    """Return where the first `lines` lines end; `None` if there are fewer."""
    lengths = [len(line) for line in itertools.islice(file, lines)]
    return sum(lengths) if len(lengths) == lines else None


def _digests(variables: Iterable[Any]) -> list[str]:
    return [digest_of_arrays(arrays_of(each), whole=True) for each in variables]


def _of_all(digests: Iterable[str]) -> str | None:
    """Return one digest for several; `None` if there are none."""
    text = " ".join(digests)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest() if text else None


def _digest_of_generators() -> str:
    arrays: dict[str, Any] = {}
    plain = json.dumps(encode(random_state(), arrays, "generators"))
    arrays["plain"] = np.frombuffer(plain.encode(), np.uint8)
    return digest_of_arrays(arrays.values(), whole=True)[:16]
