"""Averages into the weights and raw weights back, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from fmkit import _keras_private as private

if TYPE_CHECKING:
    from fmkit.optimizers._exponential_moving_average import ExponentialMovingAverage


class Swap:
    """Raw weights held aside while a model holds their averages.

    Bits are copied out and back. Exchanging them by adding and subtracting would round:
    1e-6 beside 1e3 would become 0, and 3e38 beside 3e38 nan.
    """

    def __init__(self) -> None:
        self.aside: list[tuple[Any, Any]] | None = None

    def put_in(self, pairs: list[tuple[Any, Any]]) -> None:
        if self.aside is None:
            self.aside = [
                (part, ops.copy(part)) for weight, _ in pairs for part in parts(weight)
            ]
            for weight, average in pairs:
                weight.assign(ops.cast(ops.copy(average), weight.dtype))

    def hold(self, variables: list[Any]) -> None:
        """Hold the values of further variables aside, until `take_out`."""
        self.aside = (self.aside or []) + [
            (part, ops.copy(part)) for each in variables for part in parts(each)
        ]

    def take_out(self) -> None:
        """Give back all that is held aside, and only then heed Ctrl-C."""
        interruption: BaseException | None = None
        while self.aside is not None:
            try:
                for part, value in self.aside:
                    part.assign(value)
                self.aside = None
            except (KeyboardInterrupt, SystemExit) as error:
                interruption = error
        if interruption is not None:
            raise interruption


def parts(variable: Any) -> list[Any]:
    """Return what `variable` consists of: a part for each replica, or itself.

    Replicas of `tf.distribute` may differ, as BatchNorm's statistics do; read or
    written as a whole they would become one.
    """
    replicas = getattr(value_of(variable), "values", None)
    return list(replicas) if isinstance(replicas, tuple) else [variable]


def value_of(variable: Any) -> Any:
    """Return what a Keras variable holds; a plain `tf.Variable` is its own value."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def path_of(variable: Any) -> str:
    """Return the path of a Keras variable, or the name of a plain `tf.Variable`."""
    return str(getattr(variable, "path", variable.name))


@contextlib.contextmanager
def swapped(
    model: keras.Model, optimizers: list[ExponentialMovingAverage]
) -> Iterator[keras.Model]:
    sync(model)
    _check_owner(model, optimizers)
    outermost = [each for each in optimizers if each._swap.aside is None]
    steps = _total_steps(optimizers)
    try:
        put_in_averages(outermost)
        yield model
    finally:
        sync(model)
        take_out_averages(outermost)
    if outermost and _total_steps(optimizers) != steps:
        raise RuntimeError(
            "The model was trained inside `with averaged(model)`. Those steps are "
            "undone, since the block gives back the weights it found; call `fit` "
            "outside the block."
        )


@contextlib.contextmanager
def raw_weights(model: keras.Model) -> Iterator[keras.Model]:
    """Let `model` hold its raw weights for the length of a block.

    Within `averaged` the averages are back in their place afterwards; elsewhere
    nothing is to be done.
    """
    swaps = [each._swap for each in walk(model.optimizer) if hasattr(each, "_swap")]
    held = [pair for swap in swaps for pair in swap.aside or []]
    if held:
        sync(model)
    present = [(part, ops.copy(part)) for part, _ in held]
    try:
        for part, value in held:
            # A copy: what is held aside must outlive the block.
            part.assign(ops.copy(value))
        yield model
    finally:
        for part, value in present:
            part.assign(value)


def put_in_averages(optimizers: list[ExponentialMovingAverage]) -> None:
    """Put the averages, where there are any yet, into the weights."""
    for each in optimizers:
        if each.has_averages:
            each._swap.put_in(each.averages)


def take_out_averages(optimizers: list[ExponentialMovingAverage]) -> None:
    """Give back every weight that `put_in_averages` holds aside, to the bit."""
    for each in optimizers:
        each._swap.take_out()


def holds_averages(optimizers: list[ExponentialMovingAverage]) -> bool:
    """Whether the weights are averages at present."""
    return any(each._swap.aside is not None for each in optimizers)


def sync(model: keras.Model) -> None:
    """Let the variables of `model` hold its state, also within `fit` on JAX.

    Keras's JAX trainer keeps the state outside of the variables during an epoch; once
    synchronised it reads them again before the next step.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def _total_steps(optimizers: list[ExponentialMovingAverage]) -> int:
    return sum(each.updates for each in optimizers)


def _check_owner(
    model: keras.Model, optimizers: list[ExponentialMovingAverage]
) -> None:
    if not hasattr(model, "trainable_variables"):
        raise TypeError(
            "`model` must be the model that this optimizer trains, got "
            f"{model!r} ({type(model).__name__})."
        )
    if not all(each.built for each in optimizers):
        return
    known = {id(v) for each in optimizers for v in private.trainable_variables(each)}
    strange = [path_of(v) for v in model.trainable_variables if id(v) not in known]
    if strange:
        raise ValueError(
            f"The averages are of another network than model {model.name!r}: there is "
            f"none of {strange[:3]}. Give the model whose `fit` used this optimizer, "
            "and compile again after adding layers."
        )


def walk(optimizer: Any) -> Iterator[Any]:
    """Yield `optimizer` and all optimizers inside it."""
    if optimizer is None:
        return
    yield optimizer
    if hasattr(optimizer, "inner_optimizer"):
        yield from walk(optimizer.inner_optimizer)
    for part in getattr(optimizer, "optimizers", ()):
        yield from walk(part)
