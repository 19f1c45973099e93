"""What every search space must do. Needs Keras Tuner."""
# ruff: noqa: E402 - imports that need it follow the question whether it is there

import copy

import needs
import numpy as np
import pytest
from contracts import assert_complete, members

needs.module("keras_tuner")

import keras_tuner

from fmkit import hypermodels, models

# Keras Tuner's part is Python's.
pytestmark = pytest.mark.backend("torch")


class HyperOwn(hypermodels.HyperClassifier):
    """The base of the search spaces, with the network that a user would add."""

    def network(self, hp, seed):
        return models.mlp((hp.Int("width", 3, 5),), seed=seed)


SPACES = {
    "HyperClassifier": HyperOwn,
    "HyperLeNet5": hypermodels.HyperLeNet5,
    "HyperMLP": hypermodels.HyperMLP,
}


def test_every_space_has_a_row():
    assert_complete(SPACES, members(hypermodels, keras_tuner.HyperModel))


def drawn(hypermodel, **chosen):
    """Build a trial's model, and return it with the values it was built from."""
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    hp.values |= chosen
    return hypermodel.build(hp), dict(hp.values)


def assert_space(make):
    """Fail unless each value of each setting builds, and a copy builds the same."""
    space = make()
    hp = keras_tuner.HyperParameters()
    space.network(hp, seed=0)
    first = dict(hp.values)
    for name in first:
        for value in hp._hps[name][0].values:
            hp.values = first | {name: value}
            hp.ensure_active_values()
            assert space.network(hp, seed=0).output_shape == (None, 10)
            assert hp.values[name] == value
    model, values = drawn(space)
    assert model.compiled
    again, same_values = drawn(copy.deepcopy(space))
    assert same_values == values
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", SPACES.values(), ids=SPACES)
def test_a_space_has_a_network_at_every_value_and_a_copy_builds_the_same(make):
    assert_space(make)


def test_a_space_with_a_value_that_does_not_build_breaks_the_contract():
    # Negative control.
    class Broken(hypermodels.HyperClassifier):
        def network(self, hp, seed):
            return models.mlp((8,), num_classes=hp.Choice("classes", [10, 3]))

    with pytest.raises(AssertionError):
        assert_space(Broken)
