"""The optimizer that averages: its rule, its variables, what it delegates."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fmkit import _keras_private as private
from fmkit._checks import check_int, check_number, did_you_mean
from fmkit._math import namespace
from fmkit.optimizers._inner import to_optimizer
from fmkit.optimizers._swap import Swap, path_of, swapped, value_of, walk

_HALF_TYPES = ("float16", "bfloat16")


@keras.saving.register_keras_serializable("fmkit")
class ExponentialMovingAverage(keras.optimizers.Optimizer):
    r"""Optimizer that also averages the weights which another optimizer trains.

    After each update of the weights $w$, the average $s$ becomes

    $$s \leftarrow s - (1 - d_n)(s - w), \qquad
      d_n = \min\Bigl(\text{decay}, \frac{1 + n}{10 + n}\Bigr),$$

    with $n$ the number of updates. This is TensorFlow 1's
    `tf.train.ExponentialMovingAverage(decay, global_step)`: the averages start at the
    *initial* weights, and $d_n$ grows from 2/11 to `decay`, so they follow the weights
    closely in the beginning and smoothly later on. The model itself always holds the
    raw weights, also after `fit`; see `averaged` for the averages.

    Averages of float16 and bfloat16 weights are float32. With gradient accumulation,
    only steps that change the weights count; steps which a `LossScaleOptimizer` around
    this optimizer skips do not count either.

    Args:
        optimizer: The optimizer to wrap, by name, config or instance. It must not have
            been built, and must not use Keras's own `use_ema`. A `LossScaleOptimizer`
            goes around this optimizer, not inside.
        decay: Largest decay $0 \le d < 1$, for each update of the averages.
        num_updates: Which $n$ the rule takes. `"after"` counts the update that was just
            made, so the first is $n = 1$: TensorFlow 1 with `apply` under
            `control_dependencies([train_step])`, the form of its documentation.
            `"before"` starts at $n = 0$. `None` keeps the decay constant, as in
            TensorFlow 1.
        zero_debias: Whether to leave the initial weights out: the average is then
            divided by the sum of the weights it gave, so that the first one equals the
            weights after the first update.
        start_step: Updates before averaging begins; until then the averages equal the
            weights. $n$ counts from there.
        update_interval: Updates of the weights for one update of the averages.
        exclude: Regular expressions; a variable whose path contains a match has no
            average and keeps its raw value everywhere.
        name: Name of the optimizer.

    Attributes:
        inner_optimizer: The wrapped optimizer.

    Raises:
        TypeError: If `optimizer` is no optimizer, nor the name or config of one.
        ValueError: If an argument is outside its range, or `optimizer` can't be
            wrapped.

    Examples:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile(ExponentialMovingAverage("sgd", decay=0.99), "mse")
        >>> history = model.fit(
        ...     keras.ops.ones((8, 1)), keras.ops.ones((8, 1)), verbose=0)
        >>> with model.optimizer.averaged(model):
        ...     loss = model.evaluate(
        ...         keras.ops.ones((8, 1)), keras.ops.ones((8, 1)), verbose=0)

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
        inner = _check_inner(to_optimizer(optimizer))
        if num_updates not in ("after", "before", None):
            raise ValueError(
                "`num_updates` must be 'after', 'before' or None, got "
                f"num_updates={num_updates!r}."
                f"{did_you_mean(num_updates, ['after', 'before'])}"
            )
        # A callable rate keeps Keras from adding a learning-rate variable that
        # nothing would read; `learning_rate` below asks the wrapped optimizer.
        super().__init__(learning_rate=_no_rate, name=name)
        self.inner_optimizer = inner
        self.decay = check_number("decay", decay, at_least=0, below=1)
        self.num_updates = num_updates
        self.zero_debias = bool(zero_debias)
        self.start_step = check_int("start_step", start_step, minimum=0)
        self.update_interval = check_int("update_interval", update_interval)
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        self._swap = Swap()
        self._start_later = False

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
        """Make the averages, as copies of `variables`, and build the inner one."""
        if self.built:
            return
        self._check_exclude(variables)
        with _outside_of_functions():
            self._start_later = not _have_values(variables)
            self._build(variables)

    def _build(self, variables: list[Any]) -> None:
        self.inner_optimizer.build(variables)
        super().build(variables)
        if self.zero_debias:
            self._weight_sum = self.add_variable(
                (),
                dtype="float32",
                aggregation="only_first_replica",
                name="weight_sum",
            )
        self._averages = []
        self._averaged_indices = []
        for index, variable in enumerate(variables):
            if not self._is_excluded(variable):
                self._averaged_indices.append(index)
                self._averages.append(self._add_average(variable))

    def _add_average(self, variable: Any) -> Any:
        dtype = keras.backend.standardize_dtype(variable.dtype)
        distribution = keras.distribution.distribution()
        path = path_of(variable)
        return self.add_variable(
            variable.shape,
            # A copy: an alias would be donated with the weights on JAX, and be the
            # weights themselves on PyTorch.
            initializer="zeros"
            if self._start_later
            else lambda shape, dtype: ops.cast(ops.copy(variable), dtype),
            dtype="float32" if dtype in _HALF_TYPES else dtype,
            # What lets a replica of tf.distribute assign to it.
            aggregation="only_first_replica",
            layout=distribution and distribution.get_variable_layout(variable),
            name=f"{path.replace('/', '_').replace(':', '_')}_average",
        )

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Update the weights by the inner optimizer, then their averages."""
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if not self.built:
                self.build(trainable_variables)
        if not grads:
            return
        if self._start_later:
            self._start_averages()
        before = self._counters()
        self.inner_optimizer.apply(grads, trainable_variables)
        changed = self._counters_differ(before)
        if changed is None:
            self._iterations.assign_add(1)
        else:
            self._iterations.assign_add(ops.cast(changed, self._iterations.dtype))
        self._update_averages(changed)

    def _start_averages(self) -> None:
        """Start averages at initial weights that had no values yet in `build`.

        A `tf.function` that makes variables is traced twice: they get their values
        after the first time, and only the second program is run. Should an initial
        value depend on the function's arguments, the first program makes the first
        step; then the averages start within it.
        """
        with _outside_of_functions():
            if _have_values([weight for weight, _ in self.averages]):
                self._start_later = False
                if self.updates == 0:
                    self.reset_averages()
                return
        first = ops.equal(self._iterations, 0)
        for weight, average in self.averages:
            start = ops.cast(weight, average.dtype)
            average.assign(ops.where(first, start, ops.convert_to_tensor(average)))

    def _counters(self) -> list[Any]:
        """Counts of updates of inner optimizers that accumulate gradients."""
        inner = _parts(self.inner_optimizer)
        if not any(each.gradient_accumulation_steps for each in inner):
            return []
        # The quotient is a fresh tensor; a bare counter would change in place.
        return [each.iterations + 0 for each in inner]

    def _counters_differ(self, before: list[Any]) -> Any:
        """Whether the weights changed; `None` where every step changes them."""
        changed = None
        for old, new in zip(before, self._counters(), strict=True):
            differs = ops.not_equal(old, new)
            changed = differs if changed is None else ops.logical_or(changed, differs)
        return changed

    def _update_averages(self, changed: Any) -> None:
        # `due` and `copy` are None where they would be true, or false, at every step:
        # a plain average then costs nothing but its own arithmetic.
        due, copy = changed, None
        count = self._iterations - self.start_step
        if self.update_interval > 1:
            due = _both(due, ops.equal(count % self.update_interval, 0))
        step_size = self._step_size(count)
        if self.start_step:
            copy = count <= 0
            due = None if due is None else ops.logical_or(due, copy)
        if self.zero_debias:
            step_size, first = self._normalise(step_size, due, copy)
            copy = first if copy is None else ops.logical_or(copy, first)
        if due is None and copy is None and _in_place():
            _move(self.averages, step_size)
            return
        for index, average in zip(self._averaged_indices, self._averages, strict=True):
            weight = ops.cast(private.trainable_variables(self)[index], average.dtype)
            size = ops.cast(step_size, average.dtype)
            new = average + size * (weight - average)
            if copy is not None:
                new = ops.where(copy, weight, new)
            if due is not None:
                new = ops.where(due, new, ops.convert_to_tensor(average))
            average.assign(new)

    def _step_size(self, count: Any) -> Any:
        """Return `1 - d`, with TensorFlow 1's rounding while `d` grows.

        The bound `1 - decay` is taken in float64: in float32, 1 - 0.9999 is off by
        3e-5 of itself.
        """
        if self.num_updates is None:
            return 1.0 - self.decay
        xp = namespace(count)
        count = ops.cast(count, "float32")
        if self.num_updates == "before":
            count = count - 1.0
        # Before the start step the size is not used, but must be finite.
        count = xp.relu(count)
        return xp.maximum(1.0 - self.decay, 1.0 - (1.0 + count) / (10.0 + count))

    def decay_at(self, update: int) -> float:
        """Return the decay that the given update of the weights applies.

        Args:
            update: Number of the update, the first being 1.

        Returns:
            The decay $d$: 0 up to the start step, 1 where the update interval leaves
            the averages alone. `zero_debias` is not in it.

        Examples:
            >>> ExponentialMovingAverage("sgd", decay=0.99).decay_at(1)
            0.18181818181818182
        """
        count = check_int("update", update) - self.start_step
        if count <= 0:
            return 0.0
        if count % self.update_interval:
            return 1.0
        if self.num_updates is None:
            return self.decay
        n = count - (self.num_updates == "before")
        return min(self.decay, (1 + n) / (10 + n))

    def _normalise(self, step_size: Any, due: Any, copy: Any) -> tuple[Any, Any]:
        r"""Turn the step size into one that gives the initial weights no part.

        With $c$ the sum of the weights given so far, $c \leftarrow c + a(1 - c)$ for
        step size $a$, the average of a sequence without its start moves by $a/c$.
        """
        old = ops.convert_to_tensor(self._weight_sum) + 0.0
        new = old + step_size * (1.0 - old)
        first = ops.equal(old, 0.0)
        kept = new if due is None else ops.where(due, new, old)
        if copy is not None:
            kept = ops.where(copy, ops.zeros_like(old), kept)
        self._weight_sum.assign(kept)
        return step_size / ops.where(new > 0, new, ops.ones_like(new)), first

    @property
    def averages(self) -> list[tuple[Any, Any]]:
        """Pairs of a model's variable and the variable that holds its average."""
        if not self.built:
            return []
        weights = [
            private.trainable_variables(self)[index] for index in self._averaged_indices
        ]
        return list(zip(weights, self._averages, strict=True))

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
        if self.built and any(v is variable for v in private.trainable_variables(self)):
            return None
        raise ValueError(
            f"This optimizer has no average of {path_of(variable)!r}: it "
            + (
                "was built for other variables."
                if self.built
                else "is not built; call `fit`, or `build(model.trainable_variables)`."
            )
        )

    def reset_averages(self) -> None:
        """Start again: the averages become the present weights, the count 0."""
        for weight, average in self.averages:
            average.assign(ops.cast(ops.copy(weight), average.dtype))
        if self.zero_debias and self.built:
            self._weight_sum.assign(0.0)
        self._iterations.assign(0)

    @property
    def updates(self) -> int:
        """Updates of the weights so far. Reads a counter from the device."""
        return int(ops.convert_to_numpy(self._iterations))

    @property
    def has_averages(self) -> bool:
        """Whether the averages differ by their making from the weights.

        False before the optimizer is built, before the first update, and until
        `start_step`. Reads a counter from the device.
        """
        return self.built and self.updates > self.start_step

    def averaged(
        self, model: keras.Model
    ) -> contextlib.AbstractContextManager[keras.Model]:
        """Return a context manager in which `model` holds the averages.

        The same as `fmkit.optimizers.averaged(model)`, but for a model that is not
        compiled with this optimizer, as in a training loop of one's own.
        """
        return swapped(model, [self])

    def _check_exclude(self, variables: list[Any]) -> None:
        paths = [path_of(variable) for variable in variables]
        for pattern in self.exclude:
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(
                    f"`exclude` has {pattern!r}, which matches no variable. "
                    f"The paths are {paths}."
                )

    def _is_excluded(self, variable: Any) -> bool:
        # float8 scales and histories are set by their "gradients", not trained.
        if getattr(variable, "overwrite_with_gradient", False):
            return True
        path = path_of(variable)
        return any(re.search(pattern, path) for pattern in self.exclude)

    # What follows makes the wrapper stand for the wrapped optimizer.

    @property
    def variables(self) -> list[Any]:
        """Variables of this optimizer, then those of the wrapped one."""
        return [*self._variables, *self.inner_optimizer.variables]

    @property
    def iterations(self) -> Any:
        """Count of steps of the wrapped optimizer."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> Any:
        """Learning rate of the wrapped optimizer; can be set."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def loss_scale_factor(self) -> Any:
        """Factor of the loss, held by the wrapped optimizer; can be set."""
        inner = self.__dict__.get("inner_optimizer")
        return None if inner is None else inner.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        # The base class sets it before there is a wrapped optimizer.
        if "inner_optimizer" in self.__dict__:
            self.inner_optimizer.loss_scale_factor = factor

    def scale_loss(self, loss: Any) -> Any:
        """Scale the loss as the wrapped optimizer does."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: list[Any]) -> None:
        """Finish as the wrapped optimizer does; the weights stay raw."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        """Exclude variables from the weight decay of the wrapped optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(*args, **kwargs)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all of `variables`, in their order."""
        self._check_shapes([tuple(weight.shape) for weight in weights])
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

    def save_own_variables(self, store: Any) -> None:
        """Write the averages; Keras saves the wrapped optimizer by itself."""
        for index, variable in enumerate(self._variables):
            store[str(index)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        """Read the averages, or say that they belong to another network."""
        if not self.built or not len(store.keys()):
            # As every Keras optimizer does: it warns, and the weights still load.
            super().load_own_variables(store)
            return
        arrays = [store[str(index)] for index in range(len(store.keys()))]
        self._check_shapes([array.shape for array in arrays], own=True)
        for variable, array in zip(self._variables, arrays, strict=True):
            variable.assign(array)

    def _check_shapes(self, shapes: list[Any], *, own: bool = False) -> None:
        expected = [
            tuple(variable.shape)
            for variable in (self._variables if own else self.variables)
        ]
        found = [tuple(shape) for shape in shapes]
        if found != expected:
            raise ValueError(
                "The averages to restore are of another network, or of another "
                f"optimizer: shapes {found} were found where {expected} are needed. "
                "Load into the network they were saved from, compiled with the same "
                "arguments, or load the weights before `compile`."
            )

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


def _check_inner(optimizer: Any) -> Any:
    """Return `optimizer`, or say why it can't be wrapped."""
    for part in walk(optimizer):
        if isinstance(part, ExponentialMovingAverage):
            raise ValueError(
                f"`optimizer` must not average already, got {optimizer.name!r} around "
                f"{part.name!r}. Wrap once."
            )
        if isinstance(part, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "`optimizer` must not be a LossScaleOptimizer. Write "
                "LossScaleOptimizer(ExponentialMovingAverage(optimizer)): then a step "
                "skipped for its infinite gradients leaves the averages alone too."
            )
        if part.use_ema:
            raise ValueError(
                f"`optimizer` must not use Keras's own averages, which replace the "
                f"weights at the end of `fit`: give {part.name!r} without "
                "use_ema=True."
            )
        if part.built:
            raise ValueError(
                f"`optimizer` must not be built, but {part.name!r} has done "
                f"{int(part.iterations)} steps on variables of its own. Give a new "
                "one, for instance type(optimizer).from_config(optimizer.get_config())."
            )
    return optimizer


