"""Schedules of one shape: a warm-up, a curve over a number of steps, an end value."""

from __future__ import annotations

import math
import numbers
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from fmkit._checks import check_int, check_number
from fmkit.schedules._counts import (
    InEpochs,
    integer_tensor,
    is_before,
    place_in_cycle,
    steps_since,
)

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "InverseSquareRoot",
    "OneCycle",
    "OneCycleMomentum",
    "PolynomialDecay",
    "WarmupStableDecay",
]


class _Shape(InEpochs, LearningRateSchedule):
    """A linear warm-up, then a curve that a subclass defines.

    `_curve(count, xp)` gets a whole number of steps since the warm-up, from 0 up: a
    number of Python's with `xp=numpy`, or an integer tensor with `xp=keras.ops`.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        end_value: float,
        warmup_steps: int,
        warmup_initial: float,
    ) -> None:
        self.initial_learning_rate = check_number(
            "initial_learning_rate", initial_learning_rate, above=0
        )
        self.end_value = check_number(
            "end_value", end_value, at_least=0, at_most=self.initial_learning_rate
        )
        self.warmup_steps = check_int("warmup_steps", warmup_steps, minimum=0)
        self.warmup_initial = check_number("warmup_initial", warmup_initial, at_least=0)

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, a whole number or an integer tensor."""
        is_number = isinstance(step, numbers.Integral)
        step = steps_since(int(step) if is_number else integer_tensor(step), 0)
        xp = np if is_number else ops
        warmup = self.warmup_steps
        rate = self._curve(steps_since(step, warmup) if warmup else step, xp)
        if warmup:
            share = _divided(_within(step, warmup), warmup)
            rate = xp.where(is_before(step, warmup), self._warmup(share, xp), rate)
        return ops.convert_to_tensor(rate, dtype="float32") if is_number else rate

    def _warmup(self, share: Any, xp: Any) -> Any:
        del xp
        return self.warmup_initial + share * (
            self.initial_learning_rate - self.warmup_initial
        )

    def _curve(self, count: Any, xp: Any) -> Any:
        raise NotImplementedError

    def _between(self, share: Any) -> Any:
        """Return the rate at a share of the way down, 1 at its top, 0 at its end."""
        if self.end_value == self.initial_learning_rate:
            return self.end_value + 0.0 * share
        # Exact at both ends, unlike `end + share * difference`.
        return share * self.initial_learning_rate + (1.0 - share) * self.end_value

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "end_value": self.end_value,
            "warmup_steps": self.warmup_steps,
            "warmup_initial": self.warmup_initial,
        }


def _within(count: Any, steps: int) -> Any:
    """Cut a count from 0 up at `steps`."""
    return count - steps_since(count, steps)


def _divided(count: Any, steps: Any) -> Any:
    if isinstance(count, int):
        return count / steps
    steps = float(steps) if isinstance(steps, int) else ops.cast(steps, "float32")
    return ops.cast(count, "float32") / steps


def _cosine(share: Any, xp: Any) -> Any:
    return (1.0 + xp.cos(math.pi * share)) / 2.0


