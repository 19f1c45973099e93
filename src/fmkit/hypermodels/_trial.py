"""One trial inside Keras Tuner: its callbacks, its directory, its objective."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner import errors

from fmkit._checks import did_you_mean
from fmkit.callbacks import EvaluateWithAverages, ExactResume


class Trial:
    """What the tuner passes to a hypermodel's `fit`, read from its callbacks.

    Args:
        passed: The callbacks, with Keras Tuner's own two at the end; without those
            two, `fit` is called by hand and there is nothing to check.
        hp: The hyperparameters of the trial.
        resume: `every` of `ExactResume`, or `None`.
    """

    def __init__(
        self,
        passed: list[Any],
        hp: keras_tuner.HyperParameters,
        *,
        resume: int | str | None = None,
    ) -> None:
        self.passed = passed
        self.hp = hp
        self.resume = resume
        # Recognised by what they have: their classes are private to Keras Tuner.
        self.saver = _find_with_attributes(
            passed, "objective", "filepath", "best_value"
        )
        link = _find_with_attributes(passed, "tuner", "trial")
        self.tuner = getattr(link, "tuner", None)
        self.trial_id = link.trial.trial_id if link is not None else None
        if self.tuner is not None:
            self._check_executions()
            # Otherwise a search killed in its first trial starts from scratch: Keras
            # Tuner looks for this file, and writes it only after a trial.
            self.tuner.save()

    def callbacks(self, *, averages: bool) -> list[Any]:
        """Return the callbacks of this trial's `fit`."""
        result = [
            _BestEpoch(self.saver) if each is self.saver else each
            for each in self.passed
        ]
        if averages:
            result.insert(0, EvaluateWithAverages())
        if self.resume is not None:
            result.append(ExactResume(self._directory(), self.resume, keep=1))
        return result

    def check_objective(self, *, validated: bool, penalised: list[str]) -> None:
        """Refuse an objective that will be missing, or that can't compare trials."""
        for name in self._objectives():
            if name.startswith("val_") and not validated:
                raise errors.FatalValueError(
                    f"The objective is {name!r}, and `search` got no validation_data. "
                    "Pass search(x, y, validation_data=(x_val, y_val))."
                )
            if name in ("loss", "val_loss") and penalised:
                raise errors.FatalValueError(
                    f"The objective {name!r} can't compare trials: {penalised} is "
                    "searched over and changes the objective directly. Use "
                    "'val_accuracy' or 'val_crossentropy', or fix the setting."
                )

    def check_finite(self, history: keras.callbacks.History) -> None:
        """Fail the trial, with a reason, if its objective was never finite."""
        for name in self._objectives():
            values = [float(value) for value in history.history.get(name, [])]
            if values and not any(math.isfinite(value) for value in values):
                raise errors.FailedTrialError(
                    f"Trial {self.trial_id} diverged: {name} was {values[-1]} in all "
                    f"{len(values)} epochs. The trial's settings: {self.hp.values}"
                )

    def _objectives(self) -> list[str]:
        if self.saver is None:
            return []
        objective = self.saver.objective
        return list(getattr(objective, "name_to_direction", [objective.name]))

    def _check_executions(self) -> None:
        executions = getattr(self.tuner, "executions_per_trial", 1)
        if executions > 1:
            raise errors.FatalValueError(
                f"executions_per_trial={executions} would train the same bits "
                f"{executions} times, since the seed is part of the trial, and report "
                "a mean that no saved model has. Search over seeds instead: "
                "`seed=[0, 1, 2]`."
            )

    def _directory(self) -> Path:
        if self.tuner is None:
            raise ValueError(
                f"resume={self.resume!r} needs the trial's directory, which only a "
                "tuner's `search` has. Without a tuner, pass an ExactResume to `fit`."
            )
        # Named by the settings too: without its own seed, a search that lost its
        # records gives the same number to a different trial.
        settings = json.dumps(self.hp.values, sort_keys=True)
        name = hashlib.sha256(settings.encode()).hexdigest()[:12]
        folder = os.fspath(self.tuner.get_trial_dir(self.trial_id))
        return Path(folder) / f"resume-{name}"


class _BestEpoch(keras.callbacks.Callback):
    """Keras Tuner's saver of the best epoch, with the state that a resume needs.

    Without it a trial that resumes after a kill would take the next epoch for its
    best, and save that epoch's weights under an earlier epoch's score.
    """

    def __init__(self, saver: Any) -> None:
        super().__init__()
        self.saver = saver

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.saver.set_model(model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        objective, logs = self.saver.objective, logs or {}
        if not objective.has_value(logs):
            raise errors.FatalValueError(
                f"The objective {objective.name!r} is not among the results of an "
                f"epoch, {sorted(logs)}.{did_you_mean(objective.name, logs)}"
            )
        self.saver.on_epoch_end(epoch, logs)

    def get_state(self) -> dict[str, Any]:
        # An array, since infinity has no place in JSON.
        return {"best_value": np.array(self.saver.best_value, "float64")}

    def set_state(self, state: dict[str, Any]) -> None:
        self.saver.best_value = float(state["best_value"])


def _find_with_attributes(callbacks: list[Any], *attributes: str) -> Any:
    for each in callbacks:
        if all(hasattr(each, name) for name in attributes):
            return each
    return None
