"""The one place where fmkit touches what Keras keeps private.

Read and tried on the versions in `CHECKED_ON`; `tests/test_keras_private.py`
fails with the name of the missing piece when another version moves it. What is
used, and why nothing public does:

- `DataAdapter`: `fit` takes an instance of it as `x` and uses it as it is. It is
  the only way to give `fit` data of one's own at full speed on every backend.
- `EpochIterator.__iter__`, which `evaluate` and `predict` loop over: Keras tells
  callbacks nothing of an exception, but what stands around the loop can clean up.
- `EpochIterator`: it numbers the steps of an epoch from 0. A resumed epoch must
  be numbered from the step it was killed at.
- The frame of the running `fit`: an adapter is not told whether it trains or
  predicts, nor which `class_weight` was given; a callback is not told which data
  `fit` reads, nor in which epochs it validates.
- `model._compile_metrics`, `._compile_loss`, `metric._direction`: Keras's own rule for
  `mode="auto"` reads them, but knows no name that begins with an output's.
- `model._initial_epoch`, as Keras's own `BackupAndRestore` sets it.
- `model._symbolic_build`: metrics and optimizer get their variables before the
  first step, so that saved values can be put into them.
- `optimizer._learning_rate`, `._iterations`: `learning_rate` is that of the step to
  come.
- `optimizer._trainable_variables`: the weights an optimizer was built for, in order;
  the public `variables` are its own.
- `model._flatten_layers`: `model.layers` leaves out layers inside layers of one's own.
- `model._compile_config`: the arguments of `compile` as they were given; the public
  `get_compile_config` names a function, and says nothing of what it does.
- `in_stateless_scope`: within one, a variable may not be changed in place.
- The global seed generator, which feeds every unseeded `keras.random` call.
- `GridSearchOracle._ordered_ids`, `._populate_next`, `._compare` of Keras Tuner 1.4.8:
  its place on the grid, which its `get_state` leaves out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.random.seed_generator import (
    GLOBAL_SEED_GENERATOR,
    global_seed_generator,
)
from keras.src.trainers.data_adapters.data_adapter import DataAdapter
from keras.src.trainers.epoch_iterator import EpochIterator
from keras.src.utils.io_utils import print_msg

__all__ = [
    "CHECKED_ON",
    "DataAdapter",
    "EpochIterator",
    "FitCall",
    "Request",
    "all_layers",
    "around_steps",
    "build_variables",
    "calling_request",
    "compile_arguments",
    "enumerate_steps_with",
    "forget_global_seed",
    "global_seed_variable",
    "in_stateless_scope",
    "is_in_fit",
    "is_running",
    "metric_directions",
    "print_msg",
    "rate_of_last_step",
    "restore_grid",
    "running_fit",
    "set_initial_epoch",
    "trainable_variables",
]

CHECKED_ON = ("3.15.0", "3.15.1")

# Between an adapter and the `fit` that asks it stand EpochIterator.__init__, the
# backend's subclass of it, and the wrappers around `fit`. Callbacks are a little
# further down.
_DEPTH = 12


@dataclasses.dataclass(frozen=True)
class Request:
    """What a call of `fit`, `evaluate` or `predict` asks of its data.

    Attributes:
        model: Whose call it is; `None` outside of them.
        epoch_iterator: Keras's `EpochIterator` for this call.
        method: `"fit"`, `"evaluate"`, `"predict"`, or `None` outside of them.
        training: Whether these are the batches that weights are trained on.
        initial_epoch: `fit`'s argument; 0 elsewhere.
        arguments: What was passed beside the data: `y`, `sample_weight`,
            `batch_size`, `steps_per_epoch`, `class_weight`.
    """

    model: Any
    epoch_iterator: Any
    method: str | None
    training: bool
    initial_epoch: int
    arguments: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FitCall:
    """The `fit` that runs now.

    Attributes:
        epoch_iterator: Keras's `EpochIterator` of the training data.
        callback_list: Its callbacks.
        initial_epoch: The argument.
        epochs: The argument.
        arguments: Other arguments, by name. What `validation_split` cuts off stands
            under `validation_data`, and is no more in `x` and `y`.
    """

    epoch_iterator: Any
    callback_list: Any
    initial_epoch: int
    epochs: int
    arguments: dict[str, Any]

    @property
    def validation_freq(self) -> int | list[int] | None:
        """The argument, or `None` if there is nothing to validate on."""
        validates = self.arguments["validation_data"] is not None
        return self.arguments["validation_freq"] if validates else None

    def validates_after(self, epoch: int) -> bool:
        """Tell whether a later epoch than `epoch`, counted from 0, validates."""
        every = self.validation_freq
        if every is None:
            return False
        if isinstance(every, int):
            return self.epochs // every > (epoch + 1) // every
        return any(epoch + 1 < number <= self.epochs for number in every)


_ARGUMENTS = (
    "x",
    "y",
    "sample_weight",
    "batch_size",
    "shuffle",
    "class_weight",
    "validation_data",
    "validation_split",
    "validation_steps",
    "validation_batch_size",
    "validation_freq",
)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_DEPTH):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def calling_request() -> Request | None:
    """Read the `EpochIterator` that is being made by the caller, if any."""
    making = None
    for frame in _frames():
        values = frame.f_locals
        if making is None:
            if frame.f_code is EpochIterator.__init__.__code__:
                making = values
        elif (
            frame.f_code.co_name in ("fit", "evaluate", "predict")
            and "epoch_iterator" in frame.f_code.co_varnames
        ):
            return _request(making, frame)
    return None if making is None else _request(making, None)


def _request(making: dict[str, Any], trainer: FrameType | None) -> Request:
    method = trainer.f_code.co_name if trainer else None
    values = trainer.f_locals if trainer else {}
    names = ("y", "sample_weight", "batch_size", "steps_per_epoch", "class_weight")
    return Request(
        model=values.get("self"),
        epoch_iterator=making["self"],
        method=method,
        # `fit` makes the iterator of the training data first, and that of the
        # validation data when its own is already there.
        training=method == "fit" and "epoch_iterator" not in values,
        initial_epoch=int(values.get("initial_epoch") or 0),
        arguments={name: making[name] for name in names},
    )


def enumerate_steps_with(
    epoch_iterator: Any,
    start_epoch: Callable[[], tuple[int, int]],
    iterate: Callable[[], Iterator[Any]] | None = None,
) -> None:
    """Let `start_epoch() -> (first step, end)` number the steps of each epoch.

    `iterate()` is what the train function gets to read from, in place of the
    backend's own iterator.

    Keras's own enumeration starts at 0, and makes one more iterator at the end of
    every epoch that it throws away unused.
    """

    def enumerate_steps() -> Iterator[tuple[int, int, Any]]:
        first, end = start_epoch()
        iterator = iterate() if iterate else iter(epoch_iterator._get_iterator())
        stride = epoch_iterator.steps_per_execution
        for step in range(first, end, stride):
            yield step, min(step + stride, end) - 1, iterator

    epoch_iterator._enumerate_iterator = enumerate_steps


def running_fit(model: Any) -> FitCall | None:
    """Find the `fit` of `model` that the calling callback runs in."""
    for frame in _frames():
        values = frame.f_locals
        if (
            frame.f_code.co_name == "fit"
            and values.get("self") is model
            and "epoch_iterator" in values
        ):
            return FitCall(
                epoch_iterator=values["epoch_iterator"],
                callback_list=values["callbacks"],
                initial_epoch=int(values["initial_epoch"]),
                epochs=int(values["epochs"]),
                arguments={name: values.get(name) for name in _ARGUMENTS},
            )
    return None


def is_running(callback_list: Any) -> bool:
    """Tell whether the `fit` with this list of callbacks runs in any thread."""
    frames = sys._current_frames().values()
    return any(is_in_fit(frame, callback_list) for frame in frames)


def is_in_fit(frame: FrameType | None, callback_list: Any) -> bool:
    """Tell whether the `fit` with this list of callbacks is below `frame`."""
    while frame is not None and callback_list is not None:
        if (
            frame.f_code.co_name == "fit"
            and frame.f_locals.get("callbacks") is callback_list
        ):
            return True
        frame = frame.f_back
    return False


def set_initial_epoch(model: Any, epoch: int | None) -> None:
    """Set the epoch that the running `fit` starts from; `None` for its argument."""
    model._initial_epoch = epoch


def build_variables(model: Any, peek: Callable[[], Any]) -> None:
    """Make every variable of model, metrics and optimizer, without a step.

    `peek` returns a batch; it is asked only if something needs its shapes.
    """
    if isinstance(model, keras.Sequential) and not model.built:
        # As its first call does. Keras's symbolic build can't make the states of
        # stateful recurrent layers.
        model.build(tuple(keras.tree.flatten(peek())[0].shape))

    def steps() -> Iterator[tuple[int, int, list[Any]]]:
        yield 0, 0, [keras.tree.map_structure(_strings_as_tensors, peek())]

    model._symbolic_build(iterator=steps())


def _strings_as_tensors(leaf: Any) -> Any:
    """Return a tensor for NumPy's strings, whose dtype, as "<U21", Keras refuses."""
    kind = getattr(getattr(leaf, "dtype", None), "kind", None)
    return keras.ops.convert_to_tensor(leaf) if kind in ("U", "S") else leaf


