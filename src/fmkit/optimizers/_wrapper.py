"""An optimizer that stands for the optimizer inside it, and acts after its updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fmkit.optimizers import _inner, _variables

__all__ = ["OptimizerWrapper"]


class OptimizerWrapper(keras.optimizers.Optimizer):
    """Passes what users and Keras ask of an optimizer to the one inside.

    A subclass makes variables in `build_copies`, which start as copies of the weights,
    lists them in `copies`, and changes them in `after_update`.

    Args:
        optimizer: The optimizer to wrap: a name, a config or an instance.
        name: Name of the wrapper.

    Attributes:
        inner_optimizer: The wrapped optimizer.
    """

    def __init__(self, optimizer: Any, *, name: str | None = None) -> None:
        # A callable rate keeps Keras from adding a learning-rate variable that
        # nothing would read; `learning_rate` below asks the wrapped optimizer.
        inner = _inner.check_inner(_inner.to_optimizer(optimizer))
        super().__init__(learning_rate=_no_rate, name=name)
        self.inner_optimizer = inner
        self._start_is_pending = False

    def build_copies(self, variables: list[Any], *, copy: bool) -> None:
        """Make the own variables, as copies of the weights or else as zeros."""
        raise NotImplementedError

    @property
    def copies(self) -> list[tuple[Any, Any]]:
        """Pairs of a weight and an own variable that starts as its copy."""
        raise NotImplementedError

    def after_update(self, changed: Any) -> None:
        """Act after a step of the wrapped optimizer.

        Args:
            changed: Whether the step changed weights; `None` where every step does.
        """
        raise NotImplementedError

    def build(self, variables: list[Any]) -> None:
        """Build the wrapped optimizer, and make the own variables."""
        if self.built:
            return
        with _variables.outside_of_functions():
            self._start_is_pending = not _variables.are_initialized(variables)
            self.inner_optimizer.build(variables)
            super().build(variables)
            self.build_copies(list(variables), copy=not self._start_is_pending)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Update the weights by the wrapped optimizer, then the own variables."""
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if not self.built:
                self.build(trainable_variables)
        if not grads:
            return
        if self._start_is_pending:
            self._start_copies()
        before = _inner.update_counts(self.inner_optimizer)
        self.inner_optimizer.apply(grads, trainable_variables)
        changed = _inner.counts_differ(
            before, _inner.update_counts(self.inner_optimizer)
        )
        if changed is None:
            self._own_count.assign_add(1)
        else:
            self._own_count.assign_add(ops.cast(changed, self._own_count.dtype))
        self.after_update(changed)

    def _start_copies(self) -> None:
        """Copy initial weights that had no values yet in `build`.

        A `tf.function` that makes variables is traced twice: they get their values
        after the first trace, and only the second program is run. If an initial value
        depends on the function's arguments, the first program makes the first step;
        then the copies start within it.
        """
        with _variables.outside_of_functions():
            if _variables.are_initialized([weight for weight, _ in self.copies]):
                self._start_is_pending = False
                if self.updates == 0:
                    for weight, own in self.copies:
                        own.assign(ops.cast(ops.copy(weight), own.dtype))
                return
        first = ops.equal(self._own_count, 0)
        for weight, own in self.copies:
            start = ops.cast(weight, own.dtype)
            own.assign(ops.where(first, start, ops.convert_to_tensor(own)))

    @property
    def updates(self) -> int:
        """Updates of the weights so far. Reads a counter from the device."""
        return int(ops.convert_to_numpy(self._own_count))

    @property
    def _own_count(self) -> Any:
        """The variable in which the base class counts steps; the subclass may too."""
        return super().iterations

    @property
    def _own_variables(self) -> list[Any]:
        """The variables that the wrapped optimizer does not have."""
        variables: list[Any] = super().variables
        return variables

    @property
    def variables(self) -> list[Any]:
        """Variables of this optimizer, then those of the wrapped one."""
        return [*self._own_variables, *self.inner_optimizer.variables]

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
        """Loss scale factor of the wrapped optimizer; can be set."""
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
        _check_shapes(self.variables, [tuple(weight.shape) for weight in weights])
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> OptimizerWrapper:
        """Make the optimizer that `get_config` described."""
        inner = keras.optimizers.deserialize(config["optimizer"], custom_objects)
        return cls(**{**config, "optimizer": inner})

    def save_own_variables(self, store: Any) -> None:
        """Write the own variables; Keras saves the wrapped optimizer by itself."""
        for index, variable in enumerate(self._own_variables):
            # HDF5 has no bfloat16; the bits come back by rounding.
            dtype = _variables.wide(variable.dtype)
            store[str(index)] = ops.convert_to_numpy(ops.cast(variable, dtype))

    def load_own_variables(self, store: Any) -> None:
        """Read the own variables.

        Raises:
            ValueError: If they were saved for a different network.
        """
        if not self.built or not len(store.keys()):
            # As every Keras optimizer does: it warns, and the weights still load.
            super().load_own_variables(store)
            return
        arrays = [store[str(index)] for index in range(len(store.keys()))]
        _check_shapes(self._own_variables, [tuple(array.shape) for array in arrays])
        for variable, array in zip(self._own_variables, arrays, strict=True):
            variable.assign(array)


def _check_shapes(variables: list[Any], found: list[Any]) -> None:
    expected = [tuple(variable.shape) for variable in variables]
    if found != expected:
        raise ValueError(
            "The averages to restore are of another network, or of another "
            f"optimizer: shapes {found} were found where {expected} are needed. "
            "Load into the network they were saved from, compiled with the same "
            "arguments, or load the weights before `compile`."
        )


def _no_rate() -> float:
    return 0.0
