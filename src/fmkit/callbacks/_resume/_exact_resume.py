"""`ExactResume`: a training killed and started again ends with the same bits."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable
from typing import Any

import keras

from fmkit import _keras_private as private
from fmkit._checks import check_int, check_number, check_one_of, check_path, or_none
from fmkit.callbacks._resume._held import state_of
from fmkit.callbacks._resume._keeper import Keeper, Outcome

__all__ = ["ExactResume"]

_UNITS = {"step": 1.0, "epoch": 1.0, "second": 1.0, "minute": 60.0, "hour": 3600.0}


class ExactResume(keras.callbacks.Callback):
    r"""Resumes a killed run so that it ends with the same bits as one never killed.

    The same program, killed with `SIGKILL` at any instant, any number of times,
    and started again, ends with the same bits as if it had never been killed:
    weights, optimizer, averages, BatchNorm and dropout states, metrics, history,
    learning rate, random generators, and the state of the other callbacks.

        model.fit(batches, epochs=10, callbacks=[ExactResume("run", every=100)])

    The state is written to `directory` as commits: files that appear whole, by
    one rename, or not at all. `fit` finds the newest sound one and continues inside
    the epoch, at the step that was saved; no batch comes twice, none is missing. A
    run that is finished returns its history, and continues if given more epochs.

    What takes part: the data, `fmkit.data.Batches` and most others: arrays,
    `PyDataset`, PyTorch's `DataLoader`, Grain, `tf.data`; all that the model holds in
    attributes, lists and dicts (further optimizers, states of layers, generators,
    counters); callbacks that are fmkit's or Keras's own (what `CSVLogger` and
    `TensorBoard` have written ends as if never killed), or that have
    `get_state() -> dict` and `set_state(state)`, or `resumable_files() -> list` for
    files they append to. What can't be restored is named before training; with data
    that can't be started in the middle a run resumes at the start of an epoch. On a
    GPU, switch determinism on (`fmkit.enable_op_determinism()`).

    Where several processes train together (`jax.distributed` under a
    `keras.distribution`, `torch.distributed`), each gives the same arguments, and
    `every` counts steps or epochs. Each writes its part of a commit; another number of
    processes can continue from it.

    Args:
        directory: Where the commits go. One run, one directory.
        every: How often to commit: an integer counts steps (batches); `"epoch"`
            is the end of every epoch; `"5 epochs"`, `"30 seconds"`,
            `"10 minutes"`, `"200 steps"`, or a `datetime.timedelta`. The end of
            the training is always committed.
        keep: How many of the newest commits stay on disk.
        keep_best: How many commits of the best epochs are kept in addition.
        snapshot_growth: Where the optimizer keeps averages by a `PowerRule`, a
            snapshot of them stays with a commit each time their length has grown by
            this factor, for `fmkit.evaluation.synthesize`; `None` for none.
        monitor: The value in an epoch's logs that `keep_best` ranks by.
        mode: `"min"` if a lower `monitor` is better, or `"max"`.
        stop_on_signal: On `SIGTERM` or Ctrl-C, commit at the next step and end
            the training (`SystemExit(143)` or `KeyboardInterrupt`). A second
            signal ends it at once.
        background: Write to the disk beside the training. At most one commit is
            on its way; a kill meanwhile leaves the one before it.
        allow_changes: Names of settings of the program that may differ from the
            commit's, as the error message lists them: `["metrics"]` stands for all
            that begins so, `["optimizer.learning_rate"]` makes the new rate count.
        data: What knows its place in data that `fit` can't ask: an object with
            `get_state` and `set_state`, or `state_dict` and `load_state_dict`, that
            a Python generator reads from.
        strict: Refuse a commit that was written with other versions of Python, Keras,
            its backend, NumPy or fmkit, or on another processor; else warn of it. And
            one of another number of processes or devices; else say so.
        verbose: 0 is silent, 1 says where the training starts.

    Attributes:
        resumed_from: `(epoch, step)` that the last `fit` continued from, or `None`.
        finished: Whether the last `fit` found a finished run, or ended as one.

    Raises:
        ValueError: If the commits were made by another program: other layers, losses,
            metrics, arguments of `compile` and `fit`, optimizer, backend or data.
            Epochs, `verbose` and callbacks may change.
        TypeError: If the state of a callback cannot be kept.
        OSError: If the directory is in use by another live run, or cannot be read or
            written (disk full, read-only). Earlier commits stay as they are.

    Examples:
        >>> import fmkit, keras, numpy as np, tempfile
        >>> from fmkit.callbacks import ExactResume
        >>> from fmkit.data import Batches
        >>> def train(directory, epochs):
        ...     fmkit.set_random_seed(1)
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     model.compile("adam", "mse")
        ...     x = np.linspace(0, 1, 20).reshape(10, 2)
        ...     resume = ExactResume(directory, every=2, verbose=0)
        ...     model.fit(
        ...         Batches(x, x[:, 0], 4, map=None), epochs=epochs,
        ...         callbacks=[resume], verbose=0)
        ...     return resume.resumed_from, model.get_weights()[0].tobytes()
        >>> with tempfile.TemporaryDirectory() as once:
        ...     straight = train(once, 4)
        >>> with tempfile.TemporaryDirectory() as twice:
        ...     first, second = train(twice, 2), train(twice, 4)
        >>> straight[0], second[0]
        (None, (2, 0))
        >>> straight[1] == second[1]
        True
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every: int | str | datetime.timedelta = 100,
        *,
        keep: int = 2,
        keep_best: int = 0,
        snapshot_growth: float | None = 1.15,
        monitor: str = "val_loss",
        mode: str = "min",
        stop_on_signal: bool = True,
        background: bool = True,
        allow_changes: Iterable[str] = (),
        data: Any = None,
        strict: bool = False,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.directory = str(check_path("directory", directory))
        self.unit, self.every = _parse_every(every)
        self.keep = check_int("keep", keep)
        self.keep_best = check_int("keep_best", keep_best, minimum=0)
        self.snapshot_growth = or_none(
            check_number, "snapshot_growth", snapshot_growth, at_least=1
        )
        self.monitor = monitor
        self.mode = check_one_of("mode", mode, ["min", "max"])
        self.stop_on_signal = bool(stop_on_signal)
        self.background = bool(background)
        self.allow_changes = _names("allow_changes", allow_changes)
        self.data = _check_data(data)
        self.strict = bool(strict)
        self.verbose = verbose
        self._outcome = Outcome()

    @property
    def resumed_from(self) -> tuple[int, int] | None:
        """`(epoch, step)` that the last `fit` continued from, or `None`."""
        return self._outcome.resumed_from

    @property
    def finished(self) -> bool:
        """Whether the last `fit` found a finished run, or ended as one."""
        return self._outcome.finished

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Hold the directory, and put the keeper behind all other callbacks."""
        fit = private.running_fit(self)
        if fit is None:
            raise RuntimeError(
                "ExactResume works inside `model.fit`: pass it as "
                "fit(..., callbacks=[ExactResume(directory)])."
            )
        self._end_broken_fit(fit.callback_list)
        _refuse_rivals(fit.callback_list.callbacks)
        before = self._outcome
        self._outcome = Outcome(follows_a_run=before.finished and before.has_trained)
        private.put_last(fit.callback_list, Keeper(self, fit, self._outcome))

    def _end_broken_fit(self, callback_list: Any) -> None:
        """Close what a `fit` that broke off has left in a list of the user's own."""
        for each in list(callback_list.callbacks):
            if isinstance(each, Keeper) and each.settings is self:
                each.close()
                private.remove_later(callback_list, each)


