"""The rules of averages: how much of the old average each update keeps."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from fmkit._checks import check_int, check_number, did_you_mean
from fmkit._math import namespace

__all__ = [
    "AverageRule",
    "EqualRule",
    "ExponentialRule",
    "PowerRule",
    "WarmupRule",
    "gamma_of",
    "read_rule",
    "width_of",
]


class AverageRule:
    r"""How an average $s$ follows the weights $w$ at its $n$-th update.

    $$s \leftarrow s - (1 - d_n)(s - w).$$

    A rule of your own defines `decay_of` and `step_size`, and passes on what the class
    takes. Rules are arguments of `WeightAverages`.

    Args:
        start_step: Updates of the weights before averaging begins; until then the
            average equals the weights. $n$ counts from there.
        update_interval: Updates of the weights per update of the average.
        name: What the average is called in logs and by `averaged(model, name)`.
        dtype: `"bfloat16"` halves the memory of an average of float32 weights. With
            $d_n \le d$ it is then off by up to $2^{-8}/(1-d)$ of the largest weight
            that it has followed; $d$ must be at most 0.9. `None` takes the weights'
            own, but at least float32.

    Raises:
        ValueError: If an argument is outside its range.
    """

    #: A bound of $d_n$.
    largest_decay = 1.0

    #: Whether the initial weights are to be left out; see `ExponentialRule`.
    zero_debias = False

    def __init__(
        self,
        *,
        start_step: int = 0,
        update_interval: int = 1,
        name: str,
        dtype: str | None = None,
    ) -> None:
        self.start_step = check_int("start_step", start_step, minimum=0)
        self.update_interval = check_int("update_interval", update_interval)
        self.name = _check_name(name)
        self.dtype = dtype
        if dtype is not None:
            _check_dtype(dtype, self.largest_decay)

    def decay_of(self, count: int) -> float:
        """Return $d_n$.

        Args:
            count: Updates of the weights since `start_step`, a positive multiple of
                `update_interval`.
        """
        raise NotImplementedError

    def step_size(self, count: Any) -> Any:
        """Return $1 - d_n$ for a tensor, or a number where it is constant.

        Where `count` is no positive multiple of `update_interval`, the result is not
        used, but must be finite.
        """
        raise NotImplementedError

    def decay_at(self, update: int) -> float:
        """Return the decay that an update of the weights applies to the average.

        Args:
            update: Number of the update, the first being 1.

        Returns:
            The decay $d$: 0 up to the start step, 1 where the average is not updated
            because of the interval. It does not include `zero_debias`.
        """
        count = check_int("update", update) - self.start_step
        if count <= 0:
            return 0.0
        return 1.0 if count % self.update_interval else self.decay_of(count)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            "start_step": self.start_step,
            "update_interval": self.update_interval,
            "name": self.name,
            **({} if self.dtype is None else {"dtype": self.dtype}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AverageRule:
        """Make the rule that `get_config` described."""
        return cls(**config)


@keras.saving.register_keras_serializable("fmkit")
class ExponentialRule(AverageRule):
    r"""TensorFlow 1's moving average, whose decay grows to `decay`.

    $$d_n = \min\Bigl(\text{decay}, \frac{1 + n}{10 + n}\Bigr),$$

    as in `tf.train.ExponentialMovingAverage(decay, global_step)`, or $d_n$ constant.
    $n$ counts updates of the weights from `start_step` on.

    Args:
        decay: Largest decay $0 \le d < 1$, for each update of the average.
        num_updates: `"after"` counts the update that was just made, `"before"` does
            not, and `None` keeps the decay constant.
        zero_debias: Whether to leave out the initial weights: the average is then
            divided by the sum of its coefficients, so that the first one equals the
            weights after the first update.
        start_step: As in `AverageRule`.
        update_interval: As in `AverageRule`.
        name: As in `AverageRule`; by default `"ema_0.99"` for decay 0.99.
        dtype: As in `AverageRule`.

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> [round(ExponentialRule(0.99).decay_at(n), 4) for n in (1, 10, 1000)]
        [0.1818, 0.55, 0.99]
    """

    def __init__(
        self,
        decay: float = 0.99,
        *,
        num_updates: str | None = "after",
        zero_debias: bool = False,
        start_step: int = 0,
        update_interval: int = 1,
        name: str | None = None,
        dtype: str | None = None,
    ) -> None:
        if num_updates not in ("after", "before", None):
            raise ValueError(
                "`num_updates` must be 'after', 'before' or None, got "
                f"num_updates={num_updates!r}."
                f"{did_you_mean(num_updates, ['after', 'before'])}"
            )
        self.decay = self.largest_decay = check_number(
            "decay", decay, at_least=0, below=1
        )
        super().__init__(
            start_step=start_step,
            update_interval=update_interval,
            name=name or f"ema_{self.decay:g}",
            dtype=dtype,
        )
        self.num_updates = num_updates
        self.zero_debias = bool(zero_debias)

    def decay_of(self, count: int) -> float:
        """Return $d_n$."""
        if self.num_updates is None:
            return self.decay
        n = count - (self.num_updates == "before")
        return min(self.decay, (1 + n) / (10 + n))

    def step_size(self, count: Any) -> Any:
        """Return $1 - d_n$, rounded as in TensorFlow 1.

        The bound is taken in float64: in float32, 1 - 0.9999 is off by 3e-5 of itself.
        """
        if self.num_updates is None:
            return 1.0 - self.decay
        xp = namespace(count)
        n = ops.cast(count, "float32")
        if self.num_updates == "before":
            n = n - 1.0
        n = xp.relu(n)
        return xp.maximum(1.0 - self.decay, 1.0 - (1.0 + n) / (10.0 + n))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            "decay": self.decay,
            "num_updates": self.num_updates,
            "zero_debias": self.zero_debias,
            **super().get_config(),
        }


@keras.saving.register_keras_serializable("fmkit")
class WarmupRule(AverageRule):
    r"""Moving average whose decay grows as a power: timm's and ema-pytorch's.

    $$d_n = \max\bigl(\text{min\_decay}, \min(\text{decay},\;
            1 - (1 + (n - 1)/\gamma)^{-p})\bigr), \qquad d_1 = 0.$$

    $n$ counts updates of the weights from `start_step` on. With `update_interval=1` the
    first average is the weights themselves, so the initial weights have no part in it;
    of a larger interval the first update has $n$ = `update_interval`, and the initial
    weights keep the part $d_n$. With $\gamma = 1$ the decay reaches 0.999 after 31,600
    updates for $p = 2/3$ and after 10,000 for $p = 3/4$.

    Args:
        decay: Largest decay $0 \le d < 1$.
        gamma: $\gamma > 0$, in updates; `inv_gamma` or `warmup_gamma` elsewhere.
        power: $p > 0$.
        min_decay: Smallest decay from the second update on.
        start_step: As in `AverageRule`.
        update_interval: As in `AverageRule`.
        name: As in `AverageRule`; by default `"warmup_0.9999"` for decay 0.9999.
        dtype: As in `AverageRule`.

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> [round(WarmupRule().decay_at(n), 4) for n in (1, 2, 1000)]
        [0.0, 0.37, 0.99]

    References:
        [`timm.utils.ModelEmaV3`](https://github.com/huggingface/pytorch-image-models)
        and [`ema_pytorch.EMA`](https://github.com/lucidrains/ema-pytorch).
    """

    def __init__(
        self,
        decay: float = 0.9999,
        *,
        gamma: float = 1.0,
        power: float = 2 / 3,
        min_decay: float = 0.0,
        start_step: int = 0,
        update_interval: int = 1,
        name: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self.decay = self.largest_decay = check_number(
            "decay", decay, at_least=0, below=1
        )
        super().__init__(
            start_step=start_step,
            update_interval=update_interval,
            name=name or f"warmup_{self.decay:g}",
            dtype=dtype,
        )
        self.gamma = check_number("gamma", gamma, above=0)
        self.power = check_number("power", power, above=0)
        self.min_decay = check_number("min_decay", min_decay, at_least=0, below=1)
        if self.min_decay > self.decay:
            raise ValueError(
                f"`min_decay` must be at most decay={decay!r}, got "
                f"min_decay={min_decay!r}."
            )

    def decay_of(self, count: int) -> float:
        """Return $d_n$."""
        if count <= 1:
            return 0.0
        grown = 1 - (1 + (count - 1) / self.gamma) ** -self.power
        return max(self.min_decay, min(self.decay, grown))

    def step_size(self, count: Any) -> Any:
        """Return $1 - d_n$."""
        before = ops.maximum(ops.cast(count, "float32") - 1.0, 0.0)
        size = ops.power(1.0 + before / self.gamma, -self.power)
        size = ops.clip(size, 1.0 - self.decay, 1.0 - self.min_decay)
        return ops.where(before > 0, size, ops.ones_like(size))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {
            "decay": self.decay,
            "gamma": self.gamma,
            "power": self.power,
            "min_decay": self.min_decay,
            **super().get_config(),
        }


@keras.saving.register_keras_serializable("fmkit")
class EqualRule(AverageRule):
    r"""Plain mean of the weights from a step on: stochastic weight averaging (SWA).

    $$d_n = 1 - \frac1n,$$

    with $n$ the number of weights averaged so far: those after `update_interval`,
    `2 * update_interval`, ... updates from `start_step` on. The first is the average
    itself.

    Args:
        start_step: As in `AverageRule`.
        update_interval: As in `AverageRule`; `from_epochs` takes one per epoch.
        name: As in `AverageRule`.

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> rule = EqualRule(start_step=100, update_interval=10)
        >>> [rule.decay_at(step) for step in (100, 105, 110, 120)]
        [0.0, 1.0, 0.0, 0.5]

    References:
        Izmailov et al., [*Averaging weights leads to wider optima and better
        generalization*](https://arxiv.org/abs/1803.05407), 2018.
    """

    def __init__(
        self, *, start_step: int = 0, update_interval: int = 1, name: str = "swa"
    ) -> None:
        super().__init__(
            start_step=start_step, update_interval=update_interval, name=name
        )

    @classmethod
    def from_epochs(
        cls, start_epoch: int, *, steps_per_epoch: int, name: str = "swa"
    ) -> EqualRule:
        """Average the weights at the end of each epoch from one on.

        Args:
            start_epoch: Epochs before the first one that counts.
            steps_per_epoch: Updates of the weights in an epoch.
            name: As in the class.

        Returns:
            The rule, counted in steps.
        """
        steps = check_int("steps_per_epoch", steps_per_epoch)
        start = check_int("start_epoch", start_epoch, minimum=0)
        return cls(start_step=start * steps, update_interval=steps, name=name)

    def decay_of(self, count: int) -> float:
        """Return $d_n$."""
        return 1 - self.update_interval / count

    def step_size(self, count: Any) -> Any:
        """Return $1 - d_n$."""
        n = ops.maximum(count // self.update_interval, 1)
        return 1.0 / ops.cast(n, "float32")


@keras.saving.register_keras_serializable("fmkit")
class PowerRule(AverageRule):
    r"""Average whose length is a share of the training so far.

    $$d_n = \Bigl(1 - \frac1n\Bigr)^{\gamma + 1}$$

    gives the weights of update $i$ a share that grows as $i^\gamma$. The spread of
    these shares over the training, its *relative width*, stays the same:

    $$\sigma = \frac{\sqrt{\gamma + 1}}{(\gamma + 2)\sqrt{\gamma + 3}}.$$

    From snapshots of two such averages `fmkit.evaluation.synthesize` makes that of any
    width, after training.

    Args:
        width: $0 < \sigma < 0.2886$, the share of the training that the average spans:
            0.05 and 0.1 are usual. Or give `gamma`.
        gamma: $\gamma > 0$, in place of `width`.
        start_step: As in `AverageRule`.
        update_interval: As in `AverageRule`.
        name: As in `AverageRule`; by default `"power_0.1"` for width 0.1.

    Raises:
        ValueError: If an argument is outside its range, or not one of `width` and
            `gamma` is given.

    Examples:
        >>> rule = PowerRule(0.1)
        >>> round(rule.gamma, 2), [round(rule.decay_at(n), 4) for n in (1, 2, 100)]
        (6.94, [0.0, 0.0041, 0.9233])

    References:
        Karras et al., [*Analyzing and improving the training dynamics of diffusion
        models*](https://arxiv.org/abs/2312.02696), 2023, section 3.
    """

    def __init__(
        self,
        width: float | None = None,
        *,
        gamma: float | None = None,
        start_step: int = 0,
        update_interval: int = 1,
        name: str | None = None,
    ) -> None:
        if (width is None) == (gamma is None):
            raise ValueError(
                f"Give one of `width` and `gamma`, got width={width!r} and "
                f"gamma={gamma!r}: for instance PowerRule(0.1)."
            )
        if gamma is None:
            gamma = gamma_of(width)
        self.gamma = check_number("gamma", gamma, above=0)
        super().__init__(
            start_step=start_step,
            update_interval=update_interval,
            name=name or f"power_{self.width:.3g}",
        )

    @property
    def width(self) -> float:
        r"""The relative width $\sigma$."""
        return width_of(self.gamma)

    def decay_of(self, count: int) -> float:
        """Return $d_n$."""
        return float((1 - self.update_interval / count) ** (self.gamma + 1))

    def step_size(self, count: Any) -> Any:
        """Return $1 - d_n$, without a difference of numbers close to 1."""
        n = ops.cast(ops.maximum(count // self.update_interval, 1), "float32")
        return -ops.expm1((self.gamma + 1.0) * ops.log1p(-1.0 / n))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python values."""
        return {"gamma": self.gamma, **super().get_config()}


def width_of(gamma: float) -> float:
    """Return the relative width of the power function with this exponent."""
    return float(np.sqrt(gamma + 1) / ((gamma + 2) * np.sqrt(gamma + 3)))


def gamma_of(width: Any) -> float:
    r"""Return the exponent of the power function with this relative width.

    The larger root of $(\gamma + 2)^2 (\gamma + 3) \sigma^2 = \gamma + 1$.

    Raises:
        ValueError: If the width is not between 0 and that of `gamma=0`, 0.2886.
    """
    width = check_number("width", width, above=0, below=width_of(0.0))
    t = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


def read_rule(given: Any) -> AverageRule:
    """Return a rule; a number is the decay of an `ExponentialRule`.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(given, AverageRule):
        return given
    if isinstance(given, dict):
        rule = keras.saving.deserialize_keras_object(given)
        if isinstance(rule, AverageRule):
            return rule
    elif not isinstance(given, (str, bytes)) and np.ndim(given) == 0:
        return ExponentialRule(given)
    raise TypeError(
        f"A rule must be a decay such as 0.99, or a rule such as EqualRule(), got "
        f"{given!r} ({type(given).__name__})."
    )


def _check_name(name: Any) -> str:
    if isinstance(name, str) and name and all(c.isalnum() or c in "._-" for c in name):
        if name in ("raw", "averaged"):
            raise ValueError(
                f"`name` must not be {name!r}, which names other weights in the "
                "results. Give another name."
            )
        return name
    raise ValueError(
        f"`name` must be made of letters, digits, '.', '_' and '-', got name={name!r}."
    )


# bfloat16 has 8 binary digits, so each update rounds by up to 2**-8 of the average. A
# step of less than that, with a decay close to 1, does not move it at all.
_LARGEST_DECAY = 0.9


def _check_dtype(dtype: Any, decay: float) -> None:
    if dtype != "bfloat16":
        raise ValueError(f"`dtype` must be None or 'bfloat16', got dtype={dtype!r}.")
    if decay > _LARGEST_DECAY:
        raise ValueError(
            f"dtype='bfloat16' needs a largest decay of at most {_LARGEST_DECAY}, got "
            f"{decay:g}: a longer average would hardly move. Give "
            "update_interval=n with the decay to the power n, such as "
            "ExponentialRule(0.9, update_interval=100) for 0.999 at each step."
        )