@keras.saving.register_keras_serializable("fmkit")
class CosineDecay(_Shape):
    r"""Learning rate that falls along half a cosine.

    With $n$ steps since the warm-up, rate $\eta_0$, end $\eta_e$ and length $T$,

    $$\eta(n) = \eta_e + (\eta_0 - \eta_e)\,\frac{1 + \cos(\pi \min(n, T)/T)}{2}.$$

    Args:
        initial_learning_rate: $\eta_0 > 0$.
        decay_steps: $T$, in optimizer steps, not epochs.
        end_value: $\eta_e$, from 0 to $\eta_0$: the rate from step $T$ on.
        warmup_steps: Steps of linear warm-up before; step 0 has `warmup_initial`.
        warmup_initial: Rate at step 0 of the warm-up.

    Raises:
        ValueError: If an argument is outside its range.
        TypeError: If an argument is not a number, or a step is not an integer.

    Examples:
        >>> schedule = CosineDecay(0.2, 100, warmup_steps=10)
        >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 60, 110)]
        [0.0, 0.1, 0.2, 0.1, 0.0]

    References:
        Loshchilov and Hutter, [*SGDR: Stochastic gradient descent with warm
        restarts*](https://arxiv.org/abs/1608.03983), 2016, eq. 5.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        *,
        end_value: float = 0.0,
        warmup_steps: int = 0,
        warmup_initial: float = 0.0,
    ) -> None:
        super().__init__(initial_learning_rate, end_value, warmup_steps, warmup_initial)
        self.decay_steps = check_int("decay_steps", decay_steps)

    def _curve(self, count: Any, xp: Any) -> Any:
        share = _divided(_within(count, self.decay_steps), self.decay_steps)
        return self._between(_cosine(share, xp))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {**super().get_config(), "decay_steps": self.decay_steps}


@keras.saving.register_keras_serializable("fmkit")
class CosineDecayRestarts(_Shape):
    r"""Learning rate that falls along half a cosine, again and again.

    Cycle $i = 0, 1, \dots$ has $T_i = k^i\, T_0$ steps. At step $m$ of it,

    $$\eta = \eta_e + (\eta_0 - \eta_e)\,\frac{1 + \cos(\pi m/T_i)}{2}.$$

    Args:
        initial_learning_rate: $\eta_0 > 0$, at the start of each cycle.
        first_cycle_steps: $T_0$, in optimizer steps, not epochs.
        cycle_factor: $k$, a whole number, so that cycles begin at whole steps.
        end_value: $\eta_e$, which each cycle falls towards.
        warmup_steps: As in `CosineDecay`.
        warmup_initial: As in `CosineDecay`.

    Raises:
        ValueError: If an argument is outside its range.
        TypeError: If an argument is not a number, or a step is not an integer.

    Examples:
        >>> schedule = CosineDecayRestarts(0.2, 10, cycle_factor=2)
        >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 20, 30)]
        [0.2, 0.1, 0.2, 0.1, 0.2]

    References:
        Loshchilov and Hutter, [*SGDR: Stochastic gradient descent with warm
        restarts*](https://arxiv.org/abs/1608.03983), 2016, eq. 5.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_cycle_steps: int,
        *,
        cycle_factor: int = 1,
        end_value: float = 0.0,
        warmup_steps: int = 0,
        warmup_initial: float = 0.0,
    ) -> None:
        super().__init__(initial_learning_rate, end_value, warmup_steps, warmup_initial)
        self.first_cycle_steps = check_int("first_cycle_steps", first_cycle_steps)
        self.cycle_factor = check_int("cycle_factor", cycle_factor)

    def _curve(self, count: Any, xp: Any) -> Any:
        steps = self.first_cycle_steps
        if self.cycle_factor == 1:
            place = place_in_cycle(count, steps)
            return self._between(_cosine(_divided(place, steps), xp))
        share = _divided(_within(count, steps), steps)
        # Each further cycle begins where the sum of those before it ends. There are at
        # most 31 in an int32; a later start is beyond any training.
        last = count if isinstance(count, int) else 2**31 - 2
        start = steps
        while start <= last:
            steps *= self.cycle_factor
            inside = _divided(_within(steps_since(count, start), steps), steps)
            share = xp.where(count < start, share, inside)
            start += steps
        return self._between(_cosine(share, xp))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            **super().get_config(),
            "first_cycle_steps": self.first_cycle_steps,
            "cycle_factor": self.cycle_factor,
        }


