"""Search spaces for Keras Tuner over fmkit's networks, and how their trials train.

`HyperMLP` and `HyperLeNet5` are `keras_tuner.HyperModel`s: give one to any tuner.
Every setting of a space is a fixed value, a list of values to choose from, or a
`Range`. What they promise beyond Keras Tuner's own loop: the batch size is really
tuned, the same settings give the same score, the model that the tuner loads back
scores what was reported, also with averaged weights, and a trial that breaks is
heard of. `GridSearch` is Keras Tuner's, made to go on after an interruption.

This module loads `keras_tuner`; `import fmkit` doesn't. Write
`from fmkit import hypermodels`.
"""

from fmkit.hypermodels._classifier import HyperClassifier
from fmkit.hypermodels._grid_search import GridSearch
from fmkit.hypermodels._ranges import Range
from fmkit.hypermodels._spaces import HyperLeNet5, HyperMLP
from fmkit.hypermodels._trials import check_trials, trial_rows

__all__ = [
    "GridSearch",
    "HyperClassifier",
    "HyperLeNet5",
    "HyperMLP",
    "Range",
    "check_trials",
    "trial_rows",
]
