"""The arguments of `ThresholdStopping` that say how it counts, validated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from fmkit._checks import check_int, check_number, check_one_of

# What has a meaning only if there is something to reach.
_FOR_A_THRESHOLD = (
    "count",
    "consecutive",
    "start_epoch",
    "start_step",
    "patience",
    "min_delta",
    "within",
    "divergence_threshold",
    "restore",
    "progress",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a `ThresholdStopping` checks; its docstring explains each of the names.

    The defaults are those of `ThresholdStopping`, except that `check_finite` is
    `None` for no name and an empty tuple for all names.
    """

    every: str | int = "epoch"
    count: int = 1
    consecutive: bool = True
    start_epoch: int = 0
    start_step: int = 0
    patience: int = 0
    min_delta: float = 0.0
    within: int | None = None
    divergence_threshold: float | None = None
    check_finite: tuple[str, ...] | None = None
    on_nonfinite: str = "stop"
    restore: str | None = None
    on_missing: str = "error"
    progress: bool = False

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_words()
        if self.on_nonfinite == "error" and self.check_finite is None:
            raise ValueError(
                "on_nonfinite='error' says what `check_finite` does: add "
                "check_finite=True, or the names to look at."
            )

    def _check_numbers(self) -> None:
        if isinstance(self.every, str):
            self._set(
                "every", check_one_of("every", self.every, ["epoch", "validation"])
            )
        else:
            self._set("every", check_int("every", self.every))
        self._set("count", check_int("count", self.count))
        for name in ("start_epoch", "start_step", "patience"):
            self._set(name, check_int(name, getattr(self, name), minimum=0))
        self._set("min_delta", check_number("min_delta", self.min_delta, at_least=0.0))
        limit = self.divergence_threshold
        if limit is not None:
            limit = check_number("divergence_threshold", limit)
        self._set("divergence_threshold", limit)
        if self.within is not None:
            within = check_int("within", self.within, minimum=self.count)
            self._set("within", within)

    def _check_words(self) -> None:
        check_one_of("on_nonfinite", self.on_nonfinite, ["stop", "error"])
        if self.restore is not None:
            check_one_of("restore", self.restore, ["best", "reaching"])
        check_one_of("on_missing", self.on_missing, ["error", "warn"])
        self._set("consecutive", bool(self.consecutive))
        self._set("progress", bool(self.progress))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def refuse_what_needs_a_threshold(self) -> None:
        """Raise an error for arguments without effect if there is nothing to reach."""
        defaults = {field.name: field.default for field in fields(self)}
        unused = [
            name for name in _FOR_A_THRESHOLD if getattr(self, name) != defaults[name]
        ]
        if unused:
            raise ValueError(
                f"Without a threshold {', '.join(map('`{}`'.format, unused))} would "
                "have no effect: leave it out, or say what is to be reached, as in "
                "ThresholdStopping('val_accuracy', 0.95, check_finite=True)."
            )


def finite_names(check_finite: bool | Iterable[str]) -> tuple[str, ...] | None:
    """Return the names to look at: `None` for none, an empty tuple for all."""
    if isinstance(check_finite, bool):
        return () if check_finite else None
    if isinstance(check_finite, str):
        return (check_finite,)
    return tuple(check_finite) or None
