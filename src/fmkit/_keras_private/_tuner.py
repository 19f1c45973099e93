"""The place on its grid that Keras Tuner's `GridSearch` does not save."""

from __future__ import annotations

import functools
from typing import Any

from fmkit._keras_private._pieces import attribute

__all__ = ["restore_grid"]


def restore_grid(oracle: Any) -> None:
    """Give a reloaded `GridSearchOracle` its place on the grid, from its trials.

    They stand in a linked list in the order of the grid. Each trial is asked once more
    for the next combination; what was tried already is passed over.
    """
    trials = oracle.trials
    compare = attribute(oracle, "_compare")
    attribute(oracle, "_populate_next")
    in_order = sorted(
        trials,
        key=functools.cmp_to_key(
            lambda a, b: compare(
                trials[a].hyperparameters.values, trials[b].hyperparameters.values
            )
        ),
    )
    ordered = type(attribute(oracle, "_ordered_ids"))()
    for trial_id in in_order:
        ordered.insert(trial_id)
    oracle._ordered_ids = ordered
    oracle._populate_next = in_order
