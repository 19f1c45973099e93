"""Exponential and cyclic decay, and schedules one after another."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from fmkit._checks import check_int, check_number, or_none
from fmkit.schedules._counts import (
    LARGEST_DENOMINATOR,
    InEpochs,
    integer_tensor,
    is_before,
    is_beyond,
    not_negative,
    place_in_cycle,
    steps_since,
)

__all__ = ["CyclicDecay", "ExponentialDecay", "join"]

# Three times a numerator must fit int32, the integer of JAX.
_LARGEST_NUMERATOR = 2**29


@keras.saving.register_keras_serializable("fmkit")
class ExponentialDecay(LearningRateSchedule):
    r"""Learning rate that falls by a constant factor every `decay_steps` steps.

    With rate $\eta_0$, factor $r$, period $T$ and $n$ steps since the decay began,

    $$\eta(n) = \eta_0\, r^{\,n/T}, \qquad
      \text{or, with `staircase`,}\quad \eta(n) = \eta_0\, r^{\lfloor n/T \rfloor}.$$

    This is TensorFlow 1's `tf.train.exponential_decay`. The quotient is taken in
    integers, so each stair comes at exactly its step: up to $2^{53}$ for Python
    integers and TensorFlow's counter, up to the end of an int32 on JAX and PyTorch.
    Keras's class of this name divides in float32 and steps too early at large counts.

    The decay may be preceded by a linear warm-up of `warmup_steps` steps from
    `warmup_initial` to $\eta_0$ and then by `transition_begin` steps at $\eta_0$; $n$
    counts from the end of both.

    Args:
        initial_learning_rate: $\eta_0 > 0$.
        decay_steps: Period $T > 0$ in optimizer steps, not epochs. A whole number, a
            `fractions.Fraction`, a pair `(numerator, denominator)`, or a float, which
            is read as the nearest fraction with a denominator up to 65,536: so
            `60000 / 128` steps at the first step after each multiple of 468.75.
        decay_rate: Factor $r > 0$; above 1 the rate grows.
        staircase: Whether the rate is constant between multiples of `decay_steps`.
        end_value: Where the rate stops changing: its lower bound for $r < 1$, its upper
            bound for $r > 1$. At $r = 1$ nothing changes. `None` sets no bound.
        transition_begin: Steps at $\eta_0$ before the decay begins.
        warmup_steps: Steps of linear warm-up; step 0 has the rate `warmup_initial`.
        warmup_initial: Rate at step 0 of the warm-up.

    Raises:
        ValueError: If an argument is outside its range.
        TypeError: If an argument is not a number, or a step is not an integer.

    Examples:
        >>> schedule = ExponentialDecay(0.1, 100, 0.5, staircase=True)
        >>> [round(float(schedule(step)), 4) for step in (0, 99, 100, 200)]
        [0.1, 0.1, 0.05, 0.025]

        The tutorial's form, 60,000 images in batches of 100, a stair for each epoch:

        >>> schedule = ExponentialDecay.from_epochs(
        ...     0.1, 0.99, num_examples=60_000, batch_size=100, staircase=True)
        >>> [round(float(schedule(step)), 4) for step in (599, 600)]
        [0.1, 0.099]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float | Fraction | Sequence[int],
        decay_rate: float,
        staircase: bool = False,
        *,
        end_value: float | None = None,
        transition_begin: int = 0,
        warmup_steps: int = 0,
        warmup_initial: float = 0.0,
    ):
        self.initial_learning_rate = check_number(
            "initial_learning_rate", initial_learning_rate, above=0
        )
        self.decay_steps = _read_decay_steps(decay_steps)
        self.decay_rate = check_number("decay_rate", decay_rate, above=0)
        self.staircase = bool(staircase)
        self.end_value = or_none(check_number, "end_value", end_value, at_least=0)
        self._check_end_value()
        self.transition_begin = check_int(
            "transition_begin", transition_begin, minimum=0
        )
        self.warmup_steps = check_int("warmup_steps", warmup_steps, minimum=0)
        self.warmup_initial = check_number("warmup_initial", warmup_initial, at_least=0)

    @classmethod
    def from_epochs(
        cls,
        initial_learning_rate: float,
        decay_rate: float,
        *,
        num_examples: int | None = None,
        batch_size: int | None = None,
        steps_per_epoch: float | None = None,
        epochs_per_decay: int = 1,
        staircase: bool = False,
        end_value: float | None = None,
        begin_epochs: int = 0,
        warmup_epochs: int = 0,
        warmup_initial: float = 0.0,
    ) -> ExponentialDecay:
        """Build the schedule from epochs, as the tutorial does.

        The period is `epochs_per_decay * num_examples / batch_size` steps, kept as an
        exact fraction. If `batch_size` does not divide `num_examples`, `fit` on arrays
        ends each epoch with a smaller batch and so has slightly more steps per epoch:
        `steps_per_epoch=len(batches)` counts those.

        Args:
            initial_learning_rate: As in the class.
            decay_rate: As in the class.
            num_examples: Size of the training set.
            batch_size: Examples in one step.
            steps_per_epoch: Optimizer steps of one epoch, in place of these two.
            epochs_per_decay: Epochs in one period.
            staircase: As in the class.
            end_value: As in the class.
            begin_epochs: Epochs at the initial rate, rounded up to whole steps.
            warmup_epochs: Epochs of linear warm-up, rounded up to whole steps.
            warmup_initial: As in the class.

        Returns:
            The schedule, counted in steps.

        Raises:
            ValueError: If an argument is outside its range, or if neither or both of
                `num_examples` with `batch_size` and `steps_per_epoch` are given.
            TypeError: If an argument is not a number.
        """
        given = num_examples, batch_size, steps_per_epoch
        are_given = [value is not None for value in given]
        if are_given not in ([True, True, False], [False, False, True]):
            raise ValueError(
                "Pass either num_examples=60_000, batch_size=100 or "
                f"steps_per_epoch=600, got num_examples={num_examples}, "
                f"batch_size={batch_size}, steps_per_epoch={steps_per_epoch}."
            )
        if steps_per_epoch is None:
            size = check_int("num_examples", num_examples)
            epoch = Fraction(size, check_int("batch_size", batch_size))
        else:
            steps = check_number("steps_per_epoch", steps_per_epoch, above=0)
            epoch = Fraction(steps).limit_denominator(LARGEST_DENOMINATOR)
        begin = check_int("begin_epochs", begin_epochs, minimum=0)
        warmup = check_int("warmup_epochs", warmup_epochs, minimum=0)
        return cls(
            initial_learning_rate,
            check_int("epochs_per_decay", epochs_per_decay) * epoch,
            decay_rate,
            staircase,
            end_value=end_value,
            transition_begin=math.ceil(begin * epoch),
            warmup_steps=math.ceil(warmup * epoch),
            warmup_initial=warmup_initial,
        )

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, a whole number or an integer tensor."""
        if isinstance(step, numbers.Integral):
            return ops.convert_to_tensor(self._rate_at(int(step)), dtype="float32")
        step = integer_tensor(step)
        begin = self.warmup_steps + self.transition_begin
        rate = self._decayed(steps_since(step, begin))
        if not self.warmup_steps:
            return rate
        warmup = self.warmup_initial + (
            ops.cast(step, "float32")
            * ((self.initial_learning_rate - self.warmup_initial) / self.warmup_steps)
        )
        return ops.where(is_before(step, self.warmup_steps), warmup, rate)

    def _decayed(self, count: Any) -> Any:
        """Rate of the decay proper at an integer tensor `count`, from 0 up."""
        if _may_be_double(count):
            rate = self._in_double(count)
        else:
            whole, rest = _divide_exactly(count, self.decay_steps)
            rate = self.initial_learning_rate * self._power(
                whole, ops.zeros_like(rest) if self.staircase else rest
            )
        if self.end_value is None or self.decay_rate == 1:
            return rate
        bound = ops.maximum if self.decay_rate < 1 else ops.minimum
        return bound(rate, ops.cast(self.end_value, "float32"))

    def _power(self, whole: Any, rest: Any) -> Any:
        r"""$r^{w + f}$ for whole $w$ and rest $f$, to float32's last digits.

        $(w + f)\log r$ rounded to float32 would be off by up to $10^{-5}$ when it is
        large, and so would be its exponential. So $\log r$ is split in two: the
        leading digits, few enough for their product with $w$ to be exact, and the
        remainder.
        """
        log_rate = math.log(self.decay_rate)
        if not log_rate:
            return ops.ones_like(rest)
        # Beyond this count the power is zero or infinite in float32.
        largest = min(math.ceil(150 / abs(log_rate)), 2**23)
        whole = ops.cast(largest - not_negative(largest - whole), "float32")
        ulp = 2.0 ** (math.frexp(log_rate)[1] - 24 + largest.bit_length())
        leading = round(log_rate / ulp) * ulp
        remainder = whole * (log_rate - leading) + rest * log_rate
        return ops.exp(whole * leading) * ops.exp(remainder)

    def _in_double(self, count: Any) -> Any:
        """The rate by few operations, which cost more on PyTorch than their result."""
        if self.staircase:
            periods = ops.cast(_divide_exactly(count, self.decay_steps)[0], "float64")
        else:
            periods = ops.cast(count, "float64") / float(self.decay_steps)
        log_rate = math.log(self.initial_learning_rate)
        return ops.cast(
            ops.exp(periods * math.log(self.decay_rate) + log_rate), "float32"
        )

    def _rate_at(self, step: int) -> float:
        """The same rate in Python's integers and float64, for any size of `step`."""
        if step < self.warmup_steps:
            climb = (self.initial_learning_rate - self.warmup_initial) * step
            return self.warmup_initial + climb / self.warmup_steps
        count = max(step - self.warmup_steps - self.transition_begin, 0)
        periods = count / self.decay_steps
        exponent = math.floor(periods) if self.staircase else float(periods)
        log_rate = math.log(self.initial_learning_rate)
        log_rate += exponent * math.log(self.decay_rate)
        # exp overflows float64 above 700, and float32, the result's type, long before.
        rate = math.exp(log_rate) if log_rate < 700 else math.inf
        if self.end_value is None or self.decay_rate == 1:
            return rate
        return (max if self.decay_rate < 1 else min)(rate, self.end_value)

    def _check_end_value(self) -> None:
        if self.end_value is None or self.decay_rate == 1:
            return
        falls = self.decay_rate < 1
        if falls != (self.end_value <= self.initial_learning_rate):
            raise ValueError(
                f"`end_value` must be {'at most' if falls else 'at least'} the initial "
                f"learning rate, {self.initial_learning_rate}, since decay_rate="
                f"{self.decay_rate} makes the rate {'fall' if falls else 'grow'}; "
                f"got end_value={self.end_value}."
            )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        steps = self.decay_steps
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": (
                steps.numerator
                if steps.denominator == 1
                else [steps.numerator, steps.denominator]
            ),
            "decay_rate": self.decay_rate,
            "staircase": self.staircase,
            "end_value": self.end_value,
            "transition_begin": self.transition_begin,
            "warmup_steps": self.warmup_steps,
            "warmup_initial": self.warmup_initial,
        }


