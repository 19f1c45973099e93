"""The optimizer that averages: its arguments, its variables, its step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from fmkit._swap import Power, Swap, path_of, select, swapped
from fmkit.optimizers import _update, _variables
from fmkit.optimizers._rules import AverageRule, PowerRule, read_rule
from fmkit.optimizers._update import Move
from fmkit.optimizers._wrapper import OptimizerWrapper

__all__ = ["KeptAverage", "WeightAverages"]


@keras.saving.register_keras_serializable("fmkit")
class WeightAverages(OptimizerWrapper):
    r"""Optimizer that also averages the weights that another optimizer trains.

    After each update of the weights, each rule updates its own average of them, inside
    the compiled step. The model itself always holds the raw weights, also after `fit`:
    see `averaged` and `averaged_model` for the averages, and
    `callbacks.EvaluateWithAverages`.

    Averages of float16 and bfloat16 weights are float32. Only steps that change the
    weights count: not those that accumulate gradients, nor those that a
    `LossScaleOptimizer` around this optimizer skips. Each average takes the memory of
    the weights once more, or half of that with a rule's `dtype="bfloat16"`.

    Args:
        optimizer: The optimizer to wrap: a name, a config or an instance. It must not
            be built yet, nor use Keras's own `use_ema`. A `LossScaleOptimizer` goes
            around this optimizer, not inside.
        rules: The rules: `ExponentialRule`, `WarmupRule`, `EqualRule`, `PowerRule`, a
            rule of your own, or a number, which is the decay of an `ExponentialRule`.
            The first is used where none is named.
        exclude: Regular expressions; a variable whose path contains a match has no
            average and keeps its raw value everywhere.
        name: Name of the optimizer.

    Attributes:
        inner_optimizer: The wrapped optimizer.
        kept: The averages by name, each with its rule.

    Raises:
        TypeError: If `optimizer` is not an optimizer, nor the name or config of one, or
            a rule is none.
        ValueError: If there is no rule, two have one name, or `optimizer` can't be
            wrapped.

    Examples:
        >>> from fmkit.optimizers import EqualRule, averaged
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile(WeightAverages("sgd", [0.9, EqualRule(start_step=1)]), "mse")
        >>> x, y = keras.ops.ones((8, 1)), keras.ops.ones((8, 1))
        >>> history = model.fit(x, y, batch_size=2, verbose=0)
        >>> list(model.optimizer.kept)
        ['ema_0.9', 'swa']
        >>> with averaged(model, "swa"):
        ...     loss = model.evaluate(x, y, verbose=0)

    References:
        Polyak and Juditsky, [*Acceleration of stochastic approximation by
        averaging*](https://doi.org/10.1137/0330046), 1992.
    """

    def __init__(
        self,
        optimizer: Any,
        rules: AverageRule | float | Sequence[AverageRule | float],
        *,
        exclude: str | Sequence[str] = (),
        name: str | None = None,
    ):
        super().__init__(optimizer, name=name)
        given = rules if isinstance(rules, (list, tuple)) else [rules]
        self.swap = Swap()
        self.kept = {
            rule.name: KeptAverage(self, rule)
            for rule in _distinct([read_rule(each) for each in given])
        }
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def build(self, variables: list[Any]) -> None:
        """Build the wrapped optimizer, and make the averages: copies of `variables`."""
        if not self.built:
            _variables.check_patterns(self.exclude, variables)
            super().build(variables)

    def build_copies(self, variables: list[Any], *, copy: bool) -> None:
        """Make the averages."""
        # Not the weights themselves: Keras makes variables of the optimizer of all
        # that is in a list of it.
        self._averaged_indices = [
            index
            for index, variable in enumerate(variables)
            if not _variables.is_excluded(variable, self.exclude)
        ]
        averaged = [variables[index] for index in self._averaged_indices]
        for number, kept in enumerate(self.kept.values()):
            # The first has the names of an optimizer that keeps no other.
            suffix = f"_average.{kept.rule.name}" if number else "_average"
            kept.build(averaged, suffix, copy=copy)
        self.swap.weights = variables

    @property
    def copies(self) -> list[tuple[Any, Any]]:
        """Pairs of a weight and an average of it, for all averages."""
        return [pair for kept in self.kept.values() for pair in kept.averages]

    def after_update(self, changed: Any) -> None:
        """Update the averages."""
        moves = [
            kept.next_move(self._own_count, changed) for kept in self.kept.values()
        ]
        _update.move(self._averaged_weights, moves)

    # What is kept

    @property
    def _averaged_weights(self) -> list[Any]:
        weights = self.swap.weights
        return [weights[index] for index in self._averaged_indices] if weights else []

    @property
    def averages(self) -> list[tuple[Any, Any]]:
        """Pairs of a model's variable and the variable of its (first) average."""
        return select(self).averages

    def average(self, variable: Any, which: str | None = None) -> Any:
        """Return the variable that holds the average of `variable`.

        Args:
            variable: A variable of the model.
            which: The name of the average; by default the first.

        Returns:
            A `keras.Variable`, or `None` if `variable` is excluded.

        Raises:
            ValueError: If this optimizer does not train `variable`, or keeps no average
                of this name.
        """
        for weight, average in select(self, which).averages:
            if weight is variable:
                return average
        if any(weight is variable for weight in self.swap.weights or []):
            return None
        reason = (
            "was built for other variables."
            if self.built
            else "is not built; call `fit`, or `build(model.trainable_variables)`."
        )
        raise ValueError(
            f"This optimizer has no average of {path_of(variable)!r}: it {reason}"
        )

    def reset_averages(self) -> None:
        """Start again: the averages become the current weights, the count 0."""
        for kept in self.kept.values():
            kept.reset()
        self._own_count.assign(0)

    def decay_at(self, update: int) -> float:
        """Return the decay that an update of the weights applies to the first average.

        Args:
            update: Number of the update, the first being 1.

        Returns:
            The decay $d$; see `AverageRule.decay_at`.
        """
        return select(self).decay_at(update)

    @property
    def has_averages(self) -> bool:
        """Whether at least one update of the (first) average has been applied.

        False before the optimizer is built, and until the `update_interval`-th update
        after `start_step`. Reads a counter from the device.
        """
        return select(self).has_averages

    def averaged(
        self, model: keras.Model, which: str | None = None
    ) -> contextlib.AbstractContextManager[keras.Model]:
        """Return a context manager in which `model` holds the averages.

        The same as `fmkit.optimizers.averaged(model, which)`, but also for a model that
        is not compiled with this optimizer, as in your own training loop.
        """
        return swapped(model, [select(self, which)])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            "optimizer": keras.optimizers.serialize(self.inner_optimizer),
            "rules": [
                keras.saving.serialize_keras_object(kept.rule)
                for kept in self.kept.values()
            ],
            "exclude": list(self.exclude),
            "name": self.name,
        }