def _parts(optimizer: Any) -> list[Any]:
    """Return the optimizers that update weights themselves."""
    return list(getattr(optimizer, "optimizers", ())) or [optimizer]


def _outside_of_functions() -> contextlib.AbstractContextManager[Any]:
    """Leave `tf.function`, where XLA could not read the initial weights."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def _have_values(variables: list[Any]) -> bool:
    """Whether `variables` are initialised: not yet while a `tf.function` makes them."""
    values = [value_of(variable) for variable in variables]
    # Only TensorFlow's variables have the question.
    return all(
        bool(value.is_initialized())
        for value in values
        if hasattr(value, "is_initialized")
    )


def _both(first: Any, second: Any) -> Any:
    return second if first is None else ops.logical_and(first, second)


def _in_place() -> bool:
    """Whether variables may be changed in place, which PyTorch does fastest."""
    return keras.backend.backend() == "torch" and not private.in_stateless_scope()


def _move(pairs: list[tuple[Any, Any]], step_size: Any) -> None:
    """Move each average in place by `step_size` of its way to its weight."""
    import torch

    with torch.no_grad():
        for weight, average in pairs:
            held = average.value
            way = weight.value.to(held.dtype) - held
            if isinstance(step_size, torch.Tensor):
                step_size = step_size.to(held.dtype)
            held.add_(way.mul_(step_size))


def _no_rate() -> float:
    return 0.0
