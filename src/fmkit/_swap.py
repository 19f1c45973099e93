"""Averages in the place of the weights for a while, and the weights back bit for bit.

What keeps averages is described by `Averages`, so that optimizers, callbacks and resume
need to know only this module. It makes no averages itself.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol

import keras
from keras import ops

from fmkit import _keras_private as private
from fmkit._checks import did_you_mean

__all__ = [
    "Averages",
    "Keeper",
    "Power",
    "Swap",
    "active_swaps",
    "evaluation_point",
    "find_averages",
    "find_keepers",
    "keeper_of",
    "keepers_in",
    "path_of",
    "raw_weights",
    "replicas_of",
    "select",
    "swapped",
    "value_of",
    "walk",
]


class Power(NamedTuple):
    """What is known of a power-function average."""

    gamma: float
    length: int  # its updates so far
    start_step: int
    update_interval: int


class Averages(Protocol):
    """One average of each weight that an optimizer trains.

    Those of one optimizer share its `swap`, so the weights hold one of them at a time.
    """

    @property
    def swap(self) -> Swap:
        """The optimizer's weights, and what they were while they hold averages."""

    @property
    def averages(self) -> list[tuple[Any, Any]]:
        """Pairs of a model's variable and the variable that holds its average."""

    @property
    def has_averages(self) -> bool:
        """Whether at least one averaging update has been applied."""

    @property
    def updates(self) -> int:
        """Updates of the weights so far."""

    @property
    def power(self) -> Power | None:
        """Exponent, length and timing of a power-function average; of others `None`."""

    def decay_at(self, update: int) -> float:
        """Return the decay that the given update of the weights applied."""


class Keeper(Protocol):
    """What keeps averages: an optimizer, or what stands for one of Keras's."""

    @property
    def swap(self) -> Swap:
        """The swap of its averages."""

    @property
    def kept(self) -> Mapping[str, Averages]:
        """The averages by name; the first is used where none is named."""


class Swap:
    """The weights of one optimizer, and a copy of them while they hold averages.

    Bits are copied out and back. Exchanging them by adding and subtracting would round:
    1e-6 beside 1e3 would become 0, and 3e38 beside 3e38 nan.

    Attributes:
        weights: The variables that the optimizer trains; `None` until it is built.
        saved: Pairs of a variable, or its part on one replica, and its raw value;
            `None` while the weights are raw.
    """

    def __init__(self) -> None:
        self.weights: list[Any] | None = None
        self.saved: list[tuple[Any, Any]] | None = None

    def put_in(self, pairs: list[tuple[Any, Any]]) -> None:
        """Assign averages, given as pairs of a weight and its average, to weights."""
        if self.saved is None:
            self.saved = _copies(weight for weight, _ in pairs)
            for weight, average in pairs:
                weight.assign(ops.cast(ops.copy(average), weight.dtype))

    def save(self, variables: list[Any]) -> None:
        """Save further variables, which `take_out` restores with the weights."""
        self.saved = [*(self.saved or []), *_copies(variables)]

    def take_out(self) -> None:
        """Restore all that is saved; Ctrl-C takes effect only afterwards."""
        interruption: BaseException | None = None
        while self.saved is not None:
            try:
                for part, value in self.saved:
                    part.assign(value)
                self.saved = None
            except (KeyboardInterrupt, SystemExit) as error:
                interruption = error
        if interruption is not None:
            raise interruption


# Finding averages


def walk(optimizer: Any) -> Iterator[Any]:
    """Yield `optimizer` and all optimizers inside it."""
    if optimizer is None:
        return
    yield optimizer
    if hasattr(optimizer, "inner_optimizer"):
        yield from walk(optimizer.inner_optimizer)
    for part in getattr(optimizer, "optimizers", ()):
        yield from walk(part)


def leaves(optimizer: Any) -> list[Any]:
    """Return the optimizers inside `optimizer` that update weights themselves."""
    return [
        part
        for part in walk(optimizer)
        if not hasattr(part, "inner_optimizer") and not hasattr(part, "optimizers")
    ]


