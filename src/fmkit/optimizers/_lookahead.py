"""The optimizer that looks ahead: fast weights that are drawn back to slow ones."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fmkit._checks import check_int, check_number
from fmkit.optimizers import _variables
from fmkit.optimizers._wrapper import OptimizerWrapper

__all__ = ["Lookahead"]


@keras.saving.register_keras_serializable("fmkit")
class Lookahead(OptimizerWrapper):
    r"""Optimizer that lets another run ahead, and goes part of its way.

    The wrapped optimizer trains the (fast) weights $w$. After each $k$ of its updates
    the slow weights $\phi$, which start at the initial ones, follow, and the weights
    start again from there:

    $$\phi \leftarrow \phi + \alpha (w - \phi), \qquad w \leftarrow \phi.$$

    Between two of these the model holds the fast weights: let an epoch have a multiple
    of $k$ updates if the slow ones are to be validated and saved. `WeightAverages` and
    `LossScaleOptimizer` go around this optimizer. Only updates that change the weights
    count, not steps that accumulate gradients. The slow weights of float16 and bfloat16
    weights are float32.

    Args:
        optimizer: The optimizer to wrap: a name, a config or an instance, not built.
        sync_period: $k$, in updates of the weights.
        slow_step_size: $0 < \alpha \le 1$.
        name: Name of the optimizer.

    Attributes:
        inner_optimizer: The wrapped optimizer.

    Raises:
        TypeError: If `optimizer` is not an optimizer, nor the name or config of one.
        ValueError: If an argument is outside its range, or `optimizer` can't be
            wrapped.

    Examples:
        >>> optimizer = Lookahead("sgd", sync_period=5)
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer, "mse")

    References:
        Zhang et al., [*Lookahead optimizer: k steps forward, 1 step
        back*](https://arxiv.org/abs/1907.08610), 2019.
    """

    def __init__(
        self,
        optimizer: Any,
        sync_period: int = 6,
        slow_step_size: float = 0.5,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(optimizer, name=name)
        self.sync_period = check_int("sync_period", sync_period)
        self.slow_step_size = check_number(
            "slow_step_size", slow_step_size, above=0, at_most=1
        )

    def build_copies(self, variables: list[Any], *, copy: bool) -> None:
        """Make the slow weights."""
        self._slow = [
            _variables.add_copy(self, variable, "_slow", copy=copy)
            for variable in variables
        ]
        self._weights = _variables.Untracked(variables)

    @property
    def copies(self) -> list[tuple[Any, Any]]:
        """Pairs of a weight and the variable that holds its slow weight."""
        return list(zip(self._weights.variables, self._slow, strict=True))

    def after_update(self, changed: Any) -> None:
        """After each `sync_period` updates, move the slow weights, and start there."""
        due = ops.equal(self._own_count % self.sync_period, 0)
        if changed is not None:
            due = ops.logical_and(due, changed)
        for weight, slow in self.copies:
            fast, old = ops.cast(weight, slow.dtype), ops.convert_to_tensor(slow)
            new = ops.where(due, old + self.slow_step_size * (fast - old), old)
            slow.assign(new)
            own = ops.convert_to_tensor(weight)
            start = ops.where(due, ops.cast(new, own.dtype), own)
            _variables.assign_to_replicas(weight, start)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            "optimizer": keras.optimizers.serialize(self.inner_optimizer),
            "sync_period": self.sync_period,
            "slow_step_size": self.slow_step_size,
            "name": self.name,
        }
