"""Search spaces over fmkit's networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import keras_tuner

from fmkit.hypermodels import _ranges
from fmkit.hypermodels._classifier import HyperClassifier, Number, Whole, Word
from fmkit.models import lenet5, mlp

__all__ = ["HyperLeNet5", "HyperMLP"]


class HyperMLP(HyperClassifier):
    """Search space over `fmkit.models.mlp` and its training.

    Its settings are the tutorials' questions: more units, more layers, more epochs, a
    different optimizer, a different batch size. See `HyperClassifier` for what a
    setting may be.

    Args:
        units: Width of the hidden layers.
        depth: Number of hidden layers.
        per_layer: Whether each layer has its own width, `units_1`, `units_2` and so
            on; otherwise `units` is the width of all.
        activation: Of the hidden layers, by name.
        dropout: Fraction of each hidden layer's outputs set to 0 in training.
        l2: Factor of the penalty on the sum of the squared weights.
        half_l2: Count half of the sum, as TensorFlow 1 does.
        batch_norm: Normalise each hidden layer before its activation.
        input_shape: Shape of one example.
        **training: The settings of `HyperClassifier`.

    Examples:
        >>> import keras_tuner
        >>> space = HyperMLP(units=[64, 128], depth=2, per_layer=False, ema=0.99)
        >>> hp = keras_tuner.HyperParameters()
        >>> space.build(hp).count_params()
        55050
        >>> hp.values["units"], hp.values["depth"], hp.values["batch_size"]
        (64, 2, 128)
    """

    def __init__(
        self,
        *,
        units: Whole = (256, 32, 64, 128, 512),
        depth: Whole = (1, 2, 3, 4),
        per_layer: bool = True,
        activation: Word = ("relu", "tanh"),
        dropout: Number = (0.0, 0.2, 0.4),
        l2: Number = (0.0, 1e-5, 1e-4),
        half_l2: bool = False,
        batch_norm: bool = False,
        input_shape: Sequence[int] = (28, 28),
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.per_layer = bool(per_layer)
        self.half_l2 = bool(half_l2)
        self.batch_norm = bool(batch_norm)
        self.input_shape = tuple(input_shape)
        self.settings |= {
            "units": _ranges.whole("units", units),
            "depth": _ranges.whole("depth", depth, minimum=0),
            **_common_settings(activation, dropout, l2),
        }

    def network(self, hp: keras_tuner.HyperParameters, seed: int) -> keras.Model:
        """Return the network of these hyperparameters, uncompiled."""
        return mlp(
            self._widths(hp),
            self.num_classes,
            input_shape=self.input_shape,
            activation=self._declare(hp, "activation"),
            dropout=self._declare(hp, "dropout"),
            l2=self._declare(hp, "l2"),
            half_l2=self.half_l2,
            batch_norm=self.batch_norm,
            seed=seed,
        )

    def _widths(self, hp: keras_tuner.HyperParameters) -> list[int]:
        depth = self._declare(hp, "depth")
        if not self.per_layer:
            return [self._declare(hp, "units")] * depth
        possible = _ranges.values_of(self.settings["depth"])
        for layer in range(1, max(possible) + 1):
            with hp.conditional_scope("depth", [n for n in possible if n >= layer]):
                _ranges.declare(hp, f"units_{layer}", self.settings["units"])
        return [_ranges.read(hp, f"units_{n}") for n in range(1, depth + 1)]


class HyperLeNet5(HyperClassifier):
    """Search space over `fmkit.models.lenet5`, PaddlePaddle's, and its training.

    By default the first value of each setting gives the network as PaddlePaddle ships
    it. See `HyperClassifier` for what a setting may be.

    Args:
        filters_1: Filters of the first convolution.
        filters_2: Filters of the second convolution.
        units_1: Width of the first dense layer.
        units_2: Width of the second dense layer.
        activation: After the convolutions, by name.
        dense_activation: After the two dense layers; `"linear"` as PaddlePaddle.
        dropout: Fraction of each dense layer's outputs set to 0 in training.
        l2: Factor of the penalty on the sum of the squared weights.
        half_l2: Count half of the sum, as TensorFlow 1 does.
        input_shape: `(height, width)` or with a channel axis.
        **training: The settings of `HyperClassifier`.

    Examples:
        >>> import keras_tuner
        >>> hp = keras_tuner.HyperParameters()
        >>> HyperLeNet5().build(hp).count_params()
        61610
    """

    def __init__(
        self,
        *,
        filters_1: Whole = (6, 16, 32),
        filters_2: Whole = (16, 32, 64),
        units_1: Whole = (120, 256),
        units_2: Whole = (84, 128),
        activation: Word = ("relu", "tanh"),
        dense_activation: Word = ("linear", "relu"),
        dropout: Number = (0.0, 0.2, 0.4),
        l2: Number = (0.0, 1e-5, 1e-4),
        half_l2: bool = False,
        input_shape: Sequence[int] = (28, 28),
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.half_l2 = bool(half_l2)
        self.input_shape = tuple(input_shape)
        self.settings |= {
            "filters_1": _ranges.whole("filters_1", filters_1),
            "filters_2": _ranges.whole("filters_2", filters_2),
            "units_1": _ranges.whole("units_1", units_1),
            "units_2": _ranges.whole("units_2", units_2),
            "dense_activation": _ranges.word(
                "dense_activation", dense_activation, _activation
            ),
            **_common_settings(activation, dropout, l2),
        }

    def network(self, hp: keras_tuner.HyperParameters, seed: int) -> keras.Model:
        """Return the network of these hyperparameters, uncompiled."""
        return lenet5(
            self.num_classes,
            input_shape=self.input_shape,
            filters=[self._declare(hp, name) for name in ("filters_1", "filters_2")],
            units=[self._declare(hp, name) for name in ("units_1", "units_2")],
            activation=self._declare(hp, "activation"),
            dense_activation=self._declare(hp, "dense_activation"),
            dropout=self._declare(hp, "dropout"),
            l2=self._declare(hp, "l2"),
            half_l2=self.half_l2,
            seed=seed,
        )


def _common_settings(activation: Word, dropout: Number, l2: Number) -> dict[str, Any]:
    return {
        "activation": _ranges.word("activation", activation, _activation),
        "dropout": _ranges.number("dropout", dropout, at_least=0, below=1),
        "l2": _ranges.number("l2", l2, at_least=0),
    }


def _activation(value: Any) -> str:
    """Return the name of an activation that Keras knows."""
    if not isinstance(value, str):
        raise TypeError(
            f"`activation` must be a name, such as 'relu', got {value!r}: Keras Tuner "
            "keeps its values as text."
        )
    keras.activations.get(value)
    return value
