"""`models.check_outputs`: losses against the end of a model and the form of labels.

Labels against the number of outputs are in tests/test_models.py.
"""

import warnings

import keras
import numpy as np
import pytest

from fmkit import losses, models

K = keras.losses
ROWS, NUMBERS = np.eye(3), [0, 1, 2]


def with_end(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


def functional(end):
    inputs = keras.Input((4,))
    return keras.Model(inputs, end(keras.layers.Dense(3)(inputs)))


ENDS = {
    "softmax": lambda: with_end(keras.layers.Dense(3, "softmax")),
    "a layer": lambda: with_end(keras.layers.Dense(3), keras.layers.Softmax()),
    "a cast behind it": lambda: with_end(
        keras.layers.Dense(3, "softmax"), keras.layers.Activation("linear")
    ),
    "sigmoid": lambda: with_end(keras.layers.Dense(3, "sigmoid")),
    "an operation": lambda: functional(keras.ops.softmax),
    "an inner model": lambda: functional(
        keras.Sequential([keras.layers.Dense(3, "softmax")])
    ),
}
FROM_LOGITS = {
    "Keras's": K.CategoricalCrossentropy(from_logits=True),
    "ours": losses.CrossentropyFromLogits(),
    "several labels": losses.BinaryCrossentropyFromLogits(),
    "a function": losses.crossentropy_from_logits,
    "in a list": [losses.KLDivergenceFromLogits()],
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_an_activation_before_a_loss_from_logits_is_refused(end):
    loss = losses.CrossentropyFromLogits()
    with pytest.raises(ValueError, match=r"ends in a s\w+, and .* expects logits"):
        models.check_outputs(end(), ROWS, loss)
    models.check_outputs(end(), ROWS, loss, check_activation=False)


@pytest.mark.parametrize("loss", FROM_LOGITS.values(), ids=FROM_LOGITS)
def test_every_loss_from_logits_is_known_as_one(loss):
    with pytest.raises(ValueError, match=r"expects logits"):
        models.check_outputs(ENDS["softmax"](), ROWS, loss)
    # Negative control.
    models.check_outputs(with_end(keras.layers.Dense(3)), ROWS, loss)


@pytest.mark.parametrize(
    "loss",
    [
        "categorical_crossentropy",
        K.CategoricalCrossentropy(),
        {"y": "binary_crossentropy"},
    ],
)
def test_logits_before_a_loss_from_probabilities_are_refused(loss):
    logits = with_end(keras.layers.Dense(3))
    with pytest.raises(ValueError, match=r"ends in logits.*expects probabilities"):
        models.check_outputs(logits, ROWS, loss)
    models.check_outputs(logits, ROWS, loss, check_activation=False)
    models.check_outputs(ENDS["softmax"](), ROWS, loss)


def test_the_loss_of_compile_is_looked_at_without_being_passed():
    model = ENDS["softmax"]()
    models.check_outputs(model, NUMBERS)
    model.compile("sgd", losses.CrossentropyFromLogits())
    with pytest.raises(ValueError, match=r"expects logits"):
        models.check_outputs(model, NUMBERS)


@pytest.mark.parametrize(
    "loss", ["mse", losses.MeanSquaredErrorFromLogits(), losses.Pinball(), None]
)
def test_a_loss_that_takes_either_passes(loss):
    for end in (ENDS["softmax"](), with_end(keras.layers.Dense(3))):
        models.check_outputs(end, ROWS, loss)


def test_a_model_whose_end_is_unknown_passes():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.outer = keras.layers.Dense(3, "softmax")

        def call(self, x):
            return self.outer(x) * 1.0

    inputs = keras.Input((4,))
    whole = keras.Model(inputs, Mine()(inputs))
    models.check_outputs(whole, ROWS, losses.CrossentropyFromLogits())


@pytest.mark.parametrize(
    ("labels", "loss", "message"),
    [
        (ROWS, "sparse_categorical_crossentropy", r"are rows.*argmax\(axis=1\)"),
        (ROWS, K.SparseCategoricalCrossentropy(), "takes class numbers"),
        (NUMBERS, "categorical_crossentropy", "are class numbers.*takes rows"),
        (NUMBERS, K.CategoricalFocalCrossentropy(), "to_categorical"),
    ],
)
def test_labels_in_another_form_than_the_loss_takes_are_refused(labels, loss, message):
    with pytest.raises(ValueError, match=message):
        models.check_outputs(ENDS["softmax"](), labels, loss)
    other = NUMBERS if labels is ROWS else ROWS
    models.check_outputs(ENDS["softmax"](), other, loss)


@pytest.mark.needs("CategoricalGeneralizedCrossEntropy")
def test_the_generalized_loss_takes_class_numbers():
    loss = K.CategoricalGeneralizedCrossEntropy()
    models.check_outputs(ENDS["softmax"](), NUMBERS, loss)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("labels", [["a", "b"], [["a", "b"]], np.array(["a"], object)])
def test_texts_are_refused_whatever_the_model(outputs, labels):
    with pytest.raises(TypeError, match=r"number them first"):
        models.check_outputs(models.linear(outputs), labels)


def warnings_of(loss, activation, **options):
    """Return what training on a network that ends in the activation warns of."""
    layer = keras.layers.Dense(3, activation=activation)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", loss, **options)
    x, y = np.ones((8, 4), "float32"), np.eye(3, dtype="float32")[np.arange(8) % 3]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y, verbose=0)
    return [str(each.message) for each in caught if "logits" in str(each.message)]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "loss",
    [
        losses.CrossentropyFromLogits(),
        losses.BinaryCrossentropyFromLogits(ignore_class=-1),
        losses.MeanSquaredErrorFromLogits(activation="softmax"),
        losses.ConfidencePenalty(),
    ],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.backend("tensorflow", "torch")
def test_a_loss_from_logits_warns_of_a_last_activation(loss, activation):
    told = warnings_of(loss, activation)
    assert told
    assert told[0].startswith(f"{type(loss).__name__} expects logits")
    assert warnings_of(loss, None) == []


@pytest.mark.parametrize(
    "loss",
    [losses.MeanSquaredErrorFromLogits(), losses.Pinball(quantiles=0.5), "mse"],
    ids=["squared error", "pinball", "Keras's"],
)
def test_a_loss_of_any_outputs_does_not_warn(loss):
    assert warnings_of(loss, "softmax") == []
