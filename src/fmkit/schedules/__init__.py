"""Learning-rate schedules that change at exactly the step they promise.

Each makes a `LearningRateSchedule` for `keras.optimizers.*(learning_rate=...)`. Steps
are counted in integers; all but `CyclicDecay` may begin with a warm-up.
`ExponentialDecay` is TensorFlow 1's formula, `CyclicDecay` the one of stochastic weight
averaging; `join` runs schedules one after another. A constant rate is a number, for
the optimizer and for `join`; with a warm-up it is a `WarmupStableDecay` whose
`end_value` is the rate.
`visualization.learning_rate_curve` draws any schedule, and
`callbacks.HyperparameterScheduler` gives one to a momentum, a weight decay, a dropout
rate.
"""

from fmkit.schedules._decay import CyclicDecay, ExponentialDecay, join
from fmkit.schedules._shapes import (
    CosineDecay,
    CosineDecayRestarts,
    InverseSquareRoot,
    OneCycle,
    OneCycleMomentum,
    PolynomialDecay,
    WarmupStableDecay,
)

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "CyclicDecay",
    "ExponentialDecay",
    "InverseSquareRoot",
    "OneCycle",
    "OneCycleMomentum",
    "PolynomialDecay",
    "WarmupStableDecay",
    "join",
]
