"""An optimizer around an optimizer that keeps averages of the weights.

`ExponentialMovingAverage` adds TensorFlow 1's moving averages to any Keras optimizer,
inside the compiled step. `averaged` puts the averages into the model for as long as a
`with` block lasts, and `averaged_model` returns a model that holds them for good.
"""

from fmkit.optimizers._averaged import averaged, averaged_model
from fmkit.optimizers._exponential_moving_average import ExponentialMovingAverage

__all__ = ["ExponentialMovingAverage", "averaged", "averaged_model"]
