"""An optimizer that stands for the optimizer inside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

__all__ = ["OptimizerWrapper"]


class OptimizerWrapper(keras.optimizers.Optimizer):
    """Passes what users and Keras ask of an optimizer to the one inside.

    A subclass adds variables of its own with `add_variable`, and defines `apply`.

    Args:
        optimizer: The optimizer to wrap.
        name: Name of the wrapper.

    Attributes:
        inner_optimizer: The wrapped optimizer.
    """

    def __init__(self, optimizer: Any, *, name: str | None = None) -> None:
        # A callable rate keeps Keras from adding a learning-rate variable that
        # nothing would read; `learning_rate` below asks the wrapped optimizer.
        super().__init__(learning_rate=_no_rate, name=name)
        self.inner_optimizer = optimizer

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

    def save_own_variables(self, store: Any) -> None:
        """Write the own variables; Keras saves the wrapped optimizer by itself."""
        for index, variable in enumerate(self._own_variables):
            store[str(index)] = ops.convert_to_numpy(variable)

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
