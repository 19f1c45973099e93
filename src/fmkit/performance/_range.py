"""Learning-rate range test: one short training over growing rates."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from fmkit import _keras_private as private
from fmkit._checks import check_int, check_number
from fmkit._generators import undisturbed
from fmkit._swap import leaves
from fmkit.data import Batches
from fmkit.performance._copy import copy_of
from fmkit.schedules import ExponentialDecay

__all__ = ["LearningRateRange", "learning_rate_range"]

Array = npt.NDArray[np.float64]

# Without a curve there is no slope.
_FEWEST = 10
# As in fastai: the run ends where the loss is this many times its lowest.
_DIVERGED = 4.0


@dataclasses.dataclass(frozen=True, eq=False)
class LearningRateRange:
    """What `learning_rate_range` found.

    `visualization.loss_by_learning_rate` draws it.

    Attributes:
        rates: Learning rate of each step, growing, shape `(n,)`.
        losses: Loss of the batch of each step, before its update, shape `(n,)`.
        smoothed: The same, averaged over neighbouring steps, shape `(n,)`.
        suggestion: The rate at which `smoothed` falls most steeply over the logarithm
            of the rate, before its minimum; `None` if it never falls.
        diverged: Whether the run ended early, because the loss was four times its
            lowest, or not finite.
    """

    rates: Array
    losses: Array
    smoothed: Array
    suggestion: float | None
    diverged: bool


def learning_rate_range(
    model: keras.Model,
    data: Any,
    y: Any = None,
    *,
    batch_size: int | None = None,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
) -> LearningRateRange:
    r"""Train a copy of a model over growing learning rates, and suggest one.

    Step $k$ of $n$ has the rate $\eta_1 (\eta_2/\eta_1)^{k/(n-1)}$. The losses are
    averaged over neighbouring steps by a Gaussian of $n/40$ steps. The suggestion is
    the rate of the steepest descent, which is lower than the highest rate that works:
    a schedule that begins low may go up to several times it.

    With `gradient_accumulation_steps` a step is an update, and its loss the mean of its
    batches.

    The copy has the weights of the model, and a new optimizer with the settings of the
    model's. Weights, optimizer and metrics of the model, the position of `Batches`, and
    all global generators stay as they are. Data that count or draw by themselves, such
    as a `DataLoader` with a `generator` of its own, see a training of `steps` batches.

    Args:
        model: A compiled model that can be made from its config.
        data: What `fit` takes as `x`, read from its start, several times if need be.
        y: Labels, if `data` are arrays.
        batch_size: As in `fit`, if `data` are arrays.
        lowest: $\eta_1 > 0$.
        highest: $\eta_2$, above `lowest`.
        steps: $n$, at least 10.

    Raises:
        TypeError: If `data` are a generator, whose batches would be gone.
        ValueError: If an argument is outside its range, the model can't be copied, or
            the loss leaves the finite numbers, or grows to four times its lowest,
            within 10 steps.

    Examples:
        >>> import keras, numpy as np
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x = np.linspace(-1, 1, 64, dtype="float32")[:, None]
        >>> found = learning_rate_range(model, x, 3 * x, steps=50)
        >>> 0.001 < found.suggestion < 10
        True

    References:
        Smith, [*Cyclical learning rates for training neural
        networks*](https://arxiv.org/abs/1506.01186), 2015, section 3.3. The steepest
        descent is what fastai's `lr_find` calls `steep`.
    """
    lowest = check_number("lowest", lowest, above=0)
    highest = check_number("highest", highest, above=lowest)
    steps = check_int("steps", steps, minimum=_FEWEST)
    if isinstance(data, Iterator):
        raise TypeError(
            f"`data` must be what can be read again, got {type(data).__name__}: its "
            "batches would be missing from the training. Pass arrays or Batches."
        )
    if isinstance(data, Batches):
        data = copy.copy(data)  # with a position of its own, and the same arrays
        data.seek(0)
    with undisturbed():
        # Trained by the same program as ever, with one step per execution.
        clone: Any = copy_of(model, "`learning_rate_range`", steps_per_execution=1)
        optimizers = leaves(clone.optimizer)
        # Batches of one update, in each of which Keras asks the schedule.
        every = getattr(optimizers[0], "gradient_accumulation_steps", None) or 1
        ratio = (highest / lowest) ** (1 / (steps - 1))
        for part in optimizers:
            part.learning_rate = ExponentialDecay(lowest, every, ratio, staircase=True)
        run = _Run(steps, every)
        count = steps * every
        clone.fit(data, y, batch_size, epochs=count, verbose=0, callbacks=[run])
    if len(run.losses) < _FEWEST:
        raise ValueError(
            f"The loss was {run.last:g} after {len(run.losses)} steps, at a learning "
            f"rate of {run.last_rate:.3g}: too few for a curve. Lower `lowest`; if it "
            "is low already, look at the data with preprocessing.check_arrays."
        )
    rates, losses = np.array(run.rates), np.array(run.losses)
    smoothed = _smoothed(losses, steps / 40)
    suggestion = _steepest(rates, smoothed)
    return LearningRateRange(rates, losses, smoothed, suggestion, run.diverged)


class _Run(keras.callbacks.Callback):
    """Notes the rate and the loss of each update, and stops."""

    def __init__(self, steps: int, every: int) -> None:
        super().__init__()
        self.steps, self.diverged = steps, False
        self._every, self._batches = every, list[float]()
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.last = self.last_rate = self._lowest = math.inf
        self._average = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.reset_metrics()  # the loss in the logs is a mean since then

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batches.append(float(logs["loss"]))
        if len(self._batches) < self._every:
            return
        model, loss = self.model, statistics.fmean(self._batches)
        self._batches.clear()
        self.last = loss
        self.last_rate = private.rate_of_last_step(leaves(model.optimizer)[0])
        # The average of the last ten or so, over the weights it has so far.
        self._average += 0.1 * (loss - self._average)
        average = self._average / (1 - 0.9 ** (len(self.losses) + 1))
        self._lowest = min(self._lowest, average)
        # A loss may be negative, of which four times is no bound.
        limit = self._lowest + (_DIVERGED - 1) * abs(self._lowest)
        if not math.isfinite(loss) or average > limit:
            self.diverged = model.stop_training = True
            return
        self.rates.append(self.last_rate)
        self.losses.append(loss)
        if len(self.losses) == self.steps:
            model.stop_training = True


def _smoothed(losses: Array, width: float) -> Array:
    """Average over neighbours, with Gaussian weights of so many steps."""
    places = np.arange(len(losses))
    weights = np.exp(-(((places[:, None] - places) / width) ** 2) / 2)
    found: Array = weights @ losses / weights.sum(axis=1)
    return found


def _steepest(rates: Array, losses: Array) -> float | None:
    """Return the rate of the steepest descent before the minimum, if there is one."""
    slopes = np.gradient(losses, np.log(rates))[: losses.argmin() + 1]
    place = int(slopes.argmin())
    # A constant loss falls too, by its rounding.
    falls = slopes[place] < -1e-6 * np.abs(losses).max()
    return float(rates[place]) if falls else None