@keras.saving.register_keras_serializable("fmkit")
class PolynomialDecay(_Shape):
    r"""Learning rate that falls along a power; in a line to zero by default.

    With $n$ steps since the warm-up, rate $\eta_0$, end $\eta_e$ and length $T$,

    $$\eta(n) = \eta_e + (\eta_0 - \eta_e)\left(1 - \frac{\min(n, T)}{T}\right)^p.$$

    Args:
        initial_learning_rate: $\eta_0 > 0$.
        decay_steps: $T$, in optimizer steps, not epochs.
        power: $p > 0$; 1 is a line.
        end_value: $\eta_e$, from 0 to $\eta_0$: the rate from step $T$ on.
        warmup_steps: As in `CosineDecay`.
        warmup_initial: As in `CosineDecay`.

    Raises:
        ValueError: If an argument is outside its range.
        TypeError: If an argument is not a number, or a step is not an integer.

    Examples:
        >>> schedule = PolynomialDecay(0.2, 100)
        >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 200)]
        [0.2, 0.1, 0.0, 0.0]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        *,
        power: float = 1.0,
        end_value: float = 0.0,
        warmup_steps: int = 0,
        warmup_initial: float = 0.0,
    ) -> None:
        super().__init__(initial_learning_rate, end_value, warmup_steps, warmup_initial)
        self.decay_steps = check_int("decay_steps", decay_steps)
        self.power = check_number("power", power, above=0)

    def _curve(self, count: Any, xp: Any) -> Any:
        left = self.decay_steps - _within(count, self.decay_steps)
        return self._between(xp.power(_divided(left, self.decay_steps), self.power))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        steps = {"decay_steps": self.decay_steps, "power": self.power}
        return {**super().get_config(), **steps}


@keras.saving.register_keras_serializable("fmkit")
class WarmupStableDecay(_Shape):
    r"""Learning rate that is constant and then falls in a line.

    With a warm-up it is a trapezoid. With $\eta_e = \eta_0$ it stays constant after
    the warm-up.

    With $n$ steps since the warm-up, rate $\eta_0$, end $\eta_e$, $S$ steps at $\eta_0$
    and $T$ steps of decay,

    $$\eta(n) = \eta_0 - (\eta_0 - \eta_e)\,\frac{\min(\max(n - S, 0), T)}{T}.$$

    Args:
        initial_learning_rate: $\eta_0 > 0$.
        stable_steps: $S$, in optimizer steps, not epochs.
        decay_steps: $T$, in optimizer steps.
        end_value: $\eta_e$, from 0 to $\eta_0$: the rate from step $S + T$ on.
        warmup_steps: As in `CosineDecay`.
        warmup_initial: As in `CosineDecay`.

    Raises:
        ValueError: If an argument is outside its range.
        TypeError: If an argument is not a number, or a step is not an integer.

    Examples:
        >>> schedule = WarmupStableDecay(0.2, 20, 10, warmup_steps=10)
        >>> [round(float(schedule(step)), 4) for step in (5, 10, 30, 35, 40)]
        [0.1, 0.2, 0.2, 0.1, 0.0]
        >>> constant = WarmupStableDecay(0.2, 0, 1, end_value=0.2, warmup_steps=10)
        >>> [round(float(constant(step)), 4) for step in (5, 10, 10_000)]
        [0.1, 0.2, 0.2]

    References:
        Hägele et al., [*Scaling laws and compute-optimal training beyond fixed training
        durations*](https://arxiv.org/abs/2405.18392), 2024.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        stable_steps: int,
        decay_steps: int,
        *,
        end_value: float = 0.0,
        warmup_steps: int = 0,
        warmup_initial: float = 0.0,
    ) -> None:
        super().__init__(initial_learning_rate, end_value, warmup_steps, warmup_initial)
        self.stable_steps = check_int("stable_steps", stable_steps, minimum=0)
        self.decay_steps = check_int("decay_steps", decay_steps)

    def _curve(self, count: Any, xp: Any) -> Any:
        del xp
        fallen = _within(steps_since(count, self.stable_steps), self.decay_steps)
        return self._between(_divided(self.decay_steps - fallen, self.decay_steps))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        steps = {"stable_steps": self.stable_steps, "decay_steps": self.decay_steps}
        return {**super().get_config(), **steps}


