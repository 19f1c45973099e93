"""What the installed Keras can do, found by trying: tests ask here, not a version."""

import keras

__all__ = ["MANY_STEPS", "takes_many_steps"]


def takes_many_steps() -> bool:
    """Whether Keras trains several steps per execution on this backend.

    On PyTorch it does from 3.16 on, and refuses it before.
    """
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=2)
    try:
        model.make_train_function()
    except ValueError as error:
        if "steps_per_execution" in str(error):
            return False
        raise
    return True


# Backends for the mark of a test that needs several steps per execution.
MANY_STEPS = ("tensorflow", "jax", "torch")
if keras.backend.backend() == "torch" and not takes_many_steps():
    MANY_STEPS = ("tensorflow", "jax")