class KeptAverage:
    """One average of the weights that a `WeightAverages` keeps.

    Args:
        optimizer: What keeps it.
        rule: How it follows the weights.

    Attributes:
        rule: How it follows the weights.
        swap: The optimizer's weights, and what they were while they hold averages.
    """

    def __init__(self, optimizer: WeightAverages, rule: AverageRule) -> None:
        self.rule = rule
        self.swap = optimizer.swap
        self._optimizer = optimizer
        self._averages: list[Any] = []

    def build(self, weights: list[Any], suffix: str, *, copy: bool) -> None:
        """Make the variables that hold the average of `weights`."""
        if self.rule.zero_debias:
            name = "weight_sum" + suffix.removeprefix("_average")
            self._weight_sum = _variables.add_scalar(self._optimizer, name)
        self._averages = [
            _variables.add_copy(
                self._optimizer, weight, suffix, copy=copy, dtype=self.rule.dtype
            )
            for weight in weights
        ]

    def next_move(self, updates: Any, changed: Any) -> Move:
        """Return how far the average moves after these updates of the weights."""
        rule = self.rule
        count = updates - rule.start_step
        due, copy = _update.masks(count, changed, rule.start_step, rule.update_interval)
        step_size = rule.step_size(count)
        if rule.zero_debias:
            step_size, first = _update.normalise(self._weight_sum, step_size, due, copy)
            copy = first if copy is None else ops.logical_or(copy, first)
        return Move(self._averages, step_size, due, copy)

    @property
    def averages(self) -> list[tuple[Any, Any]]:
        """Pairs of a model's variable and the variable that holds its average."""
        weights = self._optimizer._averaged_weights
        return list(zip(weights, self._averages, strict=True))

    @property
    def has_averages(self) -> bool:
        """Whether at least one averaging update has been applied."""
        first = self.rule.start_step + self.rule.update_interval
        return self._optimizer.built and self.updates >= first

    @property
    def updates(self) -> int:
        """Updates of the weights so far. Reads a counter from the device."""
        return self._optimizer.updates

    @property
    def power(self) -> Power | None:
        """Exponent, length and timing of a `PowerRule`'s average; of others `None`."""
        rule = self.rule
        if not isinstance(rule, PowerRule) or not self._optimizer.built:
            return None
        start, interval = rule.start_step, rule.update_interval
        return Power(rule.gamma, (self.updates - start) // interval, start, interval)

    def decay_at(self, update: int) -> float:
        """Return the decay that the given update of the weights applied."""
        return self.rule.decay_at(update)

    def reset(self) -> None:
        """Start again from the current weights."""
        for weight, average in self.averages:
            average.assign(ops.cast(ops.copy(weight), average.dtype))
        if self.rule.zero_debias and self._averages:
            self._weight_sum.assign(0.0)


def _distinct(rules: list[AverageRule]) -> Iterable[AverageRule]:
    names = [rule.name for rule in rules]
    if not rules:
        raise ValueError(
            "`rules` must hold at least one rule, got none: write for instance "
            "rules=[0.99]."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"Each average needs a name of its own, but {twice} are there twice. Give "
            "one of them name='...'."
        )
    return rules
