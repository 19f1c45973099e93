"""Structures in `Batches`: `fit`, `evaluate` and `predict` see what arrays would be."""

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmkit.data import Batches
from fmkit.performance import FusedModel

BACKEND = keras.backend.backend()
COUNT, SIZE = 10, 4


class Pair(NamedTuple):
    """Fields whose names are not in alphabetical order."""

    second: Any
    first: Any


def pair(second: Any, first: Any) -> Pair:
    return Pair(second, first)


# Each makes a structure of two leaves, the one that alphabet puts second given first.
STRUCTURES = {
    "dict in order": lambda z, a: {"a": a, "z": z},
    "dict out of order": lambda z, a: {"z": z, "a": a},
    "tuple": lambda z, a: (z, a),
    "named tuple": pair,
    "nested": lambda z, a: {"z": {"y": z}, "a": (a,)},
    "dict of dicts": lambda z, a: {"b": {"z": z, "a": a}},
    "tuple of dicts": lambda z, a: ({"z": z}, {"a": a}),
    "one": lambda z, a: z,
}

PAIRS = [
    ("dict out of order", "one"),
    ("one", "dict out of order"),
    ("dict out of order", "dict out of order"),
    ("dict in order", "dict out of order"),
    ("tuple", "tuple"),
    ("named tuple", "one"),
    ("nested", "one"),
    ("dict of dicts", "dict in order"),
    ("tuple of dicts", "tuple"),
]


def arrays(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one shape that are far apart: mixed up, nothing would fit."""
    rng = np.random.default_rng(seed)
    return tuple(
        (scale * rng.normal(size=(COUNT, 2))).astype("float32") for scale in (5.0, 0.1)
    )


def make_model(inputs: str, outputs: str, kind: type, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    z, a = keras.Input((2,), name="z"), keras.Input((2,), name="a")
    left, right = STRUCTURES[inputs], STRUCTURES[outputs]
    joined = z if inputs == "one" else keras.layers.Concatenate()([z, a])
    out = [keras.layers.Dense(2, name=f"out_{name}")(joined) for name in "za"]
    model = kind(left(z, a), right(*out))
    model.compile("adam", right("mse", "mae"), **options)
    return model


def use(model: keras.Model, batched: bool, inputs: str, outputs: str) -> list[Any]:
    """Everything that one fit, evaluate and predict say and leave."""
    x, y = STRUCTURES[inputs](*arrays(1)), STRUCTURES[outputs](*arrays(2))
    if batched:
        options: dict[str, Any] = {}
        data = Batches(x, y, SIZE, map=None, shuffle=False), None
        unlabelled = Batches(x, None, SIZE, map=None)
    else:
        options = {"batch_size": SIZE}
        data, unlabelled = (x, y), x
    history = model.fit(*data, epochs=2, shuffle=False, verbose=0, **options)
    results = model.evaluate(*data, verbose=0, **options)
    predictions = model.predict(unlabelled, verbose=0, **options)
    predicted = model.predict(data[0], verbose=0, **options)
    found = [history.history["loss"], results, predictions, predicted, model.weights]
    return [
        np.asarray(keras.ops.convert_to_numpy(leaf)).tobytes()
        for leaf in keras.tree.flatten(found)
    ]


@pytest.mark.parametrize(("inputs", "outputs"), PAIRS)
def test_structures_do_in_batches_what_they_do_as_arrays(inputs, outputs):
    # Compiled once, which is most of the time.
    model = make_model(inputs, outputs, keras.Model)
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    start = [keras.ops.convert_to_numpy(variable) for variable in variables]
    found = []
    for batched in (True, False):
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        found.append(use(model, batched, inputs, outputs))
    assert found[0] == found[1]


@pytest.mark.long
@pytest.mark.backend("tensorflow", "jax")
@pytest.mark.parametrize(("inputs", "outputs"), PAIRS[2:5])
def test_structures_do_in_fused_steps_what_they_do_in_single_ones(inputs, outputs):
    options = {"jit_compile": True, "steps_per_execution": 2}
    fused, single = (
        make_model(inputs, outputs, kind, **options)
        for kind in (FusedModel, keras.Model)
    )
    assert fused.steps_in_one_program == 2
    x, y = STRUCTURES[inputs](*arrays(1)), STRUCTURES[outputs](*arrays(2))
    fused.fit(Batches(x, y, SIZE, map=None, shuffle=False), epochs=2, verbose=0)
    single.fit(x, y, batch_size=SIZE, epochs=2, shuffle=False, verbose=0)
    # Another arrangement of the same sums; what is mixed up differs in the first digit.
    for a, b in zip(fused.weights, single.weights, strict=True):
        a, b = (keras.ops.convert_to_numpy(v) for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_arrays_that_are_mixed_up_give_other_values():
    # Negative control of both tests above.
    swapped = Batches({"a": arrays(1)[0], "z": arrays(1)[1]}, None, SIZE, map=None)
    straight = Batches({"z": arrays(1)[0], "a": arrays(1)[1]}, None, SIZE, map=None)
    model = make_model("dict in order", "one", keras.Model)
    found = [model.predict(data, verbose=0) for data in (swapped, straight)]
    assert np.abs(found[0] - found[1]).max() > 1


def structures(leaf: Any) -> Any:
    names = st.text("abcz", min_size=1, max_size=2)
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.dictionaries(names, inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
            st.builds(Pair, inner, inner),
        ),
        max_leaves=6,
    )


LEAF = st.integers(0, 99).map(lambda n: np.arange(n, n + COUNT, dtype="int32"))


def told(structure: Any) -> Any:
    """The structure in words: types, keys in their order, and every number."""
    if isinstance(structure, dict):
        return "dict", [(key, told(value)) for key, value in structure.items()]
    if isinstance(structure, tuple):
        return type(structure).__name__, [told(value) for value in structure]
    return np.asarray(structure).tolist()


@settings(max_examples=150, deadline=None)
@given(structures(LEAF), st.none() | structures(LEAF), st.booleans())
def test_every_structure_comes_out_as_it_went_in(x, y, weighted):
    weight = np.arange(COUNT, dtype="float32") if weighted and y is not None else None
    batches = Batches(x, y, COUNT, map=None, shuffle=False, sample_weight=weight)
    given = tuple(part for part in (x, y, weight) if part is not None)
    assert told(batches.peek()) == told(given)


@pytest.mark.backend("tensorflow")
@settings(max_examples=25, deadline=None)
@given(structures(LEAF), structures(LEAF))
def test_every_structure_comes_out_of_the_dataset_as_it_went_in(x, y):
    batches = Batches(x, y, COUNT, map=None, shuffle=False)
    assert told(next(iter(batches.as_dataset()))) == told((x, y))