@keras.saving.register_keras_serializable("fmkit")
class CyclicDecay(InEpochs, LearningRateSchedule):
    r"""Learning rate that falls in a straight line, again and again.

    At step $n$ of cycles of $c$ steps,

    $$\eta(n) = (1 - t)\, \eta_1 + t\, \eta_2, \qquad
      t = \frac{(n \bmod c) + 1}{c},$$

    so the last step of a cycle has the rate $\eta_2$. `join` starts it after another
    schedule, and an `optimizers.EqualRule` with `update_interval` $c$ averages the
    weights at the end of each cycle: stochastic weight averaging.

    Args:
        initial_learning_rate: $\eta_1 \ge 0$, which the rate falls from.
        final_learning_rate: $\eta_2 \ge 0$.
        cycle_steps: $c$, in optimizer steps, not epochs.

    Raises:
        ValueError: If an argument is outside its range.
        TypeError: If an argument is not a number, or a step is not an integer.

    Examples:
        >>> schedule = CyclicDecay(0.5, 0.1, 4)
        >>> [round(float(schedule(step)), 4) for step in (0, 3, 4)]
        [0.4, 0.1, 0.4]

    References:
        Izmailov et al., [*Averaging weights leads to wider optima and better
        generalization*](https://arxiv.org/abs/1803.05407), 2018, section 3.1.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        final_learning_rate: float,
        cycle_steps: int,
    ) -> None:
        self.initial_learning_rate = check_number(
            "initial_learning_rate", initial_learning_rate, at_least=0
        )
        self.final_learning_rate = check_number(
            "final_learning_rate", final_learning_rate, at_least=0
        )
        self.cycle_steps = check_int("cycle_steps", cycle_steps)

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, a whole number or an integer tensor."""
        if not isinstance(step, numbers.Integral):
            step = integer_tensor(step)
        place = place_in_cycle(step, self.cycle_steps)
        place = ops.cast(place, "float32") + 1.0
        share = place / float(self.cycle_steps)
        return (
            1.0 - share
        ) * self.initial_learning_rate + share * self.final_learning_rate

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "final_learning_rate": self.final_learning_rate,
            "cycle_steps": self.cycle_steps,
        }


