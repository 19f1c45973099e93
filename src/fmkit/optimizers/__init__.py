"""An optimizer around an optimizer that keeps averages of the weights.

`WeightAverages` adds averages by one rule or several to any Keras optimizer, inside the
compiled step; `ExponentialMovingAverage` is TensorFlow 1's, by its arguments.
`averaged` puts averages into the model for as long as a `with` block lasts, and
`averaged_model` returns a model that holds them for good. `Lookahead` trains with an
average of its own.
"""

from fmkit.optimizers._averaged import averaged, averaged_model
from fmkit.optimizers._exponential_moving_average import ExponentialMovingAverage
from fmkit.optimizers._lookahead import Lookahead
from fmkit.optimizers._rules import (
    AverageRule,
    EqualRule,
    ExponentialRule,
    PowerRule,
    WarmupRule,
)
from fmkit.optimizers._weight_averages import WeightAverages

__all__ = [
    "AverageRule",
    "EqualRule",
    "ExponentialMovingAverage",
    "ExponentialRule",
    "Lookahead",
    "PowerRule",
    "WarmupRule",
    "WeightAverages",
    "averaged",
    "averaged_model",
]