@keras.saving.register_keras_serializable("fmkit")
class OneCycle(CosineDecay):
    r"""Learning rate that rises along half a cosine and falls along another.

    With rate $\eta_i$ at step 0, $\eta_0$ at step $W$ and $\eta_e$ from $W + T$ on,

    $$\eta(n) = \eta_i + (\eta_0 - \eta_i)\,\frac{1 - \cos(\pi n/W)}{2}
      \quad\text{for } n < W,$$

    and from there on that of `CosineDecay`. PyTorch's `OneCycleLR` with `total_steps=N`
    and `pct_start=p` has $W = pN - 1$ and $T = N - pN$.

    Args:
        initial_learning_rate: $\eta_0 > 0$, the highest rate.
        warmup_steps: $W$, in optimizer steps, not epochs.
        decay_steps: $T$, in optimizer steps.
        warmup_initial: $\eta_i$; `None` for $\eta_0/25$.
        end_value: $\eta_e$; `None` for $\eta_0/250000$.

    Raises:
        ValueError: If an argument is outside its range.
        TypeError: If an argument is not a number, or a step is not an integer.

    Examples:
        >>> schedule = OneCycle(0.25, 30, 70)
        >>> [round(float(schedule(step)), 4) for step in (0, 15, 30, 65, 100)]
        [0.01, 0.13, 0.25, 0.125, 0.0]

    References:
        Smith and Topin, [*Super-convergence*](https://arxiv.org/abs/1708.07120), 2017.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        warmup_steps: int,
        decay_steps: int,
        *,
        warmup_initial: float | None = None,
        end_value: float | None = None,
    ) -> None:
        peak = check_number("initial_learning_rate", initial_learning_rate, above=0)
        super().__init__(
            peak,
            decay_steps,
            end_value=peak / 250_000 if end_value is None else end_value,
            warmup_steps=check_int("warmup_steps", warmup_steps),
            warmup_initial=peak / 25 if warmup_initial is None else warmup_initial,
        )

    def _warmup(self, share: Any, xp: Any) -> Any:
        return super()._warmup(1.0 - _cosine(share, xp), xp)


@keras.saving.register_keras_serializable("fmkit")
class OneCycleMomentum(InEpochs, LearningRateSchedule):
    r"""Momentum that falls while the rate of `OneCycle` rises, and rises again.

    With momentum $\mu_2$ at step 0, $\mu_1$ at step $W$ and $\mu_2$ from $W + T$ on,

    $$\mu(n) = \mu_2 - (\mu_2 - \mu_1)\,\frac{1 - \cos(\pi n/W)}{2}
      \quad\text{for } n < W,$$

    and the mirror image from there on: `cycle_momentum` of PyTorch's `OneCycleLR`.
    `callbacks.HyperparameterScheduler` gives it to an optimizer, as `"momentum"` or
    Adam's `"beta_1"`.

    Args:
        warmup_steps: $W$, as in `OneCycle`.
        decay_steps: $T$, as in `OneCycle`.
        lowest: $\mu_1$, from 0 up, below `highest`.
        highest: $\mu_2$, at most 1.

    Raises:
        ValueError: If an argument is outside its range.
        TypeError: If an argument is not a number, or a step is not an integer.

    Examples:
        >>> schedule = OneCycleMomentum(30, 70)
        >>> [round(float(schedule(step)), 4) for step in (0, 15, 30, 65, 100)]
        [0.95, 0.9, 0.85, 0.9, 0.95]

    References:
        Smith and Topin, [*Super-convergence*](https://arxiv.org/abs/1708.07120), 2017.
    """

    def __init__(
        self,
        warmup_steps: int,
        decay_steps: int,
        *,
        lowest: float = 0.85,
        highest: float = 0.95,
    ) -> None:
        self.highest = check_number("highest", highest, above=0, at_most=1)
        self.lowest = check_number("lowest", lowest, at_least=0, below=self.highest)
        self._height = OneCycle(
            1.0, warmup_steps, decay_steps, warmup_initial=0.0, end_value=0.0
        )

    def __call__(self, step: Any) -> Any:
        """Return the momentum at `step`, a whole number or an integer tensor."""
        height = self._height(step)
        return height * self.lowest + (1.0 - height) * self.highest

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            "warmup_steps": self._height.warmup_steps,
            "decay_steps": self._height.decay_steps,
            "lowest": self.lowest,
            "highest": self.highest,
        }


@keras.saving.register_keras_serializable("fmkit")
class InverseSquareRoot(_Shape):
    r"""Learning rate that falls with the inverse square root of the steps.

    With $n$ steps since the warm-up, rate $\eta_0$ and time scale $T$,

    $$\eta(n) = \max\!\left(\eta_e,\; \eta_0 \sqrt{T/(T + n)}\right).$$

    With `timescale` equal to `warmup_steps` it is the schedule of the Transformer.

    Args:
        initial_learning_rate: $\eta_0 > 0$.
        timescale: $T$, in optimizer steps: after $3T$ steps the rate has halved.
        end_value: $\eta_e$, from 0 to $\eta_0$: the lowest rate.
        warmup_steps: As in `CosineDecay`.
        warmup_initial: As in `CosineDecay`.

    Raises:
        ValueError: If an argument is outside its range.
        TypeError: If an argument is not a number, or a step is not an integer.

    Examples:
        >>> schedule = InverseSquareRoot(0.2, 100, warmup_steps=100)
        >>> [round(float(schedule(step)), 4) for step in (50, 100, 400)]
        [0.1, 0.2, 0.1]

    References:
        Vaswani et al., [*Attention is all you need*](https://arxiv.org/abs/1706.03762),
        2017, eq. 3.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        timescale: int,
        *,
        end_value: float = 0.0,
        warmup_steps: int = 0,
        warmup_initial: float = 0.0,
    ) -> None:
        super().__init__(initial_learning_rate, end_value, warmup_steps, warmup_initial)
        self.timescale = check_int("timescale", timescale)

    def _curve(self, count: Any, xp: Any) -> Any:
        rate = self.initial_learning_rate / xp.sqrt(
            1.0 + _divided(count, self.timescale)
        )
        return xp.maximum(rate, self.end_value)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {**super().get_config(), "timescale": self.timescale}
