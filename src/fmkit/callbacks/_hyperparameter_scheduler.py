"""Momentum, weight decay, dropout: numbers that follow a schedule in the step."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from fmkit import _keras_private as private
from fmkit._checks import check_int, or_none
from fmkit._describe import describe
from fmkit._swap import leaves
from fmkit.callbacks._saved_settings import check_settings
from fmkit.callbacks._traced_number import TracedNumber

__all__ = ["HyperparameterScheduler"]

# The smallest normal float32. PyTorch's steps ask whether a momentum is 0, and then
# leave the velocity as it is.
_TINY = 2.0**-126


class HyperparameterScheduler(keras.callbacks.Callback):
    """Lets a number of the optimizer, a layer or a loss follow a schedule.

    Momentum, weight decay, a dropout rate, label smoothing: whatever a training step
    reads as an attribute. Keras compiles such a number into the step as a constant, so
    that setting the attribute later has no effect. Here the step computes it from the
    optimizer's count of steps, as it computes a learning rate: exact in every step
    of an execution and in `performance.FusedModel`, and the same after a resume. With
    `gradient_accumulation_steps` Keras counts every batch there, and so does this.

    The attribute itself keeps the number that it was given, for saving, for
    `evaluate`, and after `fit`. What Python decides once, such as whether to keep a
    velocity at all, it decides for that number, so it must not be 0. An attribute that
    the step doesn't read is an error. `fit` compiles the step anew.

    On PyTorch layers get a Python number. `FusedModel` makes a graph for each of the
    first eight values of it; later ones are left to Python, and until `fit` ends
    `why_not_fused` says so.

    Args:
        name: Name of the attribute, such as `"momentum"`, `"beta_1"`, `"weight_decay"`
            or `"rate"`.
        schedule: Of `fmkit.schedules` or Keras, or another function of the count of
            steps (an integer tensor, from 0 up) in operations of `keras.ops`.
        of: The layer or loss with this attribute, an optimizer, or a list of them. By
            default the model's optimizer, inside of any wrapper, or each of several.
        steps_per_epoch: Count in epochs of so many steps: the schedule is called
            with the number of whole epochs. `None` counts steps.

    Raises:
        TypeError: If `schedule` can't be called.
        ValueError: As training begins, if the attribute is no number other than 0; in
            the first step (on PyTorch after the first epoch), if no step reads it.

    Examples:
        >>> from keras import ops
        >>> from fmkit.schedules import PolynomialDecay
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        >>> falling = HyperparameterScheduler("momentum", PolynomialDecay(0.9, 100))
        >>> history = model.fit(
        ...     ops.ones((4, 1)), ops.ones((4, 1)), verbose=0, callbacks=[falling])
    """

    def __init__(
        self,
        name: str,
        schedule: Callable[[Any], Any],
        *,
        of: Any = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        if not callable(schedule):
            raise TypeError(
                "`schedule` must be a schedule or a function of the step, got "
                f"schedule={schedule!r}."
            )
        self.name, self.schedule, self.of = name, schedule, of
        self.steps_per_epoch = or_none(check_int, "steps_per_epoch", steps_per_epoch)
        self._numbers: list[_Number] = []
        self._function: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the attributes."""
        owners, model = self.of, private.model_of(self)
        if owners is None:
            owners = leaves(getattr(model, "optimizer", None))
        owners = owners if isinstance(owners, (list, tuple)) else [owners]
        self._numbers = [_Number(owner, self.name) for owner in owners]
        self._function = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Let the steps of this epoch be those with the schedule."""
        if not private.around_steps(self, self._in_steps):
            raise RuntimeError(
                "HyperparameterScheduler works inside `model.fit`: pass it as "
                "fit(..., callbacks=[HyperparameterScheduler(...)])."
            )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Let go of the compiled step."""
        self._numbers, self._function = [], None

    @contextlib.contextmanager
    def _in_steps(self) -> Iterator[None]:
        """Give the model a train function of its own, and afterwards the old one."""
        model: Any = private.model_of(self)
        step = model.train_step

        def scheduled(*given: Any) -> Any:
            return self._scheduled(model, step, given)

        function = self._function
        with private.train_step_replaced(model, scheduled, function) as self._function:
            yield
        self._check_use()

    def _scheduled(self, model: Any, step: Any, given: Any) -> Any:
        """Make a step, or trace one, in which the attributes have their values."""
        value = self._value(model.optimizer, given)
        with contextlib.ExitStack() as stack:
            for number in self._numbers:
                stack.enter_context(number.set_to(value))
            logs = step(*given)
        # On PyTorch a step that accumulates gradients may read less than others.
        if keras.backend.backend() != "torch":
            self._check_use()
        return logs

    def _value(self, optimizer: Any, given: Any) -> Any:
        scope: Any = contextlib.nullcontext()
        if keras.backend.backend() == "jax":
            # There a step is given the values of all variables.
            _, _, values, _ = given[0]
            scope = keras.StatelessScope(zip(optimizer.variables, values, strict=True))
        with scope:
            part = leaves(optimizer)[0]
            count = ops.convert_to_tensor(private.count_of_schedules(part))
        if self.steps_per_epoch is not None:
            count = count // self.steps_per_epoch
        return ops.cast(self.schedule(count), "float32")

    def _check_use(self) -> None:
        for number in self._numbers:
            if not number.reads:
                raise ValueError(
                    f"No training step reads `{self.name}` of {number.kind.__name__}, "
                    "so a schedule of it would have no effect. Keras has put the "
                    "number elsewhere, or the object is no part of this model."
                )

    def get_state(self) -> dict[str, Any]:
        """Return the settings; the count of steps is the optimizer's."""
        return {"settings": self._settings()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Check that the settings are those of `state`.

        Raises:
            ValueError: If they are not.
        """
        check_settings(type(self).__name__, state, self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "schedule": describe(self.schedule),
            "steps_per_epoch": self.steps_per_epoch,
        }


class _Number:
    """An attribute that has another value within a step, and nowhere else."""

    def __init__(self, owner: Any, name: str) -> None:
        given = getattr(owner, name, None)
        if (
            isinstance(given, bool)
            or not isinstance(given, numbers.Real)
            or float(given) == 0
        ):
            raise ValueError(
                f"`{name}` of {type(owner).__name__} must be a number other than 0 to "
                f"follow a schedule, got {given!r}: what is 0 or None, Keras leaves "
                "out of the step. Make the object with a number, such as SGD(0.1, "
                "momentum=0.9). A learning rate takes the schedule itself."
            )
        self.owner, self.name, self.given = owner, name, float(given)
        self.kind = type(owner)
        self.reads = 0
        self._value: Any = None
        self._classes: tuple[type, type] | None = None

    @contextlib.contextmanager
    def set_to(self, value: Any) -> Iterator[None]:
        """Let the attribute be `value`, a float32 scalar tensor, within the block."""
        if self._classes is None:
            kind = type(self.owner)
            members = {self.name: property(self._read), "__module__": kind.__module__}
            self._classes = kind, type(kind.__name__, (kind,), members)
        kind, watched = self._classes
        self._value = self._for_owner(value)
        # Not by `setattr`, with which layers and optimizers track what they hold.
        object.__setattr__(self.owner, "__class__", watched)
        try:
            yield
        finally:
            object.__setattr__(self.owner, "__class__", kind)

    def _read(self, owner: Any) -> Any:
        self.reads += 1
        return self._value

    def _for_owner(self, value: Any) -> Any:
        is_layer = isinstance(self.owner, keras.layers.Layer)
        if keras.backend.backend() == "torch":
            value = ops.where(ops.equal(value, 0.0), _TINY, value)
            return value.item() if is_layer else value
        if is_layer:
            value = ops.cast(value, self.owner.compute_dtype)
        return TracedNumber(self.given, value)