def around_steps(
    model: Any, context: Callable[[], contextlib.AbstractContextManager[Any]]
) -> bool:
    """Let the steps of the call of `model` that now begins run within `context()`.

    To be called in `on_test_begin` or `on_predict_begin`. However the steps end, also
    by an exception or Ctrl-C, the context is left before the call is.

    Returns:
        Whether there is such a call.
    """
    for frame in _frames():
        values = frame.f_locals
        if (
            frame.f_code.co_name in ("evaluate", "predict")
            and values.get("self") is model
            and "epoch_iterator" in values
        ):
            _put_around(values["epoch_iterator"], context)
            return True
    return False


def _put_around(
    epoch_iterator: Any, context: Callable[[], contextlib.AbstractContextManager[Any]]
) -> None:
    kind = type(epoch_iterator)

    class Around(kind):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Iterator[Any]:
            # For this call only: `fit` keeps its iterator for the next validation.
            self.__class__ = kind
            return _within(context, self)

    epoch_iterator.__class__ = Around


def _within(
    context: Callable[[], contextlib.AbstractContextManager[Any]], steps: Any
) -> Iterator[Any]:
    """Yield the steps of a loop, and leave the context when the loop is left.

    Only the loop refers to this generator. Python drops it as soon as the loop ends,
    breaks or raises, even while a traceback keeps the frame, and so closes it.
    """
    with context():
        yield from steps