def _parse_every(every: int | str | datetime.timedelta) -> tuple[str, float]:
    """Return a unit of "step", "epoch" or "second", and how many of it."""
    if isinstance(every, datetime.timedelta):
        every = f"{every.total_seconds()} seconds"
    if not isinstance(every, str):
        return "step", check_int("every", every)
    match = re.fullmatch(r"(?:([0-9.e+-]+) )?(step|epoch|second|minute|hour)s?", every)
    try:
        amount = check_number("every", float(match[1] or 1), above=0)  # type: ignore[index]
    except (TypeError, ValueError):
        raise ValueError(
            f"`every` must be a number of steps, 'epoch', or a text such as "
            f"'5 epochs', '30 seconds' or '10 minutes', got every={every!r}."
        ) from None
    unit = match[2]  # type: ignore[index]
    kind = unit if unit in ("step", "epoch") else "second"
    return kind, amount * _UNITS[unit]


def _check_data(data: Any) -> Any:
    if data is None or state_of(data) is not None:
        return data
    raise TypeError(
        "`data` must know its place: get_state() and set_state(state), or "
        f"state_dict() and load_state_dict(state). {type(data).__name__} has neither. "
        "Leave it out where `fit` is given the data themselves."
    )


def _names(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return names as a tuple; one text would be taken letter by letter."""
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"`{argument}` must be a list of names such as 'metrics' or "
                f"'optimizer.learning_rate', got {name!r} in it."
            )
    return tuple(names)


def _refuse_rivals(callbacks: list[Any]) -> None:
    rivals = [
        type(c).__name__
        for c in callbacks
        if isinstance(c, (keras.callbacks.BackupAndRestore, ExactResume, Keeper))
    ]
    if len(rivals) > 1:
        raise ValueError(
            f"Only one callback may decide where `fit` starts, got {rivals}. "
            "Keep only one ExactResume."
        )
