"""The trials of a search as plain rows, and a check that none failed."""

from __future__ import annotations

from typing import Any

import keras_tuner

__all__ = ["check_trials", "trial_rows"]

_MANY = 1_000_000  # trials; more than any search has


def trial_rows(tuner: keras_tuner.Tuner) -> list[dict[str, Any]]:
    """Return one row for each trial of a search, the best first.

    For tables and for `fmkit.visualization.sweep`. Also works on a worker, while the
    chief is running.

    Args:
        tuner: A tuner of Keras Tuner, with any hypermodel.

    Returns:
        Dicts of the trial's hyperparameters and of

        - `trial`, `status`: its number, as text, and its final status;
        - `score`, `best_epoch`: the objective's best value and the number, from 1, of
          the epoch that reached it; `None` if it was not completed;
        - `epochs`: with Hyperband, how many epochs it chose;
        - `message`: why it failed, or an empty text.
    """
    return [_row(trial) for trial in tuner.oracle.get_best_trials(_MANY)]


def check_trials(tuner: keras_tuner.Tuner) -> None:
    """Raise if a trial of a search failed, or none was completed.

    Keras Tuner's own `search` returns normally when trials have failed, unless three
    failed in a row.

    Args:
        tuner: A tuner whose `search` has returned.

    Raises:
        RuntimeError: With the number and the reason of each failed trial.
    """
    rows = trial_rows(tuner)
    done = [row for row in rows if row["status"] == "COMPLETED"]
    failed = [row for row in rows if row["status"] in ("FAILED", "INVALID")]
    if done and not failed:
        return
    reasons = "\n".join(
        f"  trial {row['trial']}: {_last_line(row['message'])}" for row in failed
    )
    raise RuntimeError(
        f"{len(failed)} of {len(rows)} trials failed, {len(done)} were completed."
        + (f"\n{reasons}" if reasons else " Call tuner.search(...) first.")
    )


def _row(trial: Any) -> dict[str, Any]:
    values = dict(trial.hyperparameters.values)
    if "tuner/epochs" in values:
        values["epochs"] = values["tuner/epochs"]
    done = trial.status == "COMPLETED"
    # A later round of Hyperband begins where the previous one ended.
    first = values.get("tuner/initial_epoch", 0) + 1
    return {
        "trial": trial.trial_id,
        "status": trial.status,
        "score": float(trial.score) if done else None,
        "best_epoch": int(trial.best_step) + first if done else None,
        **{k: v for k, v in values.items() if not k.startswith("tuner/")},
        "message": trial.message or "",
    }


def _last_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[-1] if lines else "no reason was recorded (its score was not a number)"