def keeper_of(optimizer: Any) -> Keeper | None:
    """Return what keeps averages in this optimizer itself, not inside it, if any."""
    if isinstance(getattr(optimizer, "swap", None), Swap):
        return optimizer  # type: ignore[no-any-return]
    kind = getattr(keras.optimizers, "ScheduleFreeAdamW", None)
    if kind is None or not isinstance(optimizer, kind):
        return None
    if optimizer not in _schedule_free:
        _schedule_free[optimizer] = ScheduleFreeAverage(optimizer)
    return _schedule_free[optimizer]


def keepers_in(optimizer: Any) -> list[Keeper]:
    """Return what keeps averages in an optimizer and in all inside it."""
    return [k for part in walk(optimizer) if (k := keeper_of(part)) is not None]


def find_keepers(model: keras.Model) -> list[Keeper]:
    """Return what keeps averages of the weights of `model`.

    Args:
        model: A compiled model.

    Returns:
        Its averaging optimizer, or several inside a `MultiOptimizer`.

    Raises:
        TypeError: If `model` is not a model.
        ValueError: If its optimizer keeps no averages.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a keras.Model that was compiled with "
            f"ExponentialMovingAverage, got {model!r} ({type(model).__name__})."
        )
    optimizer = getattr(model, "optimizer", None)
    found = keepers_in(optimizer)
    if not found:
        name = getattr(optimizer, "name", None)
        raise ValueError(
            f"The optimizer of model {model.name!r} is {name!r}, which keeps no "
            "averages of the weights. Compile with\n    model.compile(fmkit.optimizers."
            f"ExponentialMovingAverage({name or 'adam'!r}, decay=0.99), ...)"
        )
    return found


def find_averages(model: keras.Model, which: str | None = None) -> list[Averages]:
    """Return the averages of one name, by default the first, of each keeper.

    Raises:
        TypeError: As `find_keepers`.
        ValueError: As `find_keepers`, or if one has no average of this name.
    """
    return [select(keeper, which) for keeper in find_keepers(model)]


def select(keeper: Keeper, which: str | None = None) -> Averages:
    """Return an average by its name; by default the first.

    Raises:
        ValueError: If there is none of this name.
    """
    if which is None:
        return next(iter(keeper.kept.values()))
    if which not in keeper.kept:
        raise ValueError(
            f"The optimizer keeps no average {which!r}, only {list(keeper.kept)}."
            f"{did_you_mean(which, keeper.kept)}"
        )
    return keeper.kept[which]


class ScheduleFreeAverage:
    r"""The average at which Keras's `ScheduleFreeAdamW` is to be evaluated.

    It trains at $y = (1 - \beta_1) z + \beta_1 x$ and keeps $z$; so
    $x = (y - (1 - \beta_1) z) / \beta_1$, the plain mean of all $z$.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: Any) -> None:
        # The optimizer is the key under which this object is found: no cycle.
        self._optimizer = weakref.ref(optimizer)
        self._swap = Swap()

    def _living(self) -> Any:
        optimizer = self._optimizer()
        assert optimizer is not None
        return optimizer

    @property
    def swap(self) -> Swap:
        """The optimizer's weights, once it is built."""
        optimizer = self._living()
        if optimizer.built and self._swap.weights is None:
            self._swap.weights = list(private.trainable_variables(optimizer))
        return self._swap

    @property
    def kept(self) -> dict[str, Averages]:
        """Itself, the only average."""
        return {"schedule_free": self}

    @property
    def averages(self) -> list[tuple[Any, Any]]:
        """Pairs of a model's variable and its average, computed now."""
        optimizer = self._living()
        # One for each weight, in their order: what its gradients change.
        leading = [v for v in optimizer.variables if v.path.endswith("_momentum")]
        found = []
        for weight, own in zip(self.swap.weights or [], leading, strict=True):
            y, z = (ops.cast(each, "float32") for each in (weight, own))
            found.append((weight, evaluation_point(y, z, optimizer.beta_1)))
        return found

    @property
    def has_averages(self) -> bool:
        """Whether a step was made."""
        return bool(self._living().built) and self.updates > 0

    @property
    def updates(self) -> int:
        """Steps so far."""
        return int(ops.convert_to_numpy(self._living().iterations))

    @property
    def power(self) -> None:
        """Not a power-function average."""

    def decay_at(self, update: int) -> float:
        """Return the decay of a plain mean."""
        return 1 - 1 / update