def join(
    schedules: Sequence[LearningRateSchedule | float], boundaries: Sequence[int]
) -> LearningRateSchedule:
    r"""Run schedules one after another, each counting steps from its own start.

    Schedule $i$ covers the steps $b_i \le n < b_{i+1}$, with $b_0 = 0$ and the other
    $b_i$ from `boundaries`, and is called with $n - b_i$. One number alone is a
    constant, as a schedule.

    Args:
        schedules: Schedules, or numbers from 0 up for a constant rate.
        boundaries: Optimizer steps at which the second and each later schedule begins:
            strictly increasing, one fewer than `schedules`.

    Returns:
        A `LearningRateSchedule`, saved and loaded like any other.

    Raises:
        ValueError: If the boundaries don't fit the schedules.
        TypeError: If an entry is neither a schedule nor a number.

    Examples:
        >>> schedule = join([0.1, ExponentialDecay(0.1, 10, 0.5)], [100])
        >>> [round(float(schedule(step)), 4) for step in (99, 100, 110)]
        [0.1, 0.1, 0.05]
    """
    return _Joined(schedules, boundaries)


@keras.saving.register_keras_serializable("fmkit", "Joined")
class _Joined(LearningRateSchedule):
    """What `join` returns."""

    def __init__(
        self,
        schedules: Sequence[LearningRateSchedule | float],
        boundaries: Sequence[int],
    ):
        self.schedules = [_read_schedule(part) for part in schedules]
        self.boundaries = [check_int("boundaries", b) for b in boundaries]
        if len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                "`boundaries` must hold one step fewer than there are schedules, got "
                f"{len(self.schedules)} schedules and boundaries={self.boundaries}."
            )
        if sorted(set(self.boundaries)) != self.boundaries:
            raise ValueError(
                "`boundaries` must increase strictly, "
                f"got boundaries={self.boundaries}."
            )

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, a whole number or an integer tensor."""
        starts = [0, *self.boundaries]
        if isinstance(step, numbers.Integral):
            count = max(int(step), 0)
            part = max(i for i, start in enumerate(starts) if start <= count)
            return _rate_of(self.schedules[part], count - starts[part])
        step = integer_tensor(step)
        rate = _rate_of(self.schedules[0], step)
        for start, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            later = _rate_of(schedule, steps_since(step, start))
            rate = ops.where(is_before(step, start), rate, later)
        return rate

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            "schedules": [
                part
                if isinstance(part, float)
                else keras.saving.serialize_keras_object(part)
                for part in self.schedules
            ],
            "boundaries": self.boundaries,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _Joined:
        """Make the schedule that `get_config` described."""
        parts = [
            keras.saving.deserialize_keras_object(part)
            if isinstance(part, dict)
            else part
            for part in config["schedules"]
        ]
        return cls(parts, config["boundaries"])


def _read_decay_steps(value: Any) -> Fraction:
    """Return the period as an exact fraction, or refuse it."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(
                "`decay_steps` as a pair must be (numerator, denominator), "
                f"got decay_steps={value!r}."
            )
        numerator = check_int("decay_steps[0]", value[0])
        period = Fraction(numerator, check_int("decay_steps[1]", value[1]))
    elif isinstance(value, (Fraction, numbers.Integral)) and value is not True:
        numerator = check_int("decay_steps", int(value.numerator))
        period = Fraction(numerator, int(value.denominator))
    else:
        number = check_number("decay_steps", value, above=0)
        period = Fraction(number).limit_denominator(LARGEST_DENOMINATOR)
    if period.denominator > 1 and period.numerator > _LARGEST_NUMERATOR:
        raise ValueError(
            "`decay_steps` as a fraction must have a numerator up to 2^29, got "
            f"decay_steps={value!r}, which is {period}. Round it to a whole number."
        )
    return period


