"""`GridSearch`: Keras Tuner's, for searches that are interrupted."""

from __future__ import annotations

from typing import Any

import keras_tuner

from fmkit import _keras_private as private

__all__ = ["GridSearch"]


class GridSearch(keras_tuner.GridSearch):
    """Keras Tuner's `GridSearch`, which continues after an interruption.

    The oracle of Keras Tuner 1.4.8 doesn't save its position on the grid: a search
    that was killed, or whose chief was, ends with a `KeyError` when it is restarted.
    Here the position is found from the saved trials. Everything else is Keras
    Tuner's.

    Args:
        hypermodel: What to search over, such as `HyperMLP`.
        objective: Name of a logged value, such as `"val_accuracy"`, or a
            `keras_tuner.Objective`.
        **options: The other arguments of `keras_tuner.GridSearch`: `max_trials`,
            `directory`, `project_name` and so on.

    Examples:
        >>> import tempfile
        >>> from fmkit.hypermodels import GridSearch, HyperMLP
        >>> space = HyperMLP(depth=1, per_layer=False, units=[16, 32], batch_size=64,
        ...                  optimizer="sgd", activation="relu", learning_rate=0.1,
        ...                  loss="crossentropy", l2=0.0, dropout=0.0)
        >>> tuner = GridSearch(space, "val_accuracy", directory=tempfile.mkdtemp())
        >>> tuner.oracle.get_space().get("units")  # where the grid begins
        16
    """

    def __init__(
        self,
        hypermodel: keras_tuner.HyperModel,
        objective: str | keras_tuner.Objective,
        **options: Any,
    ) -> None:
        super().__init__(hypermodel, objective, **options)
        # A worker has none: it asks the chief.
        if isinstance(self.oracle, keras_tuner.oracles.GridSearchOracle):
            private.restore_grid(self.oracle)
