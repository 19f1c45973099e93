"""Search spaces for Keras Tuner over fmkit's networks and their training.

`HyperMLP` and `HyperLeNet5` are `keras_tuner.HyperModel`s: give one to any tuner.
Every setting of a space is a fixed value, a list of values to choose from, or a
`Range`. Beyond Keras Tuner's own training loop, the batch size is tuned as well, the
same settings give the same score, the model that the tuner loads back has the reported
score, also with averaged weights, and failed trials are reported. `GridSearch` is
Keras Tuner's, but continues after an interruption.

This module loads `keras_tuner`; `import fmkit` doesn't. Write
`from fmkit import hypermodels`.
"""

# ruff: noqa: E402 - the others import it without asking whether it is there.

from fmkit._requirements import require

require("keras_tuner", "fmkit.hypermodels")

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