def _divide_exactly(count: Any, period: Fraction) -> tuple[Any, Any]:
    """Return the integer quotient and the float32 rest of `count / period`.

    `count * denominator` would overflow an int32, so the denominator is taken in
    binary digits, as in long division: every number stays below three periods.
    Operators, not `keras.ops`, which on PyTorch turns int64 into int32.
    """
    numerator, denominator = period.numerator, period.denominator
    beyond = is_beyond(numerator, count)
    if denominator == 1 and not beyond:
        whole = count // numerator
        return whole, ops.cast(count - whole * numerator, "float32") / numerator
    if beyond:
        return ops.zeros_like(count), ops.cast(count, "float32") / float(period)
    blocks = count // numerator
    inside = count - blocks * numerator
    quotient, rest = ops.zeros_like(count), ops.zeros_like(count)
    for bit in f"{denominator:b}":
        rest = 2 * rest + int(bit) * inside
        carry = rest // numerator
        quotient = 2 * quotient + carry
        rest = rest - carry * numerator
    return blocks * denominator + quotient, ops.cast(rest, "float32") / numerator


def _may_be_double(count: Any) -> bool:
    """Whether a count may become float64: on PyTorch, except on Apple's GPUs."""
    return keras.backend.backend() == "torch" and count.device.type != "mps"


def _read_schedule(part: Any) -> LearningRateSchedule | float:
    if isinstance(part, LearningRateSchedule):
        return part
    if callable(part) or isinstance(part, str):
        raise TypeError(
            "`schedules` must hold LearningRateSchedule objects or numbers, "
            f"got {part!r}."
        )
    return check_number("schedules", part, at_least=0)


def _rate_of(part: LearningRateSchedule | float, step: Any) -> Any:
    if not isinstance(part, float):
        return part(step)
    if isinstance(step, int):
        return ops.convert_to_tensor(part, dtype="float32")
    return ops.full_like(step, part, dtype="float32")
