"""The search space of a classifier's training, and the training of one trial."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import keras_tuner
from keras_tuner import errors

from fmkit._checks import check_int, check_one_of
from fmkit.data import Batches
from fmkit.hypermodels import _ranges
from fmkit.hypermodels._ranges import Range, Setting
from fmkit.hypermodels._trial import Trial
from fmkit.losses import (
    CrossentropyFromLogits,
    MeanSquaredErrorFromLogits,
    crossentropy_from_logits,
)
from fmkit.models import check_outputs
from fmkit.optimizers import ExponentialMovingAverage
from fmkit.preprocessing import preprocess
from fmkit.schedules import ExponentialDecay

__all__ = ["HyperClassifier"]

_logger = logging.getLogger("fmkit.hypermodels")

Whole = int | Sequence[int] | Range
Number = float | Sequence[float] | Range
Word = str | Sequence[str]

_LOSSES: dict[str, Callable[[], keras.losses.Loss]] = {
    "crossentropy": CrossentropyFromLogits,
    "mse": MeanSquaredErrorFromLogits,
}

_OPTIMIZERS = ("adam", "momentum", "sgd")

# Each optimizer has its own range of rates, for a fair comparison.
_RATES: dict[str, Number] = {
    "adam": Range(1e-4, 1e-2, log=True),
    "momentum": Range(1e-3, 1e-1, log=True),
    "sgd": Range(1e-2, 1.0, log=True),
}

_TRAINING_ARGUMENTS = {
    "batch_size": "a hyperparameter here: pass it to the constructor",
    "validation_split": "not supported: split with fmkit.preprocessing.split and pass "
    "validation_data=(x, y)",
    "validation_freq": "not supported: every epoch is validated, or Keras Tuner would "
    "save weights that it didn't score",
    "shuffle": "not supported: the batches are shuffled in full, by the seed",
    "steps_per_epoch": "not supported: an epoch is all batches",
}


class HyperClassifier(keras_tuner.HyperModel):
    r"""Search space over the training of a classifier; the base of the others.

    Override `network(hp, seed)` to search over your own network. Each setting is one
    fixed value, a list of values to choose from, or, for numbers, a `Range`.

    A trial builds the network, compiles it with the loss on its logits and the
    optimizer, and trains it on `fmkit.data.Batches` of the trial's batch size. All
    random numbers come from the trial's `seed`, so the same settings give the same
    score on one backend. The model is compiled with the metrics `"accuracy"` and
    `"crossentropy"` (without penalties); the objective may be `"val_accuracy"` or
    `"val_crossentropy"`.

        tuner = keras_tuner.RandomSearch(
            HyperMLP(), objective="val_accuracy", max_trials=20, directory="search")
        tuner.search(x, y, validation_data=(x_val, y_val), epochs=10)

    `search` takes `x` and `y` as arrays, and other arguments of `fit` such as
    `callbacks` and `sample_weight`. `validation_data` is a pair of arrays or a
    `Batches`, which is used as it is.

    Args:
        num_classes: Number of outputs.
        loss: `"crossentropy"` or `"mse"`, both on logits.
        optimizer: `"adam"`, `"momentum"` or `"sgd"`.
        learning_rate: Initial rate $\eta_0$: one setting for all optimizers, or a dict
            with one for each, named `adam_learning_rate` and so on, since each
            optimizer needs a different scale.
        momentum: Momentum of `"momentum"`.
        learning_rate_decay: Factor of the rate from one epoch to the next; 1 keeps it.
        batch_size: Examples in one step.
        epochs: Passes over the data. `None` leaves them to the tuner or the search:
            `Hyperband` chooses them itself, others take `search(..., epochs=10)`.
        ema: Decay of the averaged weights per step; 0 for none. The averages, if any,
            are validated, and are the weights that the tuner saves and loads back.
        seed: Of weights, dropout and order. In a list, each seed is a separate
            trial; the tuner's `executions_per_trial` would repeat the same numbers and
            is refused.
        map: The map function of the batches.
        resume: How often each trial commits its state, as `every` of `ExactResume`:
            `100` (steps), `"epoch"`, `"10 minutes"`; `None` for never. A killed
            search then continues inside the trial, with the same bits.
        on_error: `"raise"` ends the search at a trial that raises; run again, the
            search continues with that trial. `"continue"` logs a warning and lets the
            tuner mark the trial FAILED. A trial whose objective is never finite is
            always logged and marked so.
        name: Name of the hypermodel.

    Raises:
        TypeError: If a setting is of the wrong kind.
        ValueError: If a setting is outside its range.
        ImportError: On TensorFlow, if `tensorboard` is not installed: Keras Tuner
            would fail in every trial, and its `search` would return normally.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        loss: Word = ("crossentropy", "mse"),
        optimizer: Word = _OPTIMIZERS,
        learning_rate: Number | Mapping[str, Number] | None = None,
        momentum: Number = 0.9,
        learning_rate_decay: Number = (1.0, 0.95, 0.9),
        batch_size: Whole = (128, 32, 64, 256),
        epochs: Whole | None = None,
        ema: Number = (0.0, 0.99),
        seed: Whole = 0,
        map: Callable[..., Any] | None = preprocess,
        resume: int | str | None = None,
        on_error: str = "raise",
        name: str | None = None,
    ) -> None:
        _check_tensorboard()
        super().__init__(name=name)
        self.num_classes = check_int("num_classes", num_classes, minimum=2)
        self.map = map
        self.resume = resume
        self.on_error = check_one_of("on_error", on_error, ["raise", "continue"])
        self.rates = _read_rates(_RATES if learning_rate is None else learning_rate)
        self.epochs = None if epochs is None else _ranges.whole("epochs", epochs)
        self.settings: dict[str, Setting] = {
            "loss": _ranges.word("loss", loss, _LOSSES),
            "optimizer": _ranges.word("optimizer", optimizer, _OPTIMIZERS),
            "momentum": _ranges.number("momentum", momentum, above=0, below=1),
            "learning_rate_decay": _ranges.number(
                "learning_rate_decay", learning_rate_decay, above=0, at_most=1
            ),
            "batch_size": _ranges.whole("batch_size", batch_size),
            "ema": _ranges.number("ema", ema, at_least=0, below=1),
            "seed": _ranges.whole("seed", seed, minimum=0),
        }

    def network(self, hp: keras_tuner.HyperParameters, seed: int) -> keras.Model:
        """Return an uncompiled model that outputs logits; override it.

        Args:
            hp: Where hyperparameters are declared, `hp.Int("units", 32, 512)`.
            seed: Seed of the trial, for initializers and dropout.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must have a method network(hp, seed) that returns "
            "an uncompiled keras.Model that outputs logits."
        )

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Declare all hyperparameters and return the compiled model."""
        try:
            model = self.network(hp, self._declare(hp, "seed"))
            loss = _LOSSES[self._declare(hp, "loss")]()
            optimizer = self._optimizer(hp)
            for name in ("learning_rate_decay", "batch_size"):
                self._declare(hp, name)
            if self.epochs is not None:
                _ranges.declare(hp, "epochs", self.epochs)
            crossentropy = keras.metrics.MeanMetricWrapper(
                crossentropy_from_logits, name="crossentropy"
            )
            model.compile(optimizer, loss, metrics=["accuracy", crossentropy])
            # Otherwise the tuner skips the optimizer when it loads a checkpoint, and
            # a later round of Hyperband starts with an empty one.
            optimizer.build(model.trainable_variables)
        except Exception as error:  # whatever a network's own code raises
            raise self._as_tuner_error(error, hp) from error
        return model

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Train `model` on batches of the trial's size; the tuner calls this.

        Args:
            hp: The hyperparameters that `model` was built with.
            model: What `build(hp)` returned.
            *args: `x` and `y`, arrays, as in `keras.Model.fit`.
            **kwargs: Other arguments of `keras.Model.fit`.

        Returns:
            The history of `fit`.
        """
        try:
            return self._fit(hp, model, *args, **kwargs)
        except errors.FailedTrialError as error:
            _logger.warning("%s", error)
            raise
        except Exception as error:  # whatever training raises
            raise self._as_tuner_error(error, hp) from error

    def _fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        x: Any = None,
        y: Any = None,
        *,
        validation_data: Any = None,
        sample_weight: Any = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        **kwargs: Any,
    ) -> keras.callbacks.History:
        self._check_arguments(x, y, kwargs)
        check_outputs(model, y)
        kwargs["epochs"] = self._epochs(hp, kwargs)
        trial = Trial(list(callbacks), hp, resume=self.resume)
        trial.check_objective(
            validated=validation_data is not None,
            penalised=self._settings_that_change_the_loss(),
        )
        batches = Batches(
            x,
            y,
            _ranges.read(hp, "batch_size"),
            seed=_ranges.read(hp, "seed"),
            map=self.map,
            sample_weight=sample_weight,
        )
        history = model.fit(
            batches,
            validation_data=self._validation(validation_data),
            callbacks=self._scheduler(hp)
            + trial.callbacks(averages=_ranges.read(hp, "ema") > 0),
            **kwargs,
        )
        trial.check_finite(history)
        return history

    def _declare(self, hp: keras_tuner.HyperParameters, name: str) -> Any:
        return _ranges.declare(hp, name, self.settings[name])

    def _optimizer(self, hp: keras_tuner.HyperParameters) -> keras.optimizers.Optimizer:
        kind = self._declare(hp, "optimizer")
        if isinstance(self.rates, dict):
            rate = self._rate_of_optimizer(hp, kind)
        else:
            rate = _ranges.declare(hp, "learning_rate", self.rates)
        momentum = None
        if "momentum" in self._possible_optimizers():
            with hp.conditional_scope("optimizer", ["momentum"]):
                momentum = self._declare(hp, "momentum")
        if kind == "adam":
            optimizer = keras.optimizers.Adam(rate)
        else:
            optimizer = keras.optimizers.SGD(rate, momentum=momentum or 0.0)
        decay = self._declare(hp, "ema")
        return ExponentialMovingAverage(optimizer, decay) if decay else optimizer

    def _rate_of_optimizer(self, hp: keras_tuner.HyperParameters, kind: str) -> float:
        assert isinstance(self.rates, dict)
        possible = self._possible_optimizers()
        missing = [each for each in possible if each not in self.rates]
        if missing:
            raise ValueError(
                f"`learning_rate` has no entry for {missing}; it has "
                f"{sorted(self.rates)}. Pass one for each optimizer of the search."
            )
        found: dict[str, float] = {}
        for each in possible:
            name = f"{each}_learning_rate"
            with hp.conditional_scope("optimizer", [each]):
                found[each] = _ranges.declare(hp, name, self.rates[each])
        return found[kind]

    def _possible_optimizers(self) -> list[str]:
        setting = self.settings["optimizer"]
        return [str(v) for v in (setting if isinstance(setting, tuple) else [setting])]

    def _scheduler(
        self, hp: keras_tuner.HyperParameters
    ) -> list[keras.callbacks.Callback]:
        """Lower the rate by one stair per epoch, numbered from the first.

        By epoch rather than by optimizer step: the rate stays a variable of the
        optimizer, which the tuner's checkpoints hold, and a later round of
        Hyperband continues where the previous one ended.
        """
        factor = _ranges.read(hp, "learning_rate_decay")
        if factor == 1:
            return []
        kind = _ranges.read(hp, "optimizer")
        own = isinstance(self.rates, dict)
        rate = _ranges.read(hp, f"{kind}_learning_rate" if own else "learning_rate")
        falling = ExponentialDecay(rate, 1, factor)
        return [keras.callbacks.LearningRateScheduler(lambda n: float(falling(n)))]

    def _epochs(self, hp: keras_tuner.HyperParameters, kwargs: dict[str, Any]) -> int:
        given = kwargs.get("epochs")
        if "tuner/epochs" in hp.values:
            if self.epochs is not None:
                raise ValueError(
                    f"Hyperband chooses the epochs itself, got epochs={self.epochs!r}. "
                    "Omit `epochs`; `max_epochs` of Hyperband is the limit."
                )
            return int(hp.values["tuner/epochs"])
        if (given is None) == (self.epochs is None):
            raise ValueError(
                "The number of epochs must be given once: as `epochs` of the "
                f"hypermodel, or as search(..., epochs=10); got epochs={self.epochs!r} "
                f"there and {given!r} here."
            )
        return check_int("epochs", _ranges.read(hp, "epochs") if self.epochs else given)

    def _check_arguments(self, x: Any, y: Any, kwargs: dict[str, Any]) -> None:
        for name in kwargs:
            if name in _TRAINING_ARGUMENTS and kwargs[name] is not None:
                raise ValueError(f"`{name}` is {_TRAINING_ARGUMENTS[name]}.")
        if x is None or y is None or isinstance(x, Batches):
            raise TypeError(
                "`search` needs the training data as arrays, search(x, y, ...), since "
                "each trial has its own batch size; got x of type "
                f"{type(x).__name__} and y of type {type(y).__name__}."
            )

    def _settings_that_change_the_loss(self) -> list[str]:
        """Name the tuned settings that change the value of the loss directly."""
        names = ("loss", "l2")  # of which not every space has the second
        return [name for name in names if _ranges.is_tuned(self.settings.get(name))]

    def _validation(self, data: Any) -> Batches | None:
        if data is None or isinstance(data, Batches):
            return data
        if not isinstance(data, tuple | list) or len(data) not in (2, 3):
            raise TypeError(
                "`validation_data` must be a pair of arrays (x, y), or a "
                f"fmkit.data.Batches, got {type(data).__name__}."
            )
        weight = data[2] if len(data) == 3 else None
        return Batches(
            data[0], data[1], shuffle=False, map=self.map, sample_weight=weight
        )

    def _as_tuner_error(
        self, error: Exception, hp: keras_tuner.HyperParameters
    ) -> Exception:
        if isinstance(error, errors.FatalError | errors.FailedTrialError):
            return error
        text = f"{type(error).__name__}: {error}\nThe trial's settings: {hp.values}"
        if self.on_error == "continue":
            _logger.warning("A trial of the search failed: %s", text)
            return errors.FailedTrialError(text)
        kind = {
            True: errors.FatalRuntimeError,
            isinstance(error, TypeError): errors.FatalTypeError,
            isinstance(error, ValueError): errors.FatalValueError,
        }[True]
        return kind(text)


def _read_rates(given: Number | Mapping[str, Number]) -> Setting | dict[str, Setting]:
    if not isinstance(given, Mapping):
        return _ranges.number("learning_rate", given, above=0)
    return {
        check_one_of("learning_rate", kind, _OPTIMIZERS): _ranges.number(
            f"learning_rate[{kind!r}]", rate, above=0
        )
        for kind, rate in given.items()
    }


def _check_tensorboard() -> None:
    if keras.backend.backend() != "tensorflow":
        return
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError(
            "Keras Tuner on TensorFlow imports tensorboard in every trial, and it is "
            "not installed: every trial would fail. Write\n"
            "    pip install tensorboard"
        )
