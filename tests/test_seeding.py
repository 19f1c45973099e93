"""`fmkit.set_random_seed` draws what `keras.utils.set_random_seed` does, at once."""

import random

import keras
import numpy as np
import pytest
from fresh_process import run_python

import fmkit

without_tensorflow = pytest.mark.backend("jax", "torch")

DRAW = '''
import sys, random
import keras, numpy as np
import fmkit

def drawn():
    """Return numbers of each generator, as bytes."""
    numbers = {
        "Python": random.random(),
        "NumPy": np.random.rand(3),
        "Keras": keras.random.uniform((3,)),
        "Keras, without a seed": keras.random.SeedGenerator().state.value,
        "weights": keras.initializers.GlorotUniform()((2, 3)),
        "dropout": keras.layers.Dropout(0.5)(np.ones((9, 9)), training=True),
    }
    if keras.backend.backend() == "torch":
        import torch

        numbers["PyTorch"] = torch.rand(3)
    if "tensorflow" in sys.modules:
        import tensorflow as tf

        numbers["TensorFlow"] = tf.random.uniform((3,)).numpy()
    plain = keras.ops.convert_to_numpy
    return {name: plain(value).tobytes() for name, value in numbers.items()}

def drawn_after(function, seed):
    keras.random.uniform(())  # Keras's global generator has begun
    function(seed)
    return drawn()
'''


@pytest.mark.long
def test_every_generator_draws_the_same_numbers_as_after_keras_own_function():
    printed = run_python(
        f"""{DRAW}
quick = drawn_after(fmkit.set_random_seed, 7)
own = drawn_after(keras.utils.set_random_seed, 7)
# Where Keras's function has loaded TensorFlow, that draws as well.
print(len(quick) >= 6, quick.items() <= own.items())
# Now with all that is loaded.
print(drawn_after(fmkit.set_random_seed, 7) == own)
# Negative control: another seed, and none of the numbers is the same.
other = drawn_after(fmkit.set_random_seed, 8)
print([name for name in own if own[name] == other[name]])
"""
    )
    assert printed.splitlines() == ["True True", "True", "[]"]


@without_tensorflow
@pytest.mark.long
@pytest.mark.needs("tensorflow")
def test_tensorflow_is_seeded_where_it_is_loaded_and_available_afterwards():
    printed = run_python(
        """
        import sys
        import keras
        import fmkit

        fmkit.set_random_seed(3)
        print("tensorflow" in sys.modules)
        # Keras still finds it when it is needed.
        layer = keras.layers.StringLookup(vocabulary=["a", "b"])
        import tensorflow as tf

        print(layer(tf.constant(["b"])).numpy().tolist())
        fmkit.set_random_seed(3)
        first = tf.random.uniform((4,)).numpy().tolist()
        keras.utils.set_random_seed(3)
        print(first == tf.random.uniform((4,)).numpy().tolist())
        print(first == tf.random.uniform((4,)).numpy().tolist())
        """
    )
    assert printed.split() == ["False", "[2]", "True", "False"]


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (1.0, TypeError, "`seed` must be an integer, got seed=1.0"),
        (True, TypeError, "`seed` must be an integer, got seed=True"),
        (-1, ValueError, "`seed` must be at least 0, got seed=-1"),
        (2**32, ValueError, "below 2[*][*]32, got seed=4294967296. Take seed % 2"),
    ],
)
def test_a_seed_that_numpy_cannot_take_is_refused_before_any_generator_is_seeded(
    seed, error, message
):
    before = random.getstate()
    with pytest.raises(error, match=message):
        fmkit.set_random_seed(seed)
    assert random.getstate() == before


def test_a_seed_from_numpy_is_as_good():
    fmkit.set_random_seed(np.int64(5))
    first = keras.ops.convert_to_numpy(keras.random.uniform((2,)))
    fmkit.set_random_seed(5)
    again = keras.ops.convert_to_numpy(keras.random.uniform((2,)))
    np.testing.assert_array_equal(first, again)