def evaluation_point(trained: Any, leading: Any, beta: float) -> Any:
    """Return where `ScheduleFreeAdamW` is to be evaluated: $x$ from $y$ and $z$."""
    return (trained - (1.0 - beta) * leading) / beta


_schedule_free: MutableMapping[Any, ScheduleFreeAverage] = weakref.WeakKeyDictionary()


# Averages in, raw weights back


@contextlib.contextmanager
def swapped(model: keras.Model, averages: Sequence[Averages]) -> Iterator[keras.Model]:
    """Let `model` hold its averages, where there are any yet, for a block.

    Blocks can be nested; the outermost one swaps.

    Yields:
        `model` itself.

    Raises:
        TypeError: If `model` is not a model.
        ValueError: If the averages are those of a different model.
        RuntimeError: If the block trained the model.
    """
    private.synchronize(model)
    _check_owner(model, averages)
    outermost = [each for each in averages if each.swap.saved is None]
    steps = _total_updates(averages)
    try:
        for each in outermost:
            if each.has_averages:
                each.swap.put_in(each.averages)
        yield model
    finally:
        private.synchronize(model)
        for each in outermost:
            each.swap.take_out()
    if outermost and _total_updates(averages) != steps:
        raise RuntimeError(
            "The model was trained inside `with averaged(model)`. Those steps are "
            "undone, since the block restores the weights it found; call `fit` "
            "outside the block."
        )


@contextlib.contextmanager
def raw_weights(model: keras.Model) -> Iterator[keras.Model]:
    """Let `model` hold its raw weights for the length of a block.

    Within `swapped` the averages are back in their place afterwards; elsewhere nothing
    is to be done.
    """
    swaps = [keeper.swap for keeper in keepers_in(model.optimizer)]
    saved = [pair for swap in swaps for pair in swap.saved or []]
    if saved:
        private.synchronize(model)
    present = [(part, ops.copy(part)) for part, _ in saved]
    try:
        for part, value in saved:
            # A copy: what is saved must outlive the block.
            part.assign(ops.copy(value))
        yield model
    finally:
        for part, value in present:
            part.assign(value)


def active_swaps(averages: Sequence[Averages]) -> list[Swap]:
    """Return the swaps whose weights are averages at present."""
    return [each.swap for each in averages if each.swap.saved is not None]


def _total_updates(averages: Sequence[Averages]) -> int:
    return sum(each.updates for each in averages)


def _check_owner(model: keras.Model, averages: Sequence[Averages]) -> None:
    if not hasattr(model, "trainable_variables"):
        raise TypeError(
            "`model` must be the model that this optimizer trains, got "
            f"{model!r} ({type(model).__name__})."
        )
    known = set()
    for each in averages:
        if each.swap.weights is None:
            return
        known |= {id(weight) for weight in each.swap.weights}
    missing = [path_of(v) for v in model.trainable_variables if id(v) not in known]
    if missing:
        raise ValueError(
            f"The averages are of a different network from model {model.name!r}: there "
            f"is none of {missing[:3]}. Give the model whose `fit` used this "
            "optimizer, and compile again after adding layers."
        )


# Variables


def value_of(variable: Any) -> Any:
    """Return what a Keras variable holds; a plain `tf.Variable` is its own value."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def path_of(variable: Any) -> str:
    """Return the path of a Keras variable, or the name of a plain `tf.Variable`."""
    return str(getattr(variable, "path", variable.name))


def _copies(variables: Any) -> list[tuple[Any, Any]]:
    return [(part, ops.copy(part)) for each in variables for part in replicas_of(each)]


def replicas_of(variable: Any) -> list[Any]:
    """Return what `variable` consists of: a part for each replica, or itself.

    Replicas of `tf.distribute` may differ, as BatchNorm's statistics do; read or
    written as a whole they would become one.
    """
    replicas = getattr(value_of(variable), "values", None)
    return list(replicas) if isinstance(replicas, tuple) else [variable]