def rate_of_last_step(optimizer: Any) -> float:
    """Return the learning rate that the latest step of `optimizer` took."""
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        # The raw count: with gradient accumulation schedules see every micro-step.
        step = int(keras.ops.convert_to_numpy(optimizer._iterations))
        rate = rate(max(step - 1, 0))
    else:
        rate = optimizer.learning_rate
    return float(keras.ops.convert_to_numpy(rate))


def compile_arguments(model: Any) -> dict[str, Any]:
    """Return the arguments that `compile` was given; none if it is a user's own."""
    config = getattr(model, "_compile_config", None)
    return dict(config.config) if config is not None else {}


def all_layers(model: Any) -> list[Any]:
    """Return every layer of `model`, at any depth, each once."""
    return list(model._flatten_layers())


def metric_directions(model: Any) -> dict[str, str]:
    """Return "up" or "down" for each name in the logs whose metric says which.

    The names are those that Keras gives the metrics of `compile`, with the output's
    name before them if there are several outputs, and the losses of the outputs.
    """
    compiled: Any = getattr(model, "_compile_metrics", None)
    losses = getattr(getattr(model, "_compile_loss", None), "metrics", [])
    metrics: dict[str, Any] = {}
    for metric in getattr(model, "metrics", []):
        if metric is not compiled:
            metrics[metric.name] = metric
        elif metric.built:
            # One result for each metric in the same order, unless two share a name.
            names, parts = list(metric.result()), metric.metrics
            if len(names) == len(parts):
                metrics.update(zip(names, parts, strict=True))
    directions = {name: getattr(m, "_direction", None) for name, m in metrics.items()}
    directions.update((metric.name, "down") for metric in losses)
    return {name: direction for name, direction in directions.items() if direction}


def global_seed_variable(*, create: bool = False) -> Any | None:
    """Return the variable of Keras's global seed generator, if there is one."""
    if global_state.get_global_attribute(GLOBAL_SEED_GENERATOR) is None and not create:
        return None
    return global_seed_generator().state


def forget_global_seed() -> None:
    """Let the global seed generator be made anew when it is next needed."""
    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)


def trainable_variables(optimizer: Any) -> list[Any]:
    """Return the weights that an optimizer was built for, in the order of `build`."""
    variables: list[Any] = optimizer._trainable_variables
    return variables


def restore_grid(oracle: Any) -> None:
    """Give a reloaded `GridSearchOracle` its place on the grid, from its trials.

    They stand in a linked list in the order of the grid. Each trial is asked once more
    for the next combination; what was tried already is passed over.
    """
    trials = oracle.trials
    in_order = sorted(
        trials,
        key=functools.cmp_to_key(
            lambda a, b: oracle._compare(
                trials[a].hyperparameters.values, trials[b].hyperparameters.values
            )
        ),
    )
    oracle._ordered_ids = type(oracle._ordered_ids)()
    for trial_id in in_order:
        oracle._ordered_ids.insert(trial_id)
    oracle._populate_next = in_order
