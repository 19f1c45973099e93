"""The names that a `ThresholdStopping` reads from the logs, and those not there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from fmkit import _keras_private as private
from fmkit._checks import did_you_mean
from fmkit.callbacks._batch_validation import BatchValidation

if TYPE_CHECKING:
    from fmkit.callbacks._stopping._threshold_stopping import ThresholdStopping


def require_names(
    owner: ThresholdStopping, logs: Mapping[str, Any], batch: int | None
) -> None:
    """Refuse, or warn of, a name that is missing and was never seen."""
    owner._seen.update(logs)
    missing = _unseen(owner)
    if any(map(_of_validation, missing)) and _validation_follows(owner, logs, batch):
        missing = [name for name in missing if not _of_validation(name)]
    if not missing:
        return
    message = _missing_message(owner.name, missing, logs)
    if owner.on_missing == "error":
        raise ValueError(message)
    owner._seen.update(missing)
    warnings.warn(message, stacklevel=2)


def warn_of_unseen_names(owner: ThresholdStopping) -> None:
    """Say at the end of `fit` what was never in the logs when they were checked."""
    unseen = _unseen(owner)
    if owner._epoch is None or (owner._seen and not unseen):
        return
    rule = {
        "epoch": "at the end of an epoch",
        "validation": "after a validation: give `fit` its `validation_data`, or "
        "put a BatchValidation before this callback in the list",
    }.get(str(owner.every), f"every {owner.every} batches, on what the logs then hold")
    what = ", ".join(map(repr, unseen)) or "any value"
    warnings.warn(f"{owner.name} never saw {what}. It checks {rule}.", stacklevel=3)


def _unseen(owner: ThresholdStopping) -> list[str]:
    wanted = dict.fromkeys((*owner.condition.monitors, *(owner.check_finite or ())))
    return [name for name in wanted if name not in owner._seen]


def _of_validation(name: str) -> bool:
    return name.startswith("val_")


def _validation_follows(
    owner: ThresholdStopping, logs: Mapping[str, Any], batch: int | None
) -> bool:
    """Whether a validation that has not been yet may bring the missing names."""
    if batch is not None:
        return not any(map(_of_validation, logs))
    fit = private.running_fit(owner)
    if fit is None or owner._validated or owner._epoch is None:
        return False
    before = takewhile(lambda each: each is not owner, fit.callback_list.callbacks)
    return fit.validates_after(owner._epoch) or any(
        isinstance(each, BatchValidation) and not each.records for each in before
    )


def _missing_message(name: str, missing: list[str], logs: Mapping[str, Any]) -> str:
    hint = did_you_mean(missing[0], logs)
    if _of_validation(missing[0]) and not any(map(_of_validation, logs)):
        hint = (
            " There are no values of a validation, and none follow: give `fit` its "
            "`validation_data`, and no `validation_freq` above its `epochs`; in a loop "
            "that validates only in some epochs, use every='validation'."
        )
    return (
        f"{name} monitors {', '.join(map(repr, missing))}, which the logs don't have. "
        f"They have: {', '.join(map(repr, sorted(logs)))}.{hint}"
    )
