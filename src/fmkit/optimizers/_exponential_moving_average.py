"""TensorFlow 1's moving averages by their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from fmkit._checks import check_int, check_number
from fmkit.optimizers._rules import ExponentialRule
from fmkit.optimizers._weight_averages import WeightAverages

__all__ = ["ExponentialMovingAverage"]


@keras.saving.register_keras_serializable("fmkit")
class ExponentialMovingAverage(WeightAverages):
    r"""Optimizer that also averages the weights that another optimizer trains.

    After each update of the weights $w$, the average $s$ becomes

    $$s \leftarrow s - (1 - d_n)(s - w), \qquad
      d_n = \min\Bigl(\text{decay}, \frac{1 + n}{10 + n}\Bigr),$$

    with $n$ the number of updates. This is TensorFlow 1's
    `tf.train.ExponentialMovingAverage(decay, global_step)`: the averages start at the
    *initial* weights, and $d_n$ grows from 2/11 to `decay`, so they follow the weights
    closely in the beginning and smoothly later on. The model itself always holds the
    raw weights, also after `fit`; see `averaged` for the averages. `WeightAverages`
    keeps averages by other rules.

    Averages of float16 and bfloat16 weights are float32. Only steps that change the
    weights count: not those that accumulate gradients, nor those that a
    `LossScaleOptimizer` around this optimizer skips.

    Args:
        optimizer: The optimizer to wrap: a name, a config or an instance. It must not
            be built yet, nor use Keras's own `use_ema`. A `LossScaleOptimizer` goes
            around this optimizer, not inside.
        decay: Largest decay $0 \le d < 1$, for each update of the averages. A list
            keeps one average for each: `"ema_0.9"` for decay 0.9. The first is used
            where none is named.
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
        decay: float | Sequence[float] = 0.99,
        *,
        num_updates: str | None = "after",
        zero_debias: bool = False,
        start_step: int = 0,
        update_interval: int = 1,
        exclude: str | Sequence[str] = (),
        name: str | None = None,
    ):
        several = isinstance(decay, (list, tuple))
        decays: Any = decay if several else [decay]
        rules = [
            ExponentialRule(
                each,
                num_updates=num_updates,
                zero_debias=zero_debias,
                start_step=start_step,
                update_interval=update_interval,
            )
            for each in decays
        ]
        super().__init__(optimizer, rules, exclude=exclude, name=name)
        self.decay: Any = [rule.decay for rule in rules]
        if not several:
            (self.decay,) = self.decay
        self.num_updates = num_updates
        self.zero_debias = bool(zero_debias)
        self.start_step = int(start_step)
        self.update_interval = int(update_interval)

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
