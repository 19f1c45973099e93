"""The optimizer that averages: its arguments, its variables, its step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fmkit._checks import check_int, check_number, did_you_mean
from fmkit._swap import Swap, path_of, swapped
from fmkit.optimizers import _inner, _rule, _variables
from fmkit.optimizers._wrapper import OptimizerWrapper

__all__ = ["ExponentialMovingAverage"]


@keras.saving.register_keras_serializable("fmkit")
class ExponentialMovingAverage(OptimizerWrapper):
    r"""Optimizer that also averages the weights that another optimizer trains.

    After each update of the weights $w$, the average $s$ becomes

    $$s \leftarrow s - (1 - d_n)(s - w), \qquad
      d_n = \min\Bigl(\text{decay}, \frac{1 + n}{10 + n}\Bigr),$$

    with $n$ the number of updates. This is TensorFlow 1's
    `tf.train.ExponentialMovingAverage(decay, global_step)`: the averages start at the
    *initial* weights, and $d_n$ grows from 2/11 to `decay`, so they follow the weights
    closely in the beginning and smoothly later on. The model itself always holds the
    raw weights, also after `fit`; see `averaged` for the averages.

    Averages of float16 and bfloat16 weights are float32. Only steps that change the
    weights count: not those that accumulate gradients, nor those that a
    `LossScaleOptimizer` around this optimizer skips.

    Args:
        optimizer: The optimizer to wrap: a name, a config or an instance. It must not
            be built yet, nor use Keras's own `use_ema`. A `LossScaleOptimizer` goes
            around this optimizer, not inside.
        decay: Largest decay $0 \le d < 1$, for each update of the averages.
        num_updates: Which $n$ the rule takes. `"after"` counts the update that was just
            made, so the first is $n = 1$: TensorFlow 1 with `apply` under
            `control_dependencies([train_step])`, the form of its documentation.
            `"before"` starts at $n = 0$. `None` keeps the decay constant, as in
            TensorFlow 1.
        zero_debias: Whether to leave out the initial weights: the average is then
            divided by the sum of its coefficients, so that the first one equals the
            weights after the first update.
        start_step: Updates of the weights before averaging begins; until then the
            averages equal the weights. $n$ counts from there.
        update_interval: Updates of the weights per update of the averages.
        exclude: Regular expressions; a variable whose path contains a match has no
            average and keeps its raw value everywhere.
        name: Name of the optimizer.

    Attributes:
        inner_optimizer: The wrapped optimizer.

    Raises:
        TypeError: If `optimizer` is not an optimizer, nor the name or config of one.
        ValueError: If an argument is outside its range, or `optimizer` can't be
            wrapped.

    Examples:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile(ExponentialMovingAverage("sgd", decay=0.99), "mse")
        >>> x, y = keras.ops.ones((8, 1)), keras.ops.ones((8, 1))
        >>> history = model.fit(x, y, verbose=0)
        >>> with model.optimizer.averaged(model):
        ...     loss = model.evaluate(x, y, verbose=0)

    References:
        Polyak and Juditsky, [*Acceleration of stochastic approximation by
        averaging*](https://doi.org/10.1137/0330046), 1992.
    """

    def __init__(
        self,
        optimizer: Any,
        decay: float = 0.99,
        *,
        num_updates: str | None = "after",
        zero_debias: bool = False,
        start_step: int = 0,
        update_interval: int = 1,
        exclude: str | Sequence[str] = (),
        name: str | None = None,
    ):
        inner = _inner.check_inner(_inner.to_optimizer(optimizer))
        if num_updates not in ("after", "before", None):
            raise ValueError(
                "`num_updates` must be 'after', 'before' or None, got "
                f"num_updates={num_updates!r}."
                f"{did_you_mean(num_updates, ['after', 'before'])}"
            )
        super().__init__(inner, name=name)
        self.decay = check_number("decay", decay, at_least=0, below=1)
        self.num_updates = num_updates
        self.zero_debias = bool(zero_debias)
        self.start_step = check_int("start_step", start_step, minimum=0)
        self.update_interval = check_int("update_interval", update_interval)
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        self.swap = Swap()
        self._start_is_pending = False

    @classmethod
    def from_half_life(
        cls, optimizer: Any, half_life: float, **arguments: Any
    ) -> ExponentialMovingAverage:
        r"""Make the optimizer from the half-life of the averages.

        The decay is $2^{-k/h}$ for half-life $h$ and update interval $k$: the weight
        of a past value halves every $h$ updates of the model's weights.

        Args:
            optimizer: The optimizer to wrap.
            half_life: $h > 0$ in optimizer steps, not epochs.
            **arguments: The other arguments of the class, but for `decay`.

        Returns:
            The optimizer.

        Examples:
            >>> round(ExponentialMovingAverage.from_half_life("sgd", 69).decay, 4)
            0.99
        """
        check_number("half_life", half_life, above=0)
        interval = check_int("update_interval", arguments.get("update_interval", 1))
        return cls(optimizer, 2.0 ** (-interval / half_life), **arguments)

    def build(self, variables: list[Any]) -> None:
        """Build the wrapped optimizer, and make the averages: copies of `variables`."""
        if self.built:
            return
        _variables.check_patterns(self.exclude, variables)
        with _variables.outside_of_functions():
            self._start_is_pending = not _variables.are_initialized(variables)
            self._build(variables)

    def _build(self, variables: list[Any]) -> None:
        self.inner_optimizer.build(variables)
        super().build(variables)
        if self.zero_debias:
            self._weight_sum = _variables.add_scalar(self, "weight_sum")
        # Not the weights themselves: Keras makes variables of the optimizer of all
        # that is in a list of it.
        self._averaged_indices = [
            index
            for index, variable in enumerate(variables)
            if not _variables.is_excluded(variable, self.exclude)
        ]
        self._averages = [
            _variables.add_average(
                self, variables[index], copy=not self._start_is_pending
            )
            for index in self._averaged_indices
        ]
        self.swap.weights = list(variables)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Update the weights by the wrapped optimizer, then their averages."""
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if not self.built:
                self.build(trainable_variables)
        if not grads:
            return
        if self._start_is_pending:
            self._start_averages()
        before = _inner.update_counts(self.inner_optimizer)
        self.inner_optimizer.apply(grads, trainable_variables)
        changed = _inner.counts_differ(
            before, _inner.update_counts(self.inner_optimizer)
        )
        if changed is None:
            self._own_count.assign_add(1)
        else:
            self._own_count.assign_add(ops.cast(changed, self._own_count.dtype))
        self._update_averages(changed)

    def _start_averages(self) -> None:
        """Start averages at initial weights that had no values yet in `build`.

        A `tf.function` that makes variables is traced twice: they get their values
        after the first trace, and only the second program is run. If an initial value
        depends on the function's arguments, the first program makes the first step;
        then the averages start within it.
        """
        with _variables.outside_of_functions():
            if _variables.are_initialized([weight for weight, _ in self.averages]):
                self._start_is_pending = False
                if self.updates == 0:
                    self.reset_averages()
                return
        first = ops.equal(self._own_count, 0)
        for weight, average in self.averages:
            start = ops.cast(weight, average.dtype)
            average.assign(ops.where(first, start, ops.convert_to_tensor(average)))

    def _update_averages(self, changed: Any) -> None:
        count = self._own_count - self.start_step
        due, copy = _rule.masks(count, changed, self.start_step, self.update_interval)
        step_size = _rule.step_size(count, self.decay, self.num_updates)
        if self.zero_debias:
            step_size, first = _rule.normalise(self._weight_sum, step_size, due, copy)
            copy = first if copy is None else ops.logical_or(copy, first)
        _rule.move(self.averages, step_size, due, copy)

    def decay_at(self, update: int) -> float:
        """Return the decay that an update of the weights applies to the averages.

        Args:
            update: Number of the update, the first being 1.

        Returns:
            The decay $d$: 0 up to the start step, 1 where the averages are not updated
            because of the interval. It does not include `zero_debias`.

        Examples:
            >>> ExponentialMovingAverage("sgd", decay=0.99).decay_at(1)
            0.18181818181818182
        """
        count = check_int("update", update) - self.start_step
        if count <= 0:
            return 0.0
        if count % self.update_interval:
            return 1.0
        return _rule.decay_at(count, self.decay, self.num_updates)

    @property
    def averages(self) -> list[tuple[Any, Any]]:
        """Pairs of a model's variable and the variable that holds its average."""
        weights = self.swap.weights
        if weights is None:
            return []
        averaged = [weights[index] for index in self._averaged_indices]
        return list(zip(averaged, self._averages, strict=True))

    def average(self, variable: Any) -> Any:
        """Return the variable that holds the average of `variable`.

        Args:
            variable: A variable of the model.

        Returns:
            A `keras.Variable`, or `None` if `variable` is excluded.

        Raises:
            ValueError: If this optimizer does not train `variable`.
        """
        for weight, average in self.averages:
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
        for weight, average in self.averages:
            average.assign(ops.cast(ops.copy(weight), average.dtype))
        if self.zero_debias and self.built:
            self._weight_sum.assign(0.0)
        self._own_count.assign(0)

    @property
    def updates(self) -> int:
        """Updates of the weights so far. Reads a counter from the device."""
        return int(ops.convert_to_numpy(self._own_count))

    @property
    def has_averages(self) -> bool:
        """Whether at least one averaging update has been applied.

        False before the optimizer is built, before the first update, and until
        `start_step`. Reads a counter from the device.
        """
        return self.built and self.updates > self.start_step

    def averaged(
        self, model: keras.Model
    ) -> contextlib.AbstractContextManager[keras.Model]:
        """Return a context manager in which `model` holds the averages.

        The same as `fmkit.optimizers.averaged(model)`, but also for a model that is
        not compiled with this optimizer, as in your own training loop.
        """
        return swapped(model, [self])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            "optimizer": keras.optimizers.serialize(self.inner_optimizer),
            "decay": self.decay,
            "num_updates": self.num_updates,
            "zero_debias": self.zero_debias,
            "start_step": self.start_step,
            "update_interval": self.update_interval,
            "exclude": list(self.exclude),
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> ExponentialMovingAverage:
        """Make the optimizer that `get_config` described."""
        inner = keras.optimizers.deserialize(config["optimizer"], custom_objects)
        return cls(**{**config, "optimizer": inner})
