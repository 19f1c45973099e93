"""The names that a `ThresholdStopping` reads, and those that the logs don't have."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from typing import Any

import keras

from fmkit import _keras_private as private
from fmkit._checks import did_you_mean
from fmkit.callbacks._batch_validation import BatchValidation


class MonitoredNames:
    """The names that a callback monitors, and what the logs have had so far.

    Args:
        owner: Name of the callback, for the messages.
        wanted: The names it monitors.
    """

    def __init__(self, owner: str, wanted: Iterable[str]) -> None:
        self._owner = owner
        self._wanted = list(dict.fromkeys(wanted))
        self.seen: set[str] = set()

    def _unseen(self) -> list[str]:
        return [name for name in self._wanted if name not in self.seen]

    def require(
        self,
        logs: Mapping[str, Any],
        *,
        on_missing: str,
        awaits_validation: Callable[[], bool],
    ) -> None:
        """Refuse, or warn of, a name that the logs have never had.

        Names of a validation are not missing as long as `awaits_validation` says that
        one is still to come. A warning is given once.
        """
        self.seen.update(logs)
        missing = self._unseen()
        if has_validation(missing) and awaits_validation():
            missing = [name for name in missing if not _is_of_validation(name)]
        if not missing:
            return
        message = _missing_message(self._owner, missing, logs)
        if on_missing == "error":
            raise ValueError(message)
        self.seen.update(missing)
        warnings.warn(message, stacklevel=2)

    def warn_of_unseen(self, every: str | int) -> None:
        """Warn of names that no check has found in the logs."""
        unseen = self._unseen()
        if self.seen and not unseen:
            return
        rule = {
            "epoch": "at the end of an epoch",
            "validation": "after a validation: give `fit` its `validation_data`, or "
            "put a BatchValidation before this callback in the list",
        }.get(str(every), f"every {every} batches, on what the logs then hold")
        what = ", ".join(map(repr, unseen)) or "any value"
        message = f"{self._owner} never saw {what}. It checks {rule}."
        warnings.warn(message, stacklevel=3)


def has_validation(names: Iterable[str]) -> bool:
    """Return whether one of the names is that of a value of a validation."""
    return any(map(_is_of_validation, names))


def fit_has_yet_to_validate(callback: keras.callbacks.Callback, epoch: int) -> bool:
    """Return whether a validation after `epoch` may bring `callback` its values."""
    fit = private.running_fit(callback)
    if fit is None:
        return False
    before = takewhile(lambda each: each is not callback, fit.callback_list.callbacks)
    return fit.validates_after(epoch) or any(
        isinstance(each, BatchValidation) and not each.records for each in before
    )


def _is_of_validation(name: str) -> bool:
    return name.startswith("val_")


def _missing_message(owner: str, missing: list[str], logs: Mapping[str, Any]) -> str:
    hint = did_you_mean(missing[0], logs)
    if _is_of_validation(missing[0]) and not has_validation(logs):
        hint = (
            " There are no values of a validation, and none follow: give `fit` its "
            "`validation_data`, and no `validation_freq` above its `epochs`; in a loop "
            "that validates only in some epochs, use every='validation'."
        )
    return (
        f"{owner} monitors {', '.join(map(repr, missing))}, which the logs don't have. "
        f"They have: {', '.join(map(repr, sorted(logs)))}.{hint}"
    )
